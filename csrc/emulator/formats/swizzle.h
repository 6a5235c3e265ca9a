// The shared-memory swizzles of TMA, wgmma and tcgen05: 16-byte chunks change places by an XOR of absolute
// shared address bits, so a tile must start at a multiple of its pattern to look the same everywhere.
//
//   bytes_128   bits 4..6 ^= bits 7..9    8 chunks within 128 bytes, pattern repeats every 1024 bytes
//   bytes_64    bits 4..5 ^= bits 7..8    4 chunks within 64 bytes, every 512 bytes
//   bytes_32    bit  4    ^= bit  7       2 chunks within 32 bytes, every 256 bytes
#pragma once

#include <deep_gemm/spec/tensor_map.h>

namespace deep_gemm::emulator {

constexpr u32 kChunkBytes = 16;

constexpr u32 swizzle_mask(Swizzle swizzle) {
    switch (swizzle) {
        case Swizzle::none: return 0;
        case Swizzle::bytes_32: return 0x10;
        case Swizzle::bytes_64: return 0x30;
        case Swizzle::bytes_128: return 0x70;
    }
    return 0;
}

constexpr u32 swizzled(u32 address, u32 mask) {
    return address ^ (address >> 3 & mask);
}

}  // namespace deep_gemm::emulator
