// Stored weights -> operand A of a bf16 wgmma. A lane of a warp's 16 rows owns rows lane / 4 and lane / 4 + 8
// and, of each 16 along K, the pairs 2 q, 2 q + 1 and 8 + 2 q, 9 + 2 q (q = lane % 4): of every eight stored
// elements in a row the q-th quarter. It picks those of a run of steps out of a stage in shared memory
// (WeightRun) and decodes them while the tensor core multiplies the run before. Every instruction here is paid
// for twice: in time of its scheduler and, beside a busy tensor core, in power.
#pragma once

#include <deep_gemm/tile/decode.h>
#include <deep_gemm/tile/weight_scales.h>
#include <deep_gemm/ptx/shared.h>

namespace deep_gemm::tile {

/// A lane's share of a run, still encoded. Word [row][2 step + half] holds the pair of a half of a step: 8 bits
/// as its low bytes, INT4 as byte q. E2M1: word [row][step / 2] is the lane's share of two steps.
template <Quant W>
struct WeightRun {
    static constexpr QuantRow kRow = row_of(W);
    static constexpr bool kFragments = kRow.packing == Packing::fragments;
    static constexpr u32 kSteps = steps_of_run(W), kWords = kFragments ? kSteps / 2 : 2 * kSteps;
    u32 word[2][kWords];

    /// `row` is the address of the lane's first row in the stage plus lane / 4 * 16: the swizzle exchanges
    /// chunk c of row r for chunk c ^ r % 8, and the second row has the same remainder.
    DG_DEVICE void load(ptx::SharedAddress row, u32 q, u32 run) {
        constexpr u32 kSecondRow = 8 * kWeightTileBytes;
        const auto chunk = [row](u32 offset, u32 c) { return (row + offset) ^ (c << 4); };
#pragma unroll
        for (u32 r = 0; r < 2; ++r) {
            if constexpr (kFragments) {
#pragma unroll
                for (u32 i = 0; i < kWords; ++i)
                    word[r][i] = ptx::ld_shared_u32(chunk(q * 4, run * kWords + i) + r * kSecondRow);
            } else if constexpr (kRow.element_bits == 8) {
#pragma unroll
                for (u32 i = 0; i < kWords; ++i)
                    word[r][i] =
                        ptx::ld_shared_u16(chunk(q * 2, run * kSteps + i / 2) + r * kSecondRow + i % 2 * 8);
            } else {
                // Chunk c of the four of 128 elements has the c-th eight of each 32.
                const u32 group = run * kSteps / 2 % 4, first = run * kSteps / 8 * 4;
#pragma unroll
                for (u32 c = 0; c < 4; ++c) {
                    const ptx::SharedAddress at = chunk(0, first + c) + r * kSecondRow + group * 4;
                    if constexpr (kSteps == 4) {
                        const ptx::UInt2 v = ptx::ld_shared_v2_u32(at);
                        word[r][c] = v.x;
                        word[r][4 + c] = v.y;
                    } else {
                        word[r][c] = ptx::ld_shared_u32(at);
                    }
                }
            }
        }
    }
};

/// One row's registers of a step: pairs of its first and of its second eight elements. `quarter` chooses a
/// lane's byte of a word (prmt).
template <Quant W>
DG_DEVICE void decode_step(const WeightRun<W>& run, u32 row, u32 step, const WeightFactor& factor,
                           u32 quarter, u32 (&pair)[2]) {
    constexpr QuantRow kRow = row_of(W);
#pragma unroll
    for (u32 half = 0; half < 2; ++half) {
        if constexpr (kRow.element == Format::fp8_e4m3)
            pair[half] = decode_e4m3_pair(run.word[row][2 * step + half]);
        else if constexpr (kRow.element_bits == 8)
            pair[half] = decode_int8_pair(run.word[row][2 * step + half]);
        else if constexpr (kRow.element == Format::fp4_e2m1)
            pair[half] = decode_e2m1(run.word[row][step / 2], step % 2 * 2 + half, factor.multiplier);
        else
            pair[half] =
                decode_int4_byte(run.word[row][2 * step + half], quarter, factor.multiplier, factor.addend);
    }
}

/// Registers of operand A of a run: four of each step, rows alternating.
template <Quant W>
DG_DEVICE void decode_run(const WeightRun<W>& run, const WeightFactors<W>& factors, u32 q,
                          u32 (&fragments)[4 * WeightRun<W>::kSteps]) {
#pragma unroll
    for (u32 step = 0; step < WeightRun<W>::kSteps; ++step) {
#pragma unroll
        for (u32 row = 0; row < 2; ++row) {
            u32 pair[2];
            decode_step<W>(run, row, step, factors.of(row, step), q * 0x1111u, pair);
            fragments[4 * step + row] = pair[0];
            fragments[4 * step + 2 + row] = pair[1];
        }
    }
}

}  // namespace deep_gemm::tile
