// Codes and numbers of W in host memory: the order of 4-bit codes in a row (Packing of spec/quant.h), and
// fp16.
#pragma once

#include <deep_gemm/spec/codec.h>
#include <deep_gemm/spec/quant.h>

#include <span>

namespace deep_gemm::op {

inline constexpr codec::Minifloat kF16{5, 10, 15, 0x7c00, 0x7e00};  // what is too large becomes infinity
inline constexpr float kF16Max = 65504;

constexpr u16 f32_to_f16(float value) {
    return static_cast<u16>(codec::encode(kF16, value));
}
constexpr float f16_to_f32(u16 code) {
    constexpr u32 kInfinity = 0x7c00, kSign = 0x8000;
    const u32 magnitude = code & ~kSign, sign = (code & kSign) << 16;
    if (magnitude < kInfinity) return codec::decode(kF16, code);
    return codec::float_of_bits(sign | (magnitude == kInfinity ? codec::kInfinityBits : codec::kNanBits));
}
constexpr u16 f32_to_bf16(float value) {
    const u32 bits = codec::bits_of_float(value), magnitude = bits & ~codec::kSignBit;
    if (magnitude > codec::kInfinityBits) return static_cast<u16>(bits >> 16 | 0x40);
    return static_cast<u16>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
constexpr float bf16_to_f32(u16 code) {
    return codec::float_of_bits(u32{code} << 16);
}
static_assert(f32_to_f16(65520.0f) == 0x7c00 && f32_to_f16(65519.0f) == 0x7bff &&
              f32_to_f16(-0.0f) == 0x8000 && f16_to_f32(0x0001) == 0x1p-24f && f16_to_f32(0x3c00) == 1 &&
              f32_to_bf16(1.00390625f) == 0x3f80);

// A row of codes, one in a byte, to the bytes of its row (zeros before) in the order of `packing`, and back.
void pack_row(Packing packing, std::span<const u8> codes, u8* row);
void unpack_row(Packing packing, const u8* row, std::span<u8> codes);

}  // namespace deep_gemm::op
