// Shared by the cvt decoders: float kinds, and reading / writing one lane of a kind as a double (exact).
#pragma once

#include "emulator/exec/elementwise.h"
#include "emulator/formats/formats.h"

#include <utility>

namespace deep_gemm::emulator {

enum class FloatKind : u8 { none, f16, bf16, tf32, f32, f64 };

[[nodiscard]] FloatKind float_kind(Type type);
[[nodiscard]] formats::Rounding rounding_of(const Decoder& x);

// Conversions that have a packed or narrow type on either side. False when this is not one.
bool decode_packed_convert(Decoder& x);

inline double load_float(const void* slot, u32 lane, FloatKind kind) {
    switch (kind) {
        case FloatKind::f16: return formats::f16_to_f32(read_lane<u16>(slot, lane));
        case FloatKind::bf16: return formats::bf16_to_f32(read_lane<u16>(slot, lane));
        case FloatKind::f64: return read_lane<double>(slot, lane);
        default: return read_lane<float>(slot, lane);
    }
}

inline void store_float(void* slot, u32 lane, double value, FloatKind kind, formats::Rounding rounding,
                        formats::Overflow overflow) {
    using namespace formats;
    switch (kind) {
        case FloatKind::f16:
            return write_lane<u16>(slot, lane, static_cast<u16>(encode(value, kF16, rounding, overflow)));
        case FloatKind::bf16:
            return write_lane<u16>(slot, lane, static_cast<u16>(encode(value, kBf16, rounding, overflow)));
        case FloatKind::f64: return write_lane<double>(slot, lane, value);
        case FloatKind::tf32:
            return write_lane<float>(slot, lane, f32_to_tf32(static_cast<float>(value), rounding));
        default: return write_lane<u32>(slot, lane, encode(value, kF32, rounding, overflow));
    }
}

}  // namespace deep_gemm::emulator
