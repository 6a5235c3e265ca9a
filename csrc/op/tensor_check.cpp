#include "op/tensor_check.h"

#include "base/error.h"

#include <algorithm>

namespace deep_gemm::op {

namespace {

// Tensors without elements have no layout to check.
bool is_empty(const TensorView& t) {
    for (u32 i = 0; i < t.rank; ++i)
        if (t.shape[i] == 0) return true;
    return false;
}

}  // namespace

std::string shape_text(const TensorView& t) {
    std::string text = "[";
    for (u32 i = 0; i < t.rank; ++i) text += fmt::format("{}{}", i ? ", " : "", t.shape[i]);
    return text + "]";
}

u64 bytes_spanned(const TensorView& t) {
    if (is_empty(t)) return 0;
    u64 last = 0;
    for (u32 i = 0; i < t.rank; ++i) {
        last += static_cast<u64>(t.shape[i] - 1) * static_cast<u64>(t.strides[i]);
    }
    return t.present() ? (last + 1) * bits_of(t.format) / 8 : 0;
}

u64 stride_of(const TensorView& t, u32 i) {
    u64 packed = 1;  // where one element has no stride of its own: that of packed rows
    for (u32 j = i; j < t.rank; ++j) {
        if (t.shape[j] > 1) return packed * static_cast<u64>(t.strides[j]);
        if (j + 1 < t.rank) packed *= static_cast<u64>(t.shape[j + 1]);
    }
    return packed;
}

void TensorChecks::tensor(const char* name, const TensorView& t, std::initializer_list<Format> formats,
                          std::initializer_list<i64> shape) {
    const auto names = [&] {
        std::string text;
        for (const Format format : formats)
            text += fmt::format("{}{}", text.empty() ? "" : " or ", name_of(format));
        return text;
    };
    DG_CHECK(t.present() && t.device, type, "{}: {} is missing, expected a tensor of {}; pass it", operation_,
             name, names());
    bool known = false;
    for (const Format format : formats) known = known || t.format == format;
    DG_CHECK(known, type, "{}: {} is {}, expected {}; cast it", operation_, name, name_of(t.format), names());
    if (!device_) {
        device_ = t.device;
        first_ = name;
    }
    DG_CHECK(t.device == device_, value, "{}: {} is on another device than {}; move it there", operation_,
             name, first_);
    bool same = t.rank == shape.size();
    u32 i = 0;
    for (const i64 extent : shape) {
        same = same && (extent < 0 || t.shape[i] == extent);
        ++i;
    }
    if (!same) {
        std::string text;
        for (const i64 extent : shape)
            text +=
                fmt::format("{}{}", text.empty() ? "" : ", ", extent < 0 ? "any" : fmt::format("{}", extent));
        fail(ErrorKind::value,
             "{}: {} has shape {}, expected [{}]; reshape it, or pass the tensor of that shape", operation_,
             name, shape_text(t), text);
    }
    for (i = 0; i < t.rank; ++i) {
        DG_CHECK(t.shape[i] < (i64{1} << 31), value,
                 "{}: {} has shape {}, expected extents below 2^31; pass slices", operation_, name,
                 shape_text(t));
        DG_CHECK(
            t.strides[i] >= 0, value,
            "{}: {} has stride {} along dimension {}, expected no negative stride; pass a contiguous copy",
            operation_, name, t.strides[i], i);
    }
    constexpr size_t kUsual = 16;
    if (checked_.empty()) checked_.reserve(kUsual);
    checked_.push_back({name, t.format, region_of(t)});
}

void TensorChecks::outputs(std::initializer_list<Output> written) {
    for (const Output& out : written) {
        const auto found = std::find_if(checked_.rbegin(), checked_.rend(),
                                        [&](const Checked& c) { return c.name == out.name; });
        if (found == checked_.rend()) continue;
        const Region& region = found->region;
        for (const Checked& other : checked_) {
            const Region& read = other.region;
            if (other.name == found->name || !overlap(region, read)) continue;
            const bool may_be = out.itself != nullptr && other.name == out.itself;
            DG_CHECK(
                may_be && region == read && found->format == other.format, value,
                "{}: {} is the {} bytes from {:#x}, which overlap {}, the {} bytes from {:#x}; expected memory of "
                "its own{}: pass another tensor as {}",
                operation_, out.name, region.bytes, region.address, other.name, read.bytes, read.address,
                may_be ? fmt::format(", or {} itself", other.name) : "", out.name);
        }
    }
    checked_.clear();
}

void TensorChecks::rows(const char* name, const TensorView& t, u32 alignment) const {
    if (is_empty(t)) return;
    const u64 bytes = bytes_of(t.format), row = stride_of(t, t.rank - 2) * bytes;
    DG_CHECK(stride_of(t, t.rank - 1) == 1, value,
             "{}: {} has stride {} along its last dimension, expected 1; pass a contiguous copy", operation_,
             name, t.strides[t.rank - 1]);
    DG_CHECK(row >= static_cast<u64>(t.shape[t.rank - 1]) * bytes, value,
             "{}: rows of {} are {} bytes apart, expected rows that do not overlap; pass a contiguous copy",
             operation_, name, row);
    DG_CHECK(address_of(t) % alignment == 0 && row % alignment == 0, value,
             "{}: {} starts at {:#x} with rows {} bytes apart, expected multiples of {}; pass a copy whose "
             "rows are padded",
             operation_, name, address_of(t), row, alignment);
}

void TensorChecks::packed(const char* name, const TensorView& t) const {
    if (is_empty(t)) return;
    u64 expected = 1;
    for (u32 i = t.rank; i-- > 0;) {
        DG_CHECK(t.shape[i] <= 1 || static_cast<u64>(t.strides[i]) == expected, value,
                 "{}: {} has stride {} along dimension {}, expected {}; pass a contiguous copy", operation_,
                 name, t.strides[i], i, expected);
        expected *= static_cast<u64>(t.shape[i]);
    }
    DG_CHECK(address_of(t) % bytes_of(t.format) == 0, value,
             "{}: {} starts at {:#x}, expected a multiple of {}; pass a copy", operation_, name,
             address_of(t), bytes_of(t.format));
}

}  // namespace deep_gemm::op
