// Eight narrow weights of a lane as four pairs of bf16, exactly, in the order in which mma.sync takes them.
//
// Floats are widened by moving their bits: an exponent field that means another bias makes the value too
// small by a power of two, which one exact multiplication repairs. Integers ride on the mantissa of a larger
// number, which is then subtracted.
#pragma once

#include <deep_gemm/ptx/convert.h>
#include <deep_gemm/ptx/global.h>
#include <deep_gemm/spec/quant.h>

namespace deep_gemm::tile {

constexpr u32 kPieceElements = 8;  // of a lane: two k16 steps of mma.sync for its four lanes

constexpr u32 kBf16One = 0x3f803f80u;
constexpr u32 kBf16Nan = 0x7fc0u, kF16Nan = 0x7e00u;

constexpr u32 pair_of(u32 half) {
    return half * 0x10001u;
}

/// Whether one of four E4M3 bytes is NaN (0x7f or 0xff).
DG_DEVICE bool has_e4m3_nan(u32 word) {
    return (((word & 0x7f7f7f7fu) + 0x01010101u) & 0x80808080u) != 0;
}

/// Two E4M3 bytes, at bits 8 to 15 and 24 to 31, as bf16 that are 2^120 too small. NaN comes out as 480.
DG_DEVICE u32 widen_e4m3(u32 spread) {
    return (spread & 0x80008000u) | ((spread >> 4) & 0x07f007f0u);
}
/// The same as f16 that are 2^8 too small.
DG_DEVICE u32 widen_e4m3_f16(u32 spread) {
    return (spread & 0x80008000u) | ((spread >> 1) & 0x3f803f80u);
}

/// Puts NaN where a byte of `spread` is an E4M3 NaN.
DG_DEVICE u32 restore_e4m3_nan(u32 pair, u32 spread, u32 nan) {
    if ((spread & 0x7f00u) == 0x7f00u) pair = (pair & 0xffff0000u) | nan;
    if ((spread & 0x7f000000u) == 0x7f000000u) pair = (pair & 0xffffu) | nan << 16;
    return pair;
}

/// Four E4M3 bytes as two pairs, in order, of f16 or bf16: both hold every E4M3 number. `Native`: by the
/// conversion that sm_89 brought (to bf16 by way of fp32, for want of a shorter one); else by moving bits.
/// The results are the same.
template <bool F16, bool Native>
DG_DEVICE void decode_e4m3(u32 word, u32& low, u32& high) {
    if constexpr (Native) {
        ptx::cvt_f16x2_e4m3(word, low, high);
        if constexpr (!F16) {
            const ptx::Float2 first = ptx::cvt_f32_f16x2(low), second = ptx::cvt_f32_f16x2(high);
            low = ptx::cvt_bf16x2(first.x, first.y);
            high = ptx::cvt_bf16x2(second.x, second.y);
        }
    } else {
        constexpr u32 k2To120 = pair_of(0x7b80), k2To8 = pair_of(0x5c00);
        const u32 first = ptx::prmt(word, 0, 0x1404), second = ptx::prmt(word, 0, 0x3424);
        low =
            F16 ? ptx::mul_f16x2(widen_e4m3_f16(first), k2To8) : ptx::mul_bf16x2(widen_e4m3(first), k2To120);
        high = F16 ? ptx::mul_f16x2(widen_e4m3_f16(second), k2To8)
                   : ptx::mul_bf16x2(widen_e4m3(second), k2To120);
        if (has_e4m3_nan(word)) [[unlikely]] {
            low = restore_e4m3_nan(low, first, F16 ? kF16Nan : kBf16Nan);
            high = restore_e4m3_nan(high, second, F16 ? kF16Nan : kBf16Nan);
        }
    }
}

/// Two E4M3 bytes (bits 0 to 15) as a pair of bf16.
DG_DEVICE u32 decode_e4m3_pair(u32 bytes) {
    const ptx::Float2 pair = ptx::cvt_f32_f16x2(ptx::cvt_f16x2_e4m3x2(bytes));
    return ptx::cvt_bf16x2(pair.x, pair.y);
}

/// Four signed bytes as two pairs, in order.
DG_DEVICE void decode_int8(u32 word, u32& low, u32& high) {
    const auto pair = [word](u32 selector) {  // 128 + the low seven bits of a byte, less 128 or 256
        const u32 biased = ptx::prmt(word, 0x43434343u, selector);
        return ptx::fma_bf16x2(biased & 0xff7fff7fu, kBf16One, ptx::and_or(biased, 0x00800080u, 0xc300c300u));
    };
    low = pair(0x4140);
    high = pair(0x4342);
}

/// Pair `i` of a word of Packing::fragments times a pair of equal scales. The values are 2^126 too small
/// before the multiplication by the scale: sign and magnitude are where those of a bf16 are. They lie so in
/// the word that a rotation brings three of the pairs there; an integer multiplication moves the bits of the
/// fourth to three places at once.
DG_DEVICE u32 decode_e2m1(u32 word, u32 i, u32 scale) {
    constexpr u32 kKept = 0x81c081c0u;
    const u32 moved = i == 3 ? ptx::mul_lo(word & 0x001b001bu, 1u << 3 | 1u << 8 | 1u << 14)
                             : word >> 3 * i | word << (32 - 3 * i) % 32;
    return ptx::mul_bf16x2(moved & kKept, scale);
}

/// Eight nibbles less a zero point, 1 / 64 of that: pair i holds elements i and i + 4. A nibble n in the last
/// or the next bits of a bf16, with nothing above it, is n 2^-133 or n 2^-129: the smallest normal numbers
/// continue the subnormal ones. So pairs 1 and 3 need no shift of their own. `minus_zero` is the pair
/// -zero / 64.
DG_DEVICE void decode_int4(u32 word, u32 minus_zero, u32 (&pair)[4]) {
    constexpr u32 k2To127 = pair_of(0x7f00), k2To123 = pair_of(0x7d00);
    const u32 upper = word >> 8;
    pair[0] = ptx::fma_bf16x2(word & 0x000f000fu, k2To127, minus_zero);
    pair[1] = ptx::fma_bf16x2(word & 0x00f000f0u, k2To123, minus_zero);
    pair[2] = ptx::fma_bf16x2(upper & 0x000f000fu, k2To127, minus_zero);
    pair[3] = ptx::fma_bf16x2(upper & 0x00f000f0u, k2To123, minus_zero);
}
DG_DEVICE u32 int4_zero_of(u32 zero) {
    return ptx::mul_bf16x2(pair_of(zero), pair_of(0xff00));
}
constexpr u32 kMinusImpliedZero = pair_of(0xbe00);  // of 8, where a layout has no zero points
/// What sums of such weights are short of.
constexpr float kInt4Remainder = 64.0f;
/// The two nibbles of a byte less a zero point, 1 / 64 of that; `byte` is its number in the word, four times
/// (0x1111 byte). `scale` is kInt4Byte, which puts both where they belong.
constexpr u32 kInt4Byte = 0x7d007f00u;  // 2^127, and 2^123 for the upper nibble
DG_DEVICE u32 decode_int4_byte(u32 word, u32 byte, u32 scale, u32 minus_zero) {
    return ptx::fma_bf16x2(ptx::prmt(word, 0, byte) & 0x00f0000fu, scale, minus_zero);
}

/// Two signed bytes (bits 0 to 15), 1 / 64 of them: 128 more than a byte is eight bits without sign, which as
/// the last bits of a bf16 are that many 2^-133, like nibbles.
DG_DEVICE u32 decode_int8_pair(u32 bytes) {
    constexpr u32 k2To127 = pair_of(0x7f00), kMinusTwo = pair_of(0xc000);
    return ptx::fma_bf16x2(ptx::prmt(bytes, 0, 0x4140) ^ 0x00800080u, k2To127, kMinusTwo);
}
constexpr float kInt8Remainder = 64.0f;

// ---- Block scales as the multiplier of decode_e2m1

/// What the products of E2M1 weights are short of after decode_e2m1: the scale carries 2^126 for UE8M0, and
/// 2^118 for E4M3, whose largest number would overflow with more.
constexpr float e2m1_remainder(ScaleType type) {
    return type == ScaleType::ue8m0 ? 1.0f : 256.0f;
}

/// 2^(exponent - 127) * 2^126, at most 2^127; what is missing is ue8m0_excess().
DG_DEVICE u32 scale_of_ue8m0(u32 exponent) {
    if (exponent == 255) return pair_of(kBf16Nan);
    return pair_of((exponent + 126 < 254 ? exponent + 126 : 254) << 7);
}
/// The same of an exponent up to kLargestWholeUe8m0.
DG_DEVICE u32 whole_scale_of_ue8m0(u32 exponent) {
    return (exponent + 126) * 0x00800080u;
}
/// The other factor of a scale above 2, for which 2^126 times the scale is no bf16.
DG_DEVICE u32 ue8m0_excess(u32 exponent) {
    return pair_of((exponent - 1) << 7);
}
constexpr u32 kLargestWholeUe8m0 = 128;

/// Two E4M3 bytes (bits 0 to 15) as two pairs of scale * 2^118. `Native`: by the conversion that sm_89
/// brought.
template <bool Native>
DG_DEVICE void scales_of_e4m3(u32 bytes, u32& first, u32& second) {
    if constexpr (Native) {
        constexpr float k2To118 = 3.32306998946229e35f;
        u32 low, high;
        ptx::cvt_f16x2_e4m3(bytes, low, high);
        const ptx::Float2 scale = ptx::cvt_f32_f16x2(low);
        const float x = ptx::mul_rn(scale.x, k2To118), y = ptx::mul_rn(scale.y, k2To118);
        first = ptx::cvt_bf16x2(x, x);
        second = ptx::cvt_bf16x2(y, y);
        return;
    }
    constexpr u32 k2To119 = pair_of(0x7b00);
    const u32 spread = ptx::prmt(bytes, 0, 0x1404);
    // NaN without a branch, which would cut the code of a visit into pieces: 0x7f carries into the sign's
    // place.
    const u32 carry = ((spread & 0x7f007f00u) + 0x01000100u) & 0x80008000u;
    const u32 both = ptx::mul_bf16x2(ptx::mul_bf16x2(widen_e4m3(spread), k2To119), k2To119) |
                     (carry - (carry >> 8)) | carry >> 9;
    first = ptx::prmt(both, 0, 0x1010);
    second = ptx::prmt(both, 0, 0x3232);
}

/// (1 + m / 8) * 2^(e - 7) * 2^118 of an unsigned byte.
DG_DEVICE u32 scale_of_ue4m3(u32 byte) {
    return pair_of(((byte & 0x7f) << 4) + (238u << 7));
}

/// Byte `i` of a word in both halves.
DG_DEVICE u32 byte_pair(u32 word, u32 i) {
    return ptx::prmt(word, 0, 0x4040 | i * 0x101u);
}
/// The scales above of codes that need no more than their bits moved: UE8M0 up to kLargestWholeUe8m0, UE4M3
/// without its unused bit, and E4M3 that are neither subnormal nor NaN nor negative.
DG_DEVICE u32 plain_scale_of_ue8m0(u32 word, u32 i) {
    return (byte_pair(word, i) << 7) + pair_of(126u << 7);
}
DG_DEVICE u32 plain_scale_of_e4m3(u32 word, u32 i) {
    return (byte_pair(word, i) << 4) + pair_of(238u << 7);
}
/// Bits of the bytes of a word that are no such codes (of UE8M0 also those of kLargestWholeUe8m0): not 0 if
/// there are any. A borrow may tell of too many.
DG_DEVICE u32 special_ue8m0(u32 word) {
    return word & 0x80808080u;
}
DG_DEVICE u32 special_e4m3(u32 word) {
    return ((word + 0x01010101u) | (word - 0x08080808u) | word) & 0x80808080u;
}

}  // namespace deep_gemm::tile
