// Stored weights -> operand A of a bf16 wgmma. A lane of a warp's 16 rows owns rows lane / 4 and lane / 4 + 8
// and, of each 16 along K, the pairs 2 q, 2 q + 1 and 8 + 2 q, 9 + 2 q (q = lane % 4): of every eight stored
// elements in a row the q-th quarter. It picks those out of a stage in shared memory (WeightStage) and
// decodes them a few steps at a time while the tensor core multiplies the ones before.
#pragma once

#include <deep_gemm/tile/decode.h>
#include <deep_gemm/tile/weight_scales.h>
#include <deep_gemm/ptx/shared.h>

namespace deep_gemm::tile {

/// A lane's share of a stage, still encoded. 8 bits: word [row][step] holds the four elements of a step
/// of 16. E2M1: word [row][c] is the q-th of 16-byte chunk
/// c, which is the lane's share of two steps. INT4: the lane's quarter of the four words of the chunk.
template <Quant W>
struct WeightStage {
    static constexpr u32 kWords = 8;
    u32 word[2][kWords];

    /// `row` is the address of the lane's first row in the tile plus lane / 4 * 16: the swizzle exchanges
    /// chunk c of row r for chunk c ^ r % 8, and the second row has the same remainder.
    DG_DEVICE void load(ptx::SharedAddress row, u32 q) {
        if constexpr (row_of(W).element_bits == 8) row += q * 2;
#pragma unroll
        for (u32 c = 0; c < kWords; ++c) {
            const ptx::SharedAddress chunk = row ^ (c << 4);
#pragma unroll
            for (u32 r = 0; r < 2; ++r) {
                if constexpr (row_of(W).packing == Packing::fragments) {
                    word[r][c] = ptx::ld_shared_u32(chunk + r * 8 * kWeightTileBytes + q * 4);
                } else if constexpr (row_of(W).element_bits == 8) {
                    const ptx::SharedAddress at = chunk + r * 8 * kWeightTileBytes;
                    word[r][c] = ptx::prmt(ptx::ld_shared_u16(at), ptx::ld_shared_u16(at + 8), 0x5410);
                } else {
                    const ptx::UInt4 v = ptx::ld_shared_v4_u32(chunk + r * 8 * kWeightTileBytes);
                    const u32 quarter = q | (q + 4) << 4;
                    word[r][c] =
                        ptx::prmt(ptx::prmt(v.x, v.y, quarter), ptx::prmt(v.z, v.w, quarter), 0x5410);
                }
            }
        }
    }
};

/// Two bytes (0 and 1, or 2 and 3) of signed integers. A byte is (128 + its low seven bits) less 128 or 256.
DG_DEVICE u32 decode_int8_pair(u32 word, u32 half) {
    const u32 biased = ptx::prmt(word, 0x43434343u, half == 0 ? 0x4140 : 0x4342);
    return ptx::fma_bf16x2(biased & 0xff7fff7fu, kBf16One, (biased & 0x00800080u) | 0xc300c300u);
}

/// The two 4-bit integers of byte `byte`; `shifted` is word >> 4.
DG_DEVICE u32 decode_int4_pair(u32 word, u32 shifted, u32 byte, const WeightFactor& factor) {
    const u32 codes = ptx::prmt(word, shifted, (byte + 4) << 8 | byte);
    return ptx::fma_bf16x2((codes & 0x000f000fu) | 0x43004300u, factor.multiplier, factor.addend);
}

/// Where a lane's quarter of eight interleaved elements is: those of half `half` of step `step` of a stage.
struct NibblePlace {
    u32 word, byte;
};
DG_DEVICE constexpr NibblePlace nibble_place(u32 step, u32 half) {
    return {step / 8 * 4 + step % 2 * 2 + half, step % 8 / 2};
}

/// One row's registers of a step: pairs of its first and of its second eight elements.
template <Quant W>
DG_DEVICE void decode_step(const WeightStage<W>& stage, u32 row, u32 step, const WeightFactor& factor,
                           u32& first, u32& second) {
    constexpr QuantRow kRow = row_of(W);
    if constexpr (kRow.element == Format::fp8_e4m3) {
        decode_e4m3<false, true>(stage.word[row][step], first, second);
    } else if constexpr (kRow.element_bits == 8) {
        first = decode_int8_pair(stage.word[row][step], 0);
        second = decode_int8_pair(stage.word[row][step], 1);
    } else if constexpr (kRow.element == Format::fp4_e2m1) {
        const u32 word = stage.word[row][step / 2];
        first = decode_e2m1(word, step % 2 * 2, factor.multiplier);
        second = decode_e2m1(word, step % 2 * 2 + 1, factor.multiplier);
    } else {
        u32* const pair[2] = {&first, &second};
#pragma unroll
        for (u32 half = 0; half < 2; ++half) {
            const NibblePlace place = nibble_place(step, half);
            const u32 word = stage.word[row][place.word];
            *pair[half] = decode_int4_pair(word, word >> 4, place.byte, factor);
        }
    }
}

/// Registers of operand A of `Steps` steps from `first` on: four of each step, rows alternating.
template <Quant W, u32 Steps>
DG_DEVICE void decode_run(const WeightStage<W>& stage, const WeightFactors<W>& factors, u32 first,
                          u32 (&fragments)[4 * Steps]) {
#pragma unroll
    for (u32 i = 0; i < Steps; ++i) {
#pragma unroll
        for (u32 row = 0; row < 2; ++row)
            decode_step<W>(stage, row, first + i, factors.of(row, first + i), fragments[4 * i + row],
                           fragments[4 * i + 2 + row]);
    }
    factors.add_rare(fragments);
}

}  // namespace deep_gemm::tile
