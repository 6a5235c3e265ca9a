// FP4 codes in shared memory -> wgmma operand A in registers as bf16, exactly: a code and its scale have at
// most six significant bits. Two tables, the same for all, give a code's high and its low byte by permutes;
// two more put them together, and one exact multiplication brings the scale in.
#pragma once

#include <deep_gemm/tile/fp4_smem.h>
#include <deep_gemm/ptx/bytes.h>
#include <deep_gemm/ptx/convert.h>
#include <deep_gemm/ptx/shared.h>

namespace deep_gemm::tile {

/// Both halves of the word: 2^(offset - bias) as bf16, zero for the offset of zeros.
template <Fp4Form F>
DG_DEVICE u32 mx_scale_pair(u32 offset) {
    constexpr u32 kBf16Bias = 127;
    const u32 bits = (offset + kBf16Bias - fp4_bias_of(F)) << 7;
    return offset < fp4_exponents_of(F) ? bits * 0x10001u : 0;
}
/// An E4M3 of the window as bf16, which has the same fields with other widths.
DG_DEVICE u32 nv_scale_pair(u32 stored) {
    constexpr u32 kBiases = 127 - 7;
    return (((stored + static_cast<u32>(kNvLowest)) << 4) + (kBiases << 7)) * 0x10001u;
}

struct ScalePairs {
    u32 even, odd;
};
/// The scales of half `half` of K: MXFP4 has one for both halves, NVFP4 one for each.
template <Fp4GemmSpec S, u32 half>
DG_DEVICE ScalePairs scale_pairs(ptx::SharedAddress blob, u32 thread) {
    if constexpr (S.form == Fp4Form::mx_e4m3) {
        const u32 offsets = ptx::ld_shared_u8(blob + kFp4CodeBytes + thread);
        return {mx_scale_pair<S.form>(offsets & 0xf), mx_scale_pair<S.form>(offsets >> 4)};
    } else if constexpr (S.form == Fp4Form::mx_e5m2) {
        const u32 offsets = ptx::ld_shared_u16(blob + kFp4CodeBytes + thread * 2);
        return {mx_scale_pair<S.form>(offsets & 0xff), mx_scale_pair<S.form>(offsets >> 8)};
    } else {
        const u32 first = ptx::ld_shared_u16(blob + kFp4CodeBytes + thread * 2);
        const u32 third = ptx::ld_shared_u8(blob + kNvThirdBytes + thread);
        if constexpr (half == 0) return {nv_scale_pair(first & 0x3f), nv_scale_pair(third & 0x3f)};
        const u32 fourth = (first >> 6 & 3) | (first >> 14 & 3) << 2 | (third >> 6 & 3) << 4;
        return {nv_scale_pair(first >> 8 & 0x3f), nv_scale_pair(fourth)};
    }
}

/// Two words of codes of one row -> registers 4 * step + 2 * c + odd, c = 0, 1, of the fragments of four
/// steps.
DG_DEVICE void decode_row_bf16(u32 first, u32 second, u32 scale, u32 (&fragments)[16], u32 odd) {
    constexpr u32 kMagnitudes = 0x77777777, kSigns = 0x80808080;
    // {0, 0.5, 1, 1.5, 2, 3, 4, 6} as bf16: their high bytes, and their low ones.
    constexpr u32 kHigh = 0x3f3f3f00, kHighOfMore = 0x40404040, kLow = 0xc0800000, kLowOfMore = 0xc0804000;
#pragma unroll
    for (u32 step = 0; step < 4; ++step) {
        const u32 word = step < 2 ? first : second, magnitudes = word & kMagnitudes;
        const u32 selectors = step % 2 == 0 ? magnitudes : magnitudes >> 16;
        const u32 signs = (step % 2 == 0 ? word : word << 4) & kSigns;
        const u32 high = ptx::permute_bytes_or_signs(kHigh, kHighOfMore, selectors) | signs;
        const u32 low = ptx::permute_bytes_or_signs(kLow, kLowOfMore, selectors);
        fragments[step * 4 + odd] = ptx::mul_bf16x2(ptx::permute_bytes_or_signs(low, high, 0x5140), scale);
        fragments[step * 4 + 2 + odd] =
            ptx::mul_bf16x2(ptx::permute_bytes_or_signs(low, high, 0x7362), scale);
    }
}

/// The fragments of half `half` of a blob's K: registers 4 * step to 4 * step + 3 are operand A of step
/// `step`.
template <Fp4GemmSpec S, u32 half>
DG_DEVICE void decode_half(ptx::SharedAddress blob, u32 thread, u32 (&fragments)[16]) {
    const ScalePairs scales = scale_pairs<S, half>(blob, thread);
    const ptx::SharedAddress codes = blob + thread * 16 + half * 8;
    const ptx::UInt2 even = ptx::ld_shared_v2_u32(codes), odd = ptx::ld_shared_v2_u32(codes + kFp4OddRows);
    decode_row_bf16(even.x, even.y, scales.even, fragments, 0);
    decode_row_bf16(odd.x, odd.y, scales.odd, fragments, 1);
}

}  // namespace deep_gemm::tile
