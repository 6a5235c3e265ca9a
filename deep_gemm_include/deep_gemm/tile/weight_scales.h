// Scales of the two rows of a lane in one stage of weights, and what decoding makes of them.
//
// Where a block's scale has few bits (UE8M0, E4M3) it is the multiplier of the decoded weights. Where it has
// more (fp32, fp16) the multiplier takes its power of two at most; the rest is the unit in which the sum is
// kept, and a sum is multiplied by old / new unit before the products of the next block join it.
#pragma once

#include <deep_gemm/tile/decode.h>
#include <deep_gemm/ptx/stream.h>
#include <deep_gemm/spec/weight_gemm.h>

namespace deep_gemm::tile {

/// Where a lane's two rows begin; rows beyond the last are the last.
struct WeightRows {
    const u8* scales[2];
    const u8* zeros[2];
};

template <WeightGemmSpec S>
DG_DEVICE WeightRows weight_rows_at(const WeightGemmParams& p, u32 matrix, u32 row) {
    constexpr QuantRow kRow = row_of(S.w);
    WeightRows rows;
#pragma unroll
    for (u32 i = 0; i < 2; ++i) {
        const u32 index = row + 8 * i < p.n ? row + 8 * i : p.n - 1;
        const u64 at = index / kRow.block_rows * scale_columns_of(S.w, p.k);
        rows.scales[i] = static_cast<const u8*>(p.matrix[matrix].scales) + at * bytes_of(kRow.scale);
        rows.zeros[i] = kRow.has_zero ? p.matrix[matrix].zeros + at : nullptr;
    }
    return rows;
}

/// Bytes [0, 4 Words) of an aligned vector.
template <u32 Words>
DG_DEVICE void load_vector(u32 (&word)[Words], const u8* address) {
    static_assert(Words == 1 || Words == 2 || Words == 4);
    if constexpr (Words == 4) {
        const ptx::Words4 v = ptx::ld_cached_v4(address);
        for (u32 i = 0; i < 4; ++i) word[i] = v.word[i];
    } else if constexpr (Words == 2) {
        ptx::ld_cached_v2(address, word[0], word[1]);
    } else {
        word[0] = ptx::float_bits(ptx::ld_cached_f32(address));
    }
}

template <Quant W>
struct StageScales {
    static constexpr QuantRow kRow = row_of(W);
    static constexpr u32 kCount = kRow.block_k ? weight_stage_k_of(W) / kRow.block_k : 0;
    static constexpr u32 kRows = kRow.block_rows == 1 ? 2 : 1;
    static constexpr u32 kBytes = bytes_of(kRow.scale);
    static constexpr u32 kWords = kCount ? kCount * kBytes / 4 : 1;
    static constexpr u32 kZeroWords = kRow.has_zero ? ceil_div(kCount, 4u) : 1;

    u32 word[kRows][kWords];
    u32 zero[kRows][kZeroWords];

    /// Those of stage `stage`; beyond k zeros.
    template <bool Whole>
    DG_DEVICE void load(const WeightRows& rows, u32 stage, u32 k) {
        if constexpr (kCount != 0) {
#pragma unroll
            for (u32 row = 0; row < kRows; ++row) {
                const u64 first = u64{stage} * kCount;
                if constexpr (Whole) {
                    load_vector(word[row], rows.scales[row] + first * kBytes);
                    if constexpr (kRow.has_zero) {
                        if constexpr (kCount % 4 == 0)
                            load_vector(zero[row], rows.zeros[row] + first);
                        else
                            zero[row][0] = ptx::ld_cached_u16(rows.zeros[row] + first);
                    }
                } else {
                    load_some(row, rows.scales[row] + first * kBytes, rows.zeros[row] + first, first, k);
                }
            }
        }
    }

    DG_DEVICE u32 bits(u32 row, u32 block) const {
        const u32 of = kRows == 2 ? row : 0;
        if constexpr (kBytes == 4) return word[of][block];
        if constexpr (kBytes == 2) return word[of][block / 2] >> block % 2 * 16 & 0xffff;
        return word[of][block / 4] >> block % 4 * 8 & 0xff;
    }
    /// Whether some scale is no plain one (tile/decode.h).
    DG_DEVICE bool some_special() const {
        u32 bits = 0;
#pragma unroll
        for (u32 i = 0; i < kRows * kWords; ++i) {
            const u32 codes = word[i / kWords][i % kWords];
            bits |= kRow.scale == ScaleType::ue8m0 ? special_ue8m0(codes) : special_e4m3(codes);
        }
        return bits != 0;
    }
    /// The bytes of blocks `block` (even) and `block` + 1, in bits 0 to 15.
    DG_DEVICE u32 pair_of_bytes(u32 row, u32 block) const {
        return word[row][block / 4] >> block % 4 * 8 & 0xffff;
    }
    DG_DEVICE u32 zero_point(u32 row, u32 block) const {
        return zero[row][block / 4] >> block % 4 * 8 & 0xff;
    }

