// One function per conversion that kernels and quantisers use, with the rules of the PTX cvt instruction:
//  - to E4M3 / E5M2 / E2M1 / E2M3 / E3M2: round to nearest even, saturate to the largest finite value
//    (.rn.satfinite); NaN -> 0x7f, in the formats without NaN -> +largest
//  - to F16 / BF16: a NaN becomes 0x7fff; overflow gives infinity (.rn) or the largest value (.rz, satfinite)
//  - to UE8M0: of the magnitude, .rz (floor of the exponent) or .rp (ceiling); at most 254; NaN -> 0xff
//  - relu(): negative and -0 become +0, NaN stays NaN
// Decoding is exact. The 8- and 4-bit decoders are table look-ups.
#pragma once

#include "emulator/formats/float_layout.h"

#include <array>

namespace deep_gemm::formats {

namespace detail {

template <u32 size>
constexpr std::array<float, size> decode_table(const FloatLayout& layout) {
    std::array<float, size> table{};
    for (u32 code = 0; code < size; ++code) table[code] = decode(code, layout);
    return table;
}

}  // namespace detail

inline constexpr std::array<float, 256> kE4m3Values = detail::decode_table<256>(kE4m3);
inline constexpr std::array<float, 256> kE5m2Values = detail::decode_table<256>(kE5m2);
inline constexpr std::array<float, 64> kE2m3Values = detail::decode_table<64>(kE2m3);
inline constexpr std::array<float, 64> kE3m2Values = detail::decode_table<64>(kE3m2);
inline constexpr std::array<float, 16> kE2m1Values = detail::decode_table<16>(kE2m1);

constexpr float e4m3_to_f32(u8 code) {
    return kE4m3Values[code];
}
constexpr float e5m2_to_f32(u8 code) {
    return kE5m2Values[code];
}
constexpr float e2m1_to_f32(u8 code) {
    return kE2m1Values[code & 15];
}
constexpr float e2m3_to_f32(u8 code) {
    return kE2m3Values[code & 63];
}
constexpr float e3m2_to_f32(u8 code) {
    return kE3m2Values[code & 63];
}
constexpr float bf16_to_f32(u16 code) {
    return std::bit_cast<float>(static_cast<u32>(code) << 16);
}
constexpr float f16_to_f32(u16 code) {
    const u32 magnitude = code & 0x7fffu, sign = static_cast<u32>(code & 0x8000u) << 16;
    const bool normal = magnitude - 0x400u < 0x7c00u - 0x400u;  // another bias, and zeros below
    if (normal) return std::bit_cast<float>(sign | ((magnitude << 13) + ((127u - 15u) << 23)));
    return decode(code, kF16);
}

// 2^(code - 127); code 0 is 2^-127, a subnormal fp32.
constexpr float ue8m0_to_f32(u8 code) {
    if (code == 0xff) return std::bit_cast<float>(0x7fc00000u);
    return std::bit_cast<float>(code == 0 ? 0x00400000u : static_cast<u32>(code) << 23);
}

namespace detail {

constexpr u8 encode_narrow(float value, const FloatLayout& layout) {
    return static_cast<u8>(encode(value, layout, Rounding::nearest_even, Overflow::saturate));
}

}  // namespace detail

constexpr u8 f32_to_e4m3(float value) {
    return detail::encode_narrow(value, kE4m3);
}
constexpr u8 f32_to_e5m2(float value) {
    return detail::encode_narrow(value, kE5m2);
}
constexpr u8 f32_to_e2m1(float value) {
    return detail::encode_narrow(value, kE2m1);
}
constexpr u8 f32_to_e2m3(float value) {
    return detail::encode_narrow(value, kE2m3);
}
constexpr u8 f32_to_e3m2(float value) {
    return detail::encode_narrow(value, kE3m2);
}

constexpr u16 f32_to_f16(float value, Rounding rounding, Overflow overflow = Overflow::ieee) {
    return static_cast<u16>(encode(value, kF16, rounding, overflow));
}
constexpr u16 f32_to_f16_rn(float value) {
    const u32 bits = std::bit_cast<u32>(value), magnitude = bits & 0x7fffffffu;
    constexpr u32 first_normal = (127u - 14u) << 23, above_all = (127u + 16u) << 23;
    // A carry of the rounding moves into the exponent, and from the largest exponent into infinity's code.
    const u32 rebased = magnitude - ((127u - 15u) << 23);
    const u32 rounded = (rebased + 0xfffu + (rebased >> 13 & 1)) >> 13;
    if (magnitude - first_normal < above_all - first_normal)
        return static_cast<u16>((bits >> 16 & 0x8000u) | rounded);
    return f32_to_f16(value, Rounding::nearest_even);
}
constexpr u16 f32_to_f16_rz(float value) {
    return f32_to_f16(value, Rounding::zero);
}

constexpr u16 f32_to_bf16(float value, Rounding rounding, Overflow overflow = Overflow::ieee) {
    return static_cast<u16>(encode(value, kBf16, rounding, overflow));
}
// The conversion of nearly every epilogue: the same result as f32_to_bf16(value, nearest_even), branch-free.
constexpr u16 f32_to_bf16_rn(float value) {
    const u32 bits = std::bit_cast<u32>(value);
    const u32 rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return static_cast<u16>((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fff : rounded);
}
constexpr u16 f32_to_bf16_rz(float value) {
    return f32_to_bf16(value, Rounding::zero);
}

// The result is an fp32 whose low 13 bits are zero (a NaN is 0x7fffffff).
constexpr float f32_to_tf32(float value, Rounding rounding) {
    const u32 code = encode(value, kTf32, rounding);
    return std::bit_cast<float>(code == kTf32.canonical_nan ? 0x7fffffffu : code << 13);
}

constexpr u8 f32_to_ue8m0(float value, Rounding rounding) {
    const u32 magnitude = std::bit_cast<u32>(value) & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return 0xff;
    const u32 exponent = magnitude >> 23;
    const u32 fraction = magnitude & 0x7fffffu;
    // Code 0 is 2^-127 = 0x00400000: only a larger subnormal rounds up past it.
    const bool above = exponent == 0 ? fraction > 0x400000u : fraction != 0;
    const u32 code = exponent + (rounding == Rounding::up && above ? 1 : 0);
    return static_cast<u8>(code > 254 ? 254 : code);
}

// max(value, +0): the .relu modifier, applied before encoding. A NaN passes through.
constexpr float relu(float value) {
    return value > 0.0f || value != value ? value : 0.0f;
}

}  // namespace deep_gemm::formats
