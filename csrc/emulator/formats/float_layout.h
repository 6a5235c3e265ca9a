// Encode and decode of any binary floating-point layout up to 32 bits, with every IEEE rounding. Exact
// integer arithmetic: no host rounding mode, no host conversion, so results are the same on every machine.
//
//   layout    exp  man  bias  largest      above it                NaN (canonical)
//   E4M3       4    3     7   448          saturates               0x7f (S.1111.111)
//   E5M2       5    2    15   57344        saturates or infinity   0x7f
//   E2M1       2    1     1   6            saturates               none: becomes +6
//   E2M3       2    3     1   7.5          saturates               none: becomes +7.5
//   E3M2       3    2     3   28           saturates               none: becomes +28
//   F16        5   10    15   65504        saturates or infinity   0x7fff
//   BF16       8    7   127   3.39e38      saturates or infinity   0x7fff
//   TF32       8   10   127   (bits 13..31 of an fp32)             0x7fffffff as fp32
#pragma once

#include <deep_gemm/spec/types.h>

#include <bit>

namespace deep_gemm::formats {

enum class Rounding : u8 { nearest_even, nearest_away, zero, down, up };  // .rn .rna .rz .rm .rp
enum class Overflow : u8 { ieee, saturate };                              // plain, .satfinite

struct FloatLayout {
    u32 exponent_bits = 0, mantissa_bits = 0;
    i32 bias = 0;
    u32 max_finite = 0;     // code of the largest finite magnitude
    u32 canonical_nan = 0;  // what a NaN becomes; formats without NaN give their largest value (PTX cvt)
    bool has_infinity = false;
    bool has_nan = false;
    constexpr u32 sign_mask() const { return 1u << (exponent_bits + mantissa_bits); }
    constexpr i32 min_exponent() const { return 1 - bias; }
};

inline constexpr FloatLayout kE4m3{4, 3, 7, 0x7e, 0x7f, false, true};
inline constexpr FloatLayout kE5m2{5, 2, 15, 0x7b, 0x7f, true, true};
inline constexpr FloatLayout kE2m1{2, 1, 1, 0x7, 0x7, false, false};
inline constexpr FloatLayout kE2m3{2, 3, 1, 0x1f, 0x1f, false, false};
inline constexpr FloatLayout kE3m2{3, 2, 3, 0x1f, 0x1f, false, false};
inline constexpr FloatLayout kF16{5, 10, 15, 0x7bff, 0x7fff, true, true};
inline constexpr FloatLayout kBf16{8, 7, 127, 0x7f7f, 0x7fff, true, true};
inline constexpr FloatLayout kTf32{8, 10, 127, 0x3fbff, 0x3ffff, true, true};
inline constexpr FloatLayout kF32{8, 23, 127, 0x7f7fffff, 0x7fffffff, true, true};

namespace detail {

// A finite, non-zero source value: significand * 2^exponent, significand < 2^53.
struct Exact {
    u64 significand = 0;
    i32 exponent = 0;
};

constexpr bool rounds_up(Rounding rounding, bool negative, bool odd, u64 rest, u64 half) {
    switch (rounding) {
        case Rounding::nearest_even: return rest > half || (rest == half && odd);
        case Rounding::nearest_away: return rest >= half;
        case Rounding::zero: return false;
        case Rounding::down: return negative && rest != 0;
        case Rounding::up: return !negative && rest != 0;
    }
    return false;
}

constexpr u32 overflowed(const FloatLayout& layout, Rounding rounding, Overflow overflow, bool negative) {
    const bool away = rounding == Rounding::nearest_even || rounding == Rounding::nearest_away ||
                      (rounding == Rounding::up && !negative) || (rounding == Rounding::down && negative);
    return overflow == Overflow::saturate || !layout.has_infinity || !away ? layout.max_finite
                                                                           : layout.max_finite + 1;
}

// The code without its sign bit.
constexpr u32 encode_magnitude(Exact value, bool negative, const FloatLayout& layout, Rounding rounding,
                               Overflow overflow) {
    const i32 width = 64 - std::countl_zero(value.significand);
    const i32 leading = value.exponent + width - 1;  // exponent of the leading one
    const i32 exponent = leading < layout.min_exponent() ? layout.min_exponent() : leading;
    const i32 shift = exponent - static_cast<i32>(layout.mantissa_bits) - value.exponent;
    u64 kept = 0, rest = 0, half = 1;
    if (shift <= 0) {
        kept = value.significand << -shift;
    } else if (shift > 62) {
        rest = 1, half = 2;  // below half of the smallest subnormal
    } else {
        kept = value.significand >> shift;
        rest = value.significand & ((u64{1} << shift) - 1);
        half = u64{1} << (shift - 1);
    }
    kept += rounds_up(rounding, negative, kept & 1, rest, half);
    // Adding (not or-ing) the fraction lets a rounding carry move into the exponent field.
    const i64 biased = exponent + layout.bias;
    const i64 code = ((biased - 1) << layout.mantissa_bits) + static_cast<i64>(kept);
    if (code > static_cast<i64>(layout.max_finite)) return overflowed(layout, rounding, overflow, negative);
    return static_cast<u32>(code);
}

}  // namespace detail

// Signs of zero are kept; NaN becomes layout.canonical_nan, without its sign.
constexpr u32 encode(double value, const FloatLayout& layout, Rounding rounding = Rounding::nearest_even,
                     Overflow overflow = Overflow::ieee) {
    const u64 bits = std::bit_cast<u64>(value);
    const bool negative = (bits >> 63) != 0;
    const u64 magnitude = bits & ~(u64{1} << 63);
    constexpr u64 infinity = u64{0x7ff} << 52;
    if (magnitude > infinity) return layout.canonical_nan;
    const u32 sign = negative ? layout.sign_mask() : 0;
    if (magnitude == 0) return sign;
    if (magnitude == infinity) {
        const bool keep = layout.has_infinity && overflow == Overflow::ieee;
        return sign | (keep ? layout.max_finite + 1 : layout.max_finite);
    }
    const i32 field = static_cast<i32>(magnitude >> 52);
    const u64 fraction = magnitude & ((u64{1} << 52) - 1);
    const detail::Exact exact =
        field != 0 ? detail::Exact{fraction | (u64{1} << 52), field - 1075} : detail::Exact{fraction, -1074};
    return sign | detail::encode_magnitude(exact, negative, layout, rounding, overflow);
}

// Exact: every supported layout is a subset of fp32.
constexpr float decode(u32 code, const FloatLayout& layout) {
    const u32 sign = (code & layout.sign_mask()) != 0 ? 0x80000000u : 0;
    const u32 magnitude = code & (layout.sign_mask() - 1);
    if (magnitude > layout.max_finite) {
        if (layout.has_infinity && magnitude == layout.max_finite + 1)
            return std::bit_cast<float>(sign | 0x7f800000u);
        return std::bit_cast<float>(sign | 0x7fc00000u);
    }
    const u32 fraction = magnitude & ((1u << layout.mantissa_bits) - 1);
    const i32 biased = static_cast<i32>(magnitude >> layout.mantissa_bits);
    if (biased != 0) {
        const u32 exponent = static_cast<u32>(biased - layout.bias + 127);
        // The smallest normal bf16 / tf32 / fp32 has biased exponent 1 there and here.
        return std::bit_cast<float>(sign | exponent << 23 | fraction << (23 - layout.mantissa_bits));
    }
    if (fraction == 0) return std::bit_cast<float>(sign);
    if (layout.bias == 127) return std::bit_cast<float>(sign | fraction << (23 - layout.mantissa_bits));
    const i32 width = 32 - std::countl_zero(fraction);
    const i32 exponent = layout.min_exponent() - static_cast<i32>(layout.mantissa_bits) + width - 1;
    const u32 normalised = (fraction << (24 - width)) & 0x7fffffu;
    return std::bit_cast<float>(sign | static_cast<u32>(exponent + 127) << 23 | normalised);
}

}  // namespace deep_gemm::formats
