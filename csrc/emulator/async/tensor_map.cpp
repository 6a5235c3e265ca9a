#include "emulator/async/tensor_map.h"

#include "base/error.h"
#include "driver/tensor_map_check.h"

namespace deep_gemm::emulator {

namespace {

constexpr u64 kMagic = 0x44474d41;  // "DGMA"
constexpr u32 kNumWords = 16;

u32 checksum(const TensorMap& map) {
    u32 hash = 2166136261u;
    for (u32 word = 1; word < kNumWords; ++word) {
        for (u32 shift = 0; shift < 64; shift += 8) {
            hash = (hash ^ static_cast<u32>(map.words[word] >> shift & 0xff)) * 16777619u;
        }
    }
    return hash;
}

}  // namespace

TensorMap encode_tensor_map(const TensorMapDesc& described) {
    driver::check_tensor_map(described);
    TensorMapDesc desc = described;
    if (desc.format == Format::fp4_e2m1) {
        desc.format = Format::int8;
        desc.dims[0] /= 2, desc.box[0] /= 2;
    }
    TensorMap map{};
    map.words[1] = desc.address;
    map.words[2] = static_cast<u64>(desc.format) | u64{desc.rank} << 8 | static_cast<u64>(desc.swizzle) << 16;
    for (u32 i = 0; i < desc.rank; ++i) {
        map.words[2] |= u64{desc.box[i] - 1} << (24 + 8 * i);
        map.words[3 + i / 2] |= (desc.dims[i] - 1) << (32 * (i % 2));
    }
    for (u32 i = 0; i + 1 < desc.rank; ++i) map.words[6 + i] = desc.strides_bytes[i];
    map.words[0] = kMagic << 32 | checksum(map);
    return map;
}

TensorMapView decode_tensor_map(const TensorMap& map) {
    DG_CHECK(map.words[0] >> 32 == kMagic, emulator,
             "tensor map: first word {:#x} is not a map of this device; pass what Device::encode_tensor_map "
             "returned",
             map.words[0]);
    DG_CHECK(
        (map.words[0] & 0xffffffffu) == checksum(map), emulator,
        "tensor map: the bytes changed after encoding; pass it as a __grid_constant__ parameter, unmodified");
    TensorMapView view;
    TensorMapDesc& desc = view.desc;
    desc.address = map.words[1];
    desc.format = static_cast<Format>(map.words[2] & 0xff);
    desc.rank = static_cast<u32>(map.words[2] >> 8 & 0xff);
    desc.swizzle = static_cast<Swizzle>(map.words[2] >> 16 & 0xff);
    for (u32 i = 0; i < desc.rank; ++i) {
        desc.box[i] = static_cast<u32>(map.words[2] >> (24 + 8 * i) & 0xff) + 1;
        desc.dims[i] = (map.words[3 + i / 2] >> (32 * (i % 2)) & 0xffffffffu) + 1;
    }
    for (u32 i = 0; i + 1 < desc.rank; ++i) desc.strides_bytes[i] = map.words[6 + i];
    view.inner_box_bytes = desc.box[0] * bits_of(desc.format) / 8;
    view.num_box_rows = 1;
    for (u32 i = 1; i < desc.rank; ++i) view.num_box_rows *= desc.box[i];
    return view;
}

}  // namespace deep_gemm::emulator
