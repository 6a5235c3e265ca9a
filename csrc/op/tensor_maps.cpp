#include "op/tensor_maps.h"

#include "driver/device.h"

#include <vector>

namespace deep_gemm::op {

namespace {

constexpr u64 kSwizzleBytes = 128;
constexpr u64 kStrideBytes = 16;                      // TMA's unit of addresses and strides
constexpr u32 kFirstSlotBits = 8, kMaxSlotBits = 13;  // of slots of about 200 bytes

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

u64 hash_of(const Key& key) {
    return (key.address ^ key.rows << 17 ^ key.columns << 33 ^ key.box_rows) * 0x9e3779b97f4a7c15ull;
}

// The maps of a thread: one slot for each hash value, the last one wins. A model of many layers has more
// matrices than a small table holds, so a table that has replaced a quarter as many maps as it has slots is
// doubled, up to what costs a thread 2 MB.
class Maps {
  public:
    Slot& slot_of(const Key& key) { return slots_[hash_of(key) >> (64 - bits_)]; }

    // The slot to write a new map to.
    Slot& replace(const Key& key) {
        if (slot_of(key).key.device && ++replaced_ > slots_.size() / 4 && bits_ < kMaxSlotBits) grow();
        return slot_of(key);
    }

  private:
    void grow() {
        ++bits_;
        replaced_ = 0;
        std::vector<Slot> old(size_t{1} << bits_);
        old.swap(slots_);
        for (const Slot& slot : old)
            if (slot.key.device) slot_of(slot.key) = slot;
    }

    u32 bits_ = kFirstSlotBits;
    size_t replaced_ = 0;
    std::vector<Slot> slots_{size_t{1} << kFirstSlotBits};
};

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
    thread_local Maps maps;
    const Key key{.device = &device,
                  .address = matrix.address,
                  .groups = matrix.groups,
                  .rows = matrix.rows,
                  .columns = matrix.columns,
                  .stride_group = matrix.stride_group,
                  .stride_row = matrix.stride_row,
                  .box_rows = box_rows,
                  .format = format};
    Slot& slot = maps.slot_of(key);
    if (slot.key == key) [[likely]]
        return slot.map;
    const TensorMap map = device.encode_tensor_map(describe(key));
    return (maps.replace(key) = {key, map}).map;
}

}  // namespace deep_gemm::op