  private:
    DG_DEVICE void load_some(u32 row, const u8* scale, const u8* zeros, u64 first, u32 k) {
        for (u32& w : word[row]) w = 0;
        for (u32& z : zero[row]) z = 0;
#pragma unroll
        for (u32 i = 0; i < kCount; ++i) {
            if ((first + i) * kRow.block_k >= k) continue;
            if constexpr (kBytes == 4)
                word[row][i] = ptx::float_bits(ptx::ld_cached_f32(scale + i * 4));
            else if constexpr (kBytes == 2)
                word[row][i / 2] |= ptx::ld_cached_u16(scale + i * 2) << i % 2 * 16;
            else
                word[row][i / 4] |= ptx::ld_cached_u8(scale + i) << i % 4 * 8;
            if constexpr (kRow.has_zero) zero[row][i / 4] |= ptx::ld_cached_u8(zeros + i) << i % 4 * 8;
        }
    }
};

/// What a code becomes: code * multiplier + addend, pairs of equal bf16.
struct WeightFactor {
    u32 multiplier, addend;
};

/// An fp32 scale of E4M3 weights: the unit, and a multiplier of 1. Scales outside 2^-20 to 2^20 leave a power
/// of two to the multiplier, so that no ratio of units overflows. A block whose scale is 0 leaves the unit as
/// it is, since nothing could be kept in units of 0; so does one that is not finite.
DG_DEVICE void split_scale(u32 bits, u32& multiplier, float& unit) {
    const u32 field = bits >> 23 & 0xff;
    if (field >= 127 - 20 && field <= 127 + 20) [[likely]] {
        multiplier = kBf16One;
        unit = ptx::float_of_bits(bits);
    } else if (bits << 1 == 0) {
        multiplier = 0;
    } else if (field == 255) {
        multiplier = pair_of((bits & 0x7fffffu) != 0 ? kBf16Nan : bits >> 16);
    } else {
        const u32 clamped = field < 127 - 100 ? 127 - 100 : field > 127 + 110 ? 127 + 110 : field;
        multiplier = pair_of(clamped << 7);
        unit = ptx::mul_rn(ptx::float_of_bits(bits), ptx::float_of_bits((254 - clamped) << 23));
    }
}

constexpr u32 kImpliedZero = 8;  // INT4 without zero points
/// An fp16 scale of INT4 weights less `zero_point`: all of it is the unit.
DG_DEVICE void int4_factor(u32 bits, u32 zero_point, WeightFactor& factor, float& unit) {
    factor = {kInt4Byte, zero_point == kImpliedZero ? kMinusImpliedZero : int4_zero_of(zero_point)};
    const float value = ptx::cvt_f32_f16(bits);
    if ((bits & 0x7fff) == 0)
        factor = {0, 0};
    else if ((bits & 0x7c00) == 0x7c00)
        factor = {pair_of(kBf16Nan), 0};
    else
        unit = value;
}

/// a / b within 1 ulp.
DG_DEVICE float quotient(float a, float b) {
    const float inverse = ptx::rcp_approx(b), q = ptx::mul_rn(a, inverse);
    return ptx::fma_rn(ptx::fma_rn(-q, b, a), inverse, q);
}

/// Whether W's scales are multipliers some of which need more than their bits moved. That some scale of a
/// stage does is found out once: its runs are decoded a second time then.
constexpr bool has_special_scales(Quant w) {
    return row_of(w).scale == ScaleType::ue8m0 || row_of(w).scale == ScaleType::e4m3;
}

/// The factors of the run that is decoded next.
template <Quant W>
struct WeightFactors {
    static constexpr QuantRow kRow = row_of(W);
    static constexpr u32 kSteps = steps_of_run(W);
    // Blocks of a run; a factor each where scales are multipliers.
    static constexpr u32 kBlocks =
        !changes_units(W) && kRow.block_k && kRow.block_k < 16 * kSteps ? 16 * kSteps / kRow.block_k : 1;

