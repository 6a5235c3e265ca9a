// Loader: FP4 experts, packed on the way to the device.
#include "base/error.h"
#include "runtime/weight_loader.h"
#include "runtime/weight_values.h"

#include <algorithm>
#include <deque>

namespace deep_gemm::runtime {

namespace {

std::span<const u8> as_u8(std::span<const std::byte> bytes) {
    return {reinterpret_cast<const u8*>(bytes.data()), bytes.size()};
}

i64 run_bytes_of(const op::Fp4Shape& shape, Fp4Form form) {
    return i64{fp4_k_blocks(shape.k)} * fp4_blob_bytes_of(form);
}

// The last matrices that were packed: experts of synthetic checkpoints share their bytes.
class RecentlyPacked {
  public:
    const op::PackedFp4& get(const op::Fp4Shape& shape, std::span<const std::byte> codes,
                             std::span<const std::byte> scales, Fp4Form form) {
        for (const Entry& entry : entries_)
            if (entry.codes == codes.data() && entry.scales == scales.data() && entry.packed.form == form &&
                entry.packed.shape.n == shape.n && entry.packed.shape.k == shape.k)
                return entry.packed;
        if (entries_.size() == kEntries) entries_.pop_front();
        return entries_
            .emplace_back(codes.data(), scales.data(), op::pack_fp4(shape, as_u8(codes), as_u8(scales), form))
            .packed;
    }

  private:
    static constexpr size_t kEntries = 8;
    struct Entry {
        const std::byte *codes, *scales;
        op::PackedFp4 packed;
    };
    std::deque<Entry> entries_;
};

}  // namespace

bool Loader::should_pack(const std::string& at, const std::vector<std::string>& names, i64 count, i64 hidden,
                         i64 width, i64 top_k) const {
    return wide_ == Format::bf16 && are_stored(at, names, {Storage::i8, Storage::mxfp4_gguf}) &&
           can_pack_experts(device_, count, hidden, width, top_k);
}

PackedMatrix Loader::packed_experts(const std::string& at, u32 count, const std::vector<std::string>& names) {
    // Most rows fit the smaller form; the wider one is for matrices where some do not.
    const u64 device_bytes = device_bytes_, done = done_;
    if (auto packed = try_pack(at, count, names, Fp4Form::mx_e4m3, false)) return std::move(*packed);
    device_bytes_ = device_bytes, done_ = done;
    return *try_pack(at, count, names, Fp4Form::mx_e5m2, true);
}

std::optional<PackedMatrix> Loader::try_pack(const std::string& at, u32 count,
                                             const std::vector<std::string>& names, Fp4Form form,
                                             bool split) {
    PackedMatrix result{.shape = {.experts = count}, .form = form, .blobs = {}, .row_scales = {}, .runs = {}};
    RecentlyPacked recent;
    std::vector<u8> blobs;  // of split matrices, whose size shows at the end
    std::vector<float> row_scales;
    std::vector<u32> runs;
    bool any_split = false;
    const u64 parts = u64{count} * names.size();
    u64 part = 0;
    for (u32 e = 0; e < count; ++e) {
        for (const std::string& name : names) {
            const Tensor& weight = get(fmt::format("{}{}.{}.weight", at, e, name));
            const u64 n = weight.shape[0];
            std::optional<SplitMxfp4> converted;
            std::span<const std::byte> codes = weight.bytes, scales;
            u64 k = weight.shape[1];
            if (weight.storage == Storage::mxfp4_gguf) {
                converted.emplace(weight.bytes);
                codes = converted->codes, scales = converted->scales;
            } else {
                DG_CHECK(
                    weight.storage == Storage::i8, value,
                    "checkpoint: {} is {}, the first expert's is FP4; expected one format for all: convert "
                    "the checkpoint",
                    weight.name, row_of(weight.storage).name);
                scales = find_scale(checkpoint_, fmt::format("{}{}.{}", at, e, name))->bytes;
                k *= 2;
            }
            const op::Fp4Shape shape{.experts = 1, .n = static_cast<u32>(n), .k = static_cast<u32>(k)};
            DG_CHECK(shape.n % kFp4BlockRows == 0 || names.size() == 1, value,
                     "checkpoint: {} has {} rows, expected a multiple of {}; the checkpoint does not fit its "
                     "configuration: get both again",
                     weight.name, n, kFp4BlockRows);
            op::PackedFp4 own;
            if (converted) own = op::pack_fp4(shape, as_u8(codes), as_u8(scales), form);
            const op::PackedFp4& packed = converted ? own : recent.get(shape, codes, scales, form);
            if (packed.split && !split) return std::nullopt;
            any_split |= packed.split;
            if (part == 0) {
                result.shape.n = shape.n * static_cast<u32>(names.size()), result.shape.k = shape.k;
                if (!split) {
                    result.blobs = allocate(Format::int8, {static_cast<i64>(parts * fp4_row_blocks(shape.n)),
                                                           run_bytes_of(shape, form)});
                    result.row_scales =
                        allocate(Format::fp32, {static_cast<i64>(parts * packed.row_scales.size())});
                }
            }
            const u64 stored = weight.bytes.size() + (converted ? 0 : scales.size());
            if (!split) {
                upload(result.row_scales, part * packed.row_scales.size() * sizeof(float),
                       std::as_bytes(std::span(packed.row_scales)), 0);
                upload(result.blobs, part * packed.blobs.size(), std::as_bytes(std::span(packed.blobs)),
                       stored);
            } else {
                const u32 first = static_cast<u32>(row_scales.size() / kFp4BlockRows);
                for (u32 block = 0; block < fp4_row_blocks(shape.n); ++block)
                    runs.push_back(packed.split ? packed.runs[block] + (first << 8)
                                                : (first + block) << 8 | 1);
                blobs.insert(blobs.end(), packed.blobs.begin(), packed.blobs.end());
                row_scales.insert(row_scales.end(), packed.row_scales.begin(), packed.row_scales.end());
            }
            ++part;
        }
    }
    if (!split) {
        device_.synchronize(nullptr);  // the host's copies end here
        return result;
    }
    const auto make = [&](DeviceTensor& target, Format format, std::span<const std::byte> bytes, u64 stored) {
        const i64 columns = format == Format::int8 ? run_bytes_of(result.shape, form) : 1;
        target = allocate(format, {static_cast<i64>(bytes.size() / bytes_of(format)) / columns, columns});
        upload(target, 0, bytes, stored);
    };
    make(result.blobs, Format::int8, std::as_bytes(std::span(blobs)), blobs.size());
    make(result.row_scales, Format::fp32, std::as_bytes(std::span(row_scales)), 0);
    if (any_split) make(result.runs, Format::int32, std::as_bytes(std::span(runs)), 0);
    device_.synchronize(nullptr);
    return result;
}

}  // namespace deep_gemm::runtime
