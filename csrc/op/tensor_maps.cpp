#include "op/tensor_maps.h"

#include "driver/device.h"

#include <vector>

namespace deep_gemm::op {

namespace {

constexpr u64 kSwizzleBytes = 128;
constexpr u64 kStrideBytes = 16;  // TMA's unit of addresses and strides
constexpr size_t kSlots = 256;    // of about 200 bytes, for each thread that launches

struct Key {
    Device* device = nullptr;
    u64 address = 0, groups = 0, rows = 0, columns = 0, stride_group = 0, stride_row = 0;
    u32 box_rows = 0;
    Format format = Format::none;
    friend bool operator==(const Key&, const Key&) = default;
};

struct Slot {
    Key key;
    TensorMap map;
};

size_t slot_of(const Key& key) {
    const u64 mixed =
        (key.address ^ key.rows << 17 ^ key.columns << 33 ^ key.box_rows) * 0x9e3779b97f4a7c15ull;
    return mixed >> 56;
}
static_assert(kSlots == 256, "slot_of returns eight bits");

TensorMapDesc describe(const Key& key) {
    const u64 bytes = bytes_of(key.format);
    // The distance between rows or groups of which there is one means nothing to TMA but must be legal.
    const u64 row_bytes = key.rows > 1 ? key.stride_row * bytes : align_up(key.columns * bytes, kStrideBytes);
    TensorMapDesc desc;
    desc.address = key.address;
    desc.format = key.format;
    desc.rank = 3;
    desc.dims[0] = key.columns;
    desc.dims[1] = key.rows;
    desc.dims[2] = key.groups;
    desc.strides_bytes[0] = row_bytes;
    desc.strides_bytes[1] = key.groups > 1 ? key.stride_group * bytes : row_bytes * key.rows;
    desc.box[0] = static_cast<u32>(kSwizzleBytes / bytes);
    desc.box[1] = key.box_rows;
    desc.box[2] = 1;
    desc.swizzle = Swizzle::bytes_128;
    return desc;
}

}  // namespace

const TensorMap& matrix_map(Device& device, const Operand& matrix, Format format, u32 box_rows) {
    thread_local std::vector<Slot> slots(kSlots);
    const Key key{.device = &device,
                  .address = matrix.address,
                  .groups = matrix.groups,
                  .rows = matrix.rows,
                  .columns = matrix.columns,
                  .stride_group = matrix.stride_group,
                  .stride_row = matrix.stride_row,
                  .box_rows = box_rows,
                  .format = format};
    Slot& slot = slots[slot_of(key)];
    if (!(slot.key == key)) {
        slot.map = device.encode_tensor_map(describe(key));
        slot.key = key;
    }
    return slot.map;
}

}  // namespace deep_gemm::op