    // Rows of a lane whose scales may differ.
    static constexpr u32 kRows = StageScales<W>::kRows;

    WeightFactor factor[2][kBlocks];

    DG_DEVICE const WeightFactor& of(u32 row, u32 step) const {
        return factor[row][kBlocks == 1 ? 0 : step * 16 / kRow.block_k];
    }

    /// For the run of steps from `first` on. `unit` becomes the block's own. Scales that are multipliers are
    /// taken for plain ones.
    DG_DEVICE void set(const StageScales<W>& scales, u32 first, float (&unit)[2]) {
#pragma unroll
        for (u32 row = 0; row < kRows; ++row) {
#pragma unroll
            for (u32 i = 0; i < kBlocks; ++i) {
                const u32 block = block_of(first, i);
                WeightFactor& f = factor[row][i];
                f = {kBf16One, 0};
                if constexpr (kRow.element == Format::fp4_e2m1) {
                    const u32 word = scales.word[row][block / 4];
                    f.multiplier = kRow.scale == ScaleType::ue8m0 ? plain_scale_of_ue8m0(word, block % 4)
                                   : kRow.scale == ScaleType::e4m3
                                       ? plain_scale_of_e4m3(word, block % 4)
                                       : plain_scale_of_e4m3(word & 0x7f7f7f7fu, block % 4);
                } else if constexpr (kRow.element == Format::fp8_e4m3) {
                    if constexpr (kRow.block_k != 0)
                        split_scale(scales.bits(row, block), f.multiplier, unit[row]);
                } else if constexpr (kRow.element_bits == 4) {
                    u32 zero = kImpliedZero;
                    if constexpr (kRow.has_zero) zero = scales.zero_point(row, block);
                    int4_factor(scales.bits(row, block), zero, f, unit[row]);
                }
            }
        }
        if constexpr (kRows == 1) {
            factor[1][0] = factor[0][0];
            unit[1] = unit[0];
        }
    }

    /// The same of any scale of a code that is a multiplier. UE8M0 above 2 leaves a factor to add_excess().
    DG_DEVICE void set_special(const StageScales<W>& scales, u32 first) {
#pragma unroll
        for (u32 i = 0; i < 2 * kBlocks; ++i) {
            const u32 row = i / kBlocks, block = block_of(first, i % kBlocks);
            WeightFactor& f = factor[row][i % kBlocks];
            if constexpr (kRow.scale == ScaleType::ue8m0)
                f.multiplier = scale_of_ue8m0(scales.bits(row, block));
            else if (i % 2 == 0)
                scales_of_e4m3<true>(scales.pair_of_bytes(row, block), f.multiplier,
                                     factor[row][i % kBlocks + 1].multiplier);
        }
    }

    /// The other factor of UE8M0 scales above 2.
    DG_DEVICE void add_excess(const StageScales<W>& scales, u32 first, u32 (&fragments)[4 * kSteps]) const {
#pragma unroll
        for (u32 i = 0; i < kBlocks; ++i) {
            u32 excess[2];
#pragma unroll
            for (u32 row = 0; row < 2; ++row) {
                const u32 code = scales.bits(row, block_of(first, i));
                excess[row] = code > kLargestWholeUe8m0 ? ue8m0_excess(code) : kBf16One;
            }
            multiply(fragments, i, excess[0], excess[1]);
        }
    }

    /// The multiplier of E4M3 weights, which decoding leaves out because it is rare.
    DG_DEVICE void add_multiplier(u32 (&fragments)[4 * kSteps]) const {
        const u32 first = factor[0][0].multiplier, second = factor[1][0].multiplier;
        if (first != kBf16One || second != kBf16One) [[unlikely]]
            multiply(fragments, 0, first, second);
    }

  private:
    /// Block `i` of the run that begins with step `first` of a stage.
    static DG_DEVICE u32 block_of(u32 first, u32 i) {
        return kRow.block_k ? first * 16 / (kRow.block_k ? kRow.block_k : 1) + i : i;
    }
    /// Those of block `block` of the run.
    static DG_DEVICE void multiply(u32 (&fragments)[4 * kSteps], u32 block, u32 first_row, u32 second_row) {
        constexpr u32 kOfBlock = kSteps / kBlocks;
#pragma unroll
        for (u32 i = 4 * kOfBlock * block; i < 4 * kOfBlock * (block + 1); ++i)
            fragments[i] = ptx::mul_bf16x2(fragments[i], i % 2 == 0 ? first_row : second_row);
    }
};

}  // namespace deep_gemm::tile
