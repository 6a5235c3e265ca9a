// Which element of a matrix a register of a lane holds. All maps are per warp; a warpgroup's warp w owns rows
// 16 * w .. 16 * w + 15 of the 64.
//
//   wgmma / mma accumulator (m16 x n), value i of a lane:
//        columns   8j+0 8j+1 | 8j+2 8j+3 | 8j+4 8j+5 | 8j+6 8j+7      values 4j + {0, 1} in row g, 4j + {2,
//        3} in g + 8 row g     lane 4g     lane 4g+1   lane 4g+2   lane 4g+3      g = lane / 4
//
//   register A (16 rows x 32 bytes of k), register i: 4 bytes at row g + 8 * (i & 1), byte 16 * (i >> 1) + 4
//   * (lane % 4) register B of mma (n8 x 32 bytes of k), register i: 4 bytes at column g, byte 16 * i + 4 *
//   (lane % 4)
#pragma once

#include <deep_gemm/spec/types.h>

namespace deep_gemm::emulator {

constexpr u32 kWarpRows = 16;

// Accumulator: fp32 and int32 hold one value a register; fp16 holds values 2r and 2r + 1 in register r.
constexpr u32 fragment_row(u32 warp, u32 lane, u32 i) {
    return kWarpRows * warp + lane / 4 + 8 * (i >> 1 & 1);
}
constexpr u32 fragment_col(u32 lane, u32 i) {
    return 8 * (i / 4) + 2 * (lane % 4) + (i & 1);
}

constexpr u32 a_fragment_row(u32 warp, u32 lane, u32 reg) {
    return kWarpRows * warp + lane / 4 + 8 * (reg & 1);
}
constexpr u32 a_fragment_k_byte(u32 lane, u32 reg) {
    return 16 * (reg >> 1) + 4 * (lane % 4);
}

constexpr u32 b_fragment_col(u32 lane) {
    return lane / 4;
}
constexpr u32 b_fragment_k_byte(u32 lane, u32 reg) {
    return 16 * reg + 4 * (lane % 4);
}

}  // namespace deep_gemm::emulator
