#include "op/tensor_maps.h"

#include "driver/device.h"

#include <vector>

namespace deep_gemm::op {

namespace {

constexpr u64 kSwizzleBytes = 128;
constexpr u64 kStrideBytes = 16;  // TMA's unit of addresses and strides
constexpr size_t kSlots = 256;    // of about 200 bytes, for each thread that launches

// What a map depends on; inner, middle and outer are extents, in elements, innermost first.
struct Key {
    Device* device = nullptr;
    u64 address = 0, inner = 0, middle = 0, outer = 0;
    u64 middle_stride_bytes = 0, outer_stride_bytes = 0;
    u32 inner_box = 0, middle_box = 0;
    Format format = Format::none;
    Swizzle swizzle = Swizzle::none;
    friend bool operator==(const Key&, const Key&) = default;
};

struct Slot {
    Key key;
    TensorMap map;
};

size_t slot_of(const Key& key) {
    const u64 mixed =
        (key.address ^ key.middle << 17 ^ key.inner << 33 ^ key.middle_box) * 0x9e3779b97f4a7c15ull;
    return mixed >> 56;
}
static_assert(kSlots == 256, "slot_of returns eight bits");

TensorMapDesc describe(const Key& key) {
    // The distance between rows or groups of which there is one means nothing to TMA but must be legal.
    const u64 inner_bytes = align_up(key.inner * bytes_of(key.format), kStrideBytes);
    const u64 middle_stride = key.middle > 1 ? key.middle_stride_bytes : inner_bytes;
    TensorMapDesc desc;
    desc.address = key.address;
    desc.format = key.format;
    desc.rank = 3;
    desc.dims[0] = key.inner;
    desc.dims[1] = key.middle;
    desc.dims[2] = key.outer;
    desc.strides_bytes[0] = middle_stride;
    desc.strides_bytes[1] = key.outer > 1 ? key.outer_stride_bytes : middle_stride * key.middle;
    desc.box[0] = key.inner_box;
    desc.box[1] = key.middle_box;
    desc.box[2] = 1;
    desc.swizzle = key.swizzle;
    return desc;
}

const TensorMap& find(const Key& key) {
    thread_local std::vector<Slot> slots(kSlots);
    Slot& slot = slots[slot_of(key)];
    if (!(slot.key == key)) {
        slot.map = key.device->encode_tensor_map(describe(key));
        slot.key = key;
    }
    return slot.map;
}

bool is_tma_stride(u64 extent, u64 stride_bytes) {
    return extent <= 1 || (stride_bytes != 0 && stride_bytes % kStrideBytes == 0);
}

}  // namespace

const TensorMap& matrix_map(Device& device, const Operand& matrix, Format format, u32 box_rows) {
    const u32 bytes = bytes_of(format);
    return find({.device = &device,
                 .address = matrix.address,
                 .inner = matrix.columns,
                 .middle = matrix.rows,
                 .outer = matrix.groups,
                 .middle_stride_bytes = matrix.stride_row * bytes,
                 .outer_stride_bytes = matrix.stride_group * bytes,
                 .inner_box = static_cast<u32>(kSwizzleBytes) / bytes,
                 .middle_box = box_rows,
                 .format = format,
                 .swizzle = Swizzle::bytes_128});
}

const TensorMap& scale_map(Device& device, const Operand& scales, ScaleALoad load, u32 block_m) {
    const bool along_k = load == ScaleALoad::tma_k_contiguous;
    return find({.device = &device,
                 .address = scales.address,
                 .inner = along_k ? scales.columns : scales.rows,
                 .middle = along_k ? scales.rows : scales.columns,
                 .outer = scales.groups,
                 .middle_stride_bytes = (along_k ? scales.stride_row : scales.stride_column) * 4,
                 .outer_stride_bytes = scales.stride_group * 4,
                 .inner_box = along_k ? kScaleChunk : block_m,
                 .middle_box = along_k ? block_m : kScaleChunk,
                 .format = Format::fp32,
                 .swizzle = Swizzle::none});
}

ScaleALoad scale_load_of(const Operand& scales) {
    if (scales.address % kStrideBytes != 0 || !is_tma_stride(scales.groups, scales.stride_group * 4))
        return ScaleALoad::any_strides;
    if (scales.stride_column == 1 && is_tma_stride(scales.rows, scales.stride_row * 4))
        return ScaleALoad::tma_k_contiguous;
    const bool rows_contiguous = scales.rows <= 1 || scales.stride_row == 1;
    if (rows_contiguous && is_tma_stride(scales.columns, scales.stride_column * 4))
        return ScaleALoad::tma_m_contiguous;
    return ScaleALoad::any_strides;
}

}  // namespace deep_gemm::op
