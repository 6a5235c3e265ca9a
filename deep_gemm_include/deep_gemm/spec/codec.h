// Narrow number formats as pure functions of fp32: what host packers, quantisation kernels and Python
// (through _C.encode and _C.decode) all compute. Rounding is to nearest even and saturates, as
// cvt.rn.satfinite does; the emulator models cvt with code of its own (csrc/emulator/formats), and tests hold
// the two together.
//
//   format   sign  exponent  mantissa  bias  largest  NaN
//   E2M1      1       2         1       1      6      none: a NaN becomes +6
//   E4M3      1       4         3       7      448    0x7f, 0xff
//   E5M2      1       5         2       15     57344  0x7d to 0x7f and negative; infinity is 0x7c
//   UE8M0     0       8         0       127    2^127  0xff; code 0 is 2^-127
//   UE4M3     0       4         3       7      480    none, and no subnormals: code 0 is 2^-7
#pragma once

#include <deep_gemm/spec/format.h>

namespace deep_gemm::codec {

constexpr u32 bits_of_float(float value) {
    return __builtin_bit_cast(u32, value);
}
constexpr float float_of_bits(u32 bits) {
    return __builtin_bit_cast(float, bits);
}

constexpr u32 kSignBit = 0x80000000u, kInfinityBits = 0x7f800000u, kNanBits = 0x7fc00000u;
constexpr u32 kMantissaBits = 23, kMantissaMask = 0x7fffffu, kHiddenBit = 0x800000u;
constexpr u32 kBias = 127;  // of fp32 and of UE8M0

// A signed format of at most 8 bits whose values are all normal fp32 numbers or zero.
struct Minifloat {
    u32 exponent_bits, mantissa_bits, bias;
    u32 max_finite;  // code
    u32 nan;         // what a NaN becomes
};
constexpr Minifloat kE2m1{2, 1, 1, 0x7, 0x7}, kE4m3{4, 3, 7, 0x7e, 0x7f}, kE5m2{5, 2, 15, 0x7b, 0x7f};

constexpr float kE2m1Max = 6.0f, kE4m3Max = 448.0f;

// value >> shift, to nearest even. shift is 1 to 31.
constexpr u32 shift_right_rne(u32 value, u32 shift) {
    return (value + (1u << (shift - 1)) - 1 + (value >> shift & 1)) >> shift;
}

constexpr u32 encode(const Minifloat& format, float value) {
    const u32 bits = bits_of_float(value), magnitude = bits & ~kSignBit;
    if (magnitude > kInfinityBits) return format.nan;
    const u32 sign = bits >> 31 << (format.exponent_bits + format.mantissa_bits);
    const u32 exponent = magnitude >> kMantissaBits, lowest = kBias + 1 - format.bias;
    const u32 drop = kMantissaBits - format.mantissa_bits;
    u32 code;
    if (exponent >= lowest) {
        // Adding, not or-ing, lets a carry of the rounding move into the exponent.
        code = shift_right_rne(magnitude, drop) - ((lowest - 1) << format.mantissa_bits);
    } else {
        const u32 shift = drop + lowest - exponent;  // more than 24: below half of the smallest subnormal
        code = shift > 24 ? 0 : shift_right_rne((magnitude & kMantissaMask) | kHiddenBit, shift);
    }
    return sign | (code < format.max_finite ? code : format.max_finite);
}

// Exact. Codes beyond max_finite are infinity where they are max_finite + 1 of E5M2, else NaN.
constexpr float decode(const Minifloat& format, u32 code) {
    const u32 sign_bit = 1u << (format.exponent_bits + format.mantissa_bits);
    const u32 sign = (code & sign_bit) != 0 ? kSignBit : 0, magnitude = code & (sign_bit - 1);
    if (magnitude > format.max_finite) {
        const bool infinity = format.mantissa_bits == 2 && magnitude == format.max_finite + 1;
        return float_of_bits(sign | (infinity ? kInfinityBits : kNanBits));
    }
    const u32 lowest = kBias + 1 - format.bias, drop = kMantissaBits - format.mantissa_bits;
    if (magnitude >> format.mantissa_bits != 0)
        return float_of_bits(sign | ((magnitude << drop) + ((lowest - 1) << kMantissaBits)));
    // A subnormal: an integer times the smallest one.
    const float unit = float_of_bits((lowest - format.mantissa_bits) << kMantissaBits);
    return float_of_bits(sign | bits_of_float(static_cast<float>(magnitude) * unit));
}

// encode(kE2m1, value) without shifts: seven comparisons. A tie goes to the even code.
constexpr u32 f32_to_e2m1(float value) {
    const u32 bits = bits_of_float(value);
    const float a = float_of_bits(bits & ~kSignBit);
    if (a != a) return kE2m1.nan;
    const u32 code = (a > 0.25f ? 1u : 0u) + (a >= 0.75f ? 1u : 0u) + (a > 1.25f ? 1u : 0u) +
                     (a >= 1.75f ? 1u : 0u) + (a > 2.5f ? 1u : 0u) + (a >= 3.5f ? 1u : 0u) +
                     (a > 5.0f ? 1u : 0u);
    return code | bits >> 31 << 3;
}
constexpr u32 f32_to_e4m3(float value) {
    return encode(kE4m3, value);
}
constexpr u32 f32_to_e5m2(float value) {
    return encode(kE5m2, value);
}
constexpr float e2m1_to_f32(u32 code) {
    return decode(kE2m1, code & 15);
}
constexpr float e4m3_to_f32(u32 code) {
    return decode(kE4m3, code);
}
constexpr float e5m2_to_f32(u32 code) {
    return decode(kE5m2, code);
}

constexpr u32 kUe8m0Nan = 255;

// The exponent of the power of two at or above |value|; 0 for zero and what is below 2^-127.
constexpr u32 f32_to_ue8m0_up(float value) {
    const u32 magnitude = bits_of_float(value) & ~kSignBit;
    if (magnitude > kInfinityBits) return kUe8m0Nan;
    const u32 exponent = magnitude >> kMantissaBits, fraction = magnitude & kMantissaMask;
    // Code 0 is 2^-127, in the middle of the fp32 subnormals.
    const u32 code = exponent + (fraction > (exponent == 0 ? kHiddenBit / 2 : 0) ? 1 : 0);
    return code < kUe8m0Nan ? code : kUe8m0Nan - 1;
}
// The nearest exponent: the logarithm of |value| to base 2, rounded; there are no ties.
constexpr u32 f32_to_ue8m0_nearest(float value) {
    const u32 magnitude = bits_of_float(value) & ~kSignBit;
    if (magnitude > kInfinityBits) return kUe8m0Nan;
    const u32 exponent = magnitude >> kMantissaBits, fraction = magnitude & kMantissaMask;
    constexpr u32 kSqrt2 = 0x3504f3;     // mantissa of the last fp32 below sqrt(2)
    constexpr u32 kSqrtHalf = 0x5a8279;  // the last subnormal below 2^-126.5
    const u32 code = exponent + (fraction > (exponent == 0 ? kSqrtHalf : kSqrt2) ? 1 : 0);
    return code < kUe8m0Nan ? code : kUe8m0Nan - 1;
}
// The power of two at or above |ratio|, of a block of E2M1 elements whose largest is six times that; but 2^125 for all
// that is finite: with twice as much, elements would be beyond fp32. The largest elements saturate, as they do with the
// exponent of OCP's MX, which goes no further. An infinity keeps the scale that tells of one.
constexpr u32 f32_to_e2m1_scale_up(float ratio) {
    constexpr u32 kLargest = 252;
    const u32 code = f32_to_ue8m0_up(ratio);
    return code == kLargest + 1 ? kLargest : code;
}
constexpr float ue8m0_to_f32(u32 code) {
    if (code == kUe8m0Nan) return float_of_bits(kNanBits);
    return float_of_bits(code == 0 ? kHiddenBit / 2 : code << kMantissaBits);
}

constexpr u32 kUe4m3Mantissa = 3, kUe4m3Max = 0x7f, kUe4m3Bias = 7;

// The nearest of |value|, a tie to the even code; what is below the smallest becomes it, a NaN the largest.
constexpr u32 f32_to_ue4m3(float value) {
    constexpr u32 kLowest = (kBias - kUe4m3Bias)
                            << kUe4m3Mantissa;  // code 0, counted in eighths of fp32's exponent
    const u32 magnitude = bits_of_float(value) & ~kSignBit;
    const u32 rounded = shift_right_rne(magnitude, kMantissaBits - kUe4m3Mantissa);
    const u32 code = rounded > kLowest ? rounded - kLowest : 0;
    return code < kUe4m3Max ? code : kUe4m3Max;
}
constexpr float ue4m3_to_f32(u32 code) {
    return float_of_bits(((code & kUe4m3Max) + ((kBias - kUe4m3Bias) << kUe4m3Mantissa))
                         << (kMantissaBits - kUe4m3Mantissa));
}

static_assert(ue4m3_to_f32(0) == 0x1p-7f && ue4m3_to_f32(0x7f) == 480 && f32_to_ue4m3(1.0625f) == 0x38 &&
              f32_to_ue4m3(0) == 0);
static_assert(f32_to_e2m1(0.25f) == 0 && f32_to_e2m1(0.75f) == 2 && f32_to_e2m1(1.25f) == 2 &&
              f32_to_e2m1(1.75f) == 4 && f32_to_e2m1(2.5f) == 4 && f32_to_e2m1(3.5f) == 6 &&
              f32_to_e2m1(5.0f) == 6 && f32_to_e2m1(-0.0f) == 8 && f32_to_e2m1(1e9f) == 7);

}  // namespace deep_gemm::codec
