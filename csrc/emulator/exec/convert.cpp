// cvt. Integer to integer, integer to and from float, float to float; the narrow formats are in
// convert_packed.cpp. Float to integer clamps to the range; NaN becomes 0, in 64 bits (or from f64) the top
// bit alone, as cvt does.
#include "emulator/exec/convert.h"

#include <cmath>
#include <limits>

namespace deep_gemm::emulator {
namespace {

using formats::Rounding;

template <typename D, typename S>
void integer_to_integer(Warp& w, const Op& op, u32 mask) {
    const void* a = slot(w, op.a);
    each_lane<D>(slot(w, op.d), mask, [=](u32 lane) { return static_cast<D>(read_lane<S>(a, lane)); });
}

template <typename D, typename S>
void integer_saturate(Warp& w, const Op& op, u32 mask) {
    const void* a = slot(w, op.a);
    each_lane<D>(slot(w, op.d), mask, [=](u32 lane) {
        const S value = read_lane<S>(a, lane);
        if (std::cmp_less(value, std::numeric_limits<D>::min())) return std::numeric_limits<D>::min();
        if (std::cmp_greater(value, std::numeric_limits<D>::max())) return std::numeric_limits<D>::max();
        return static_cast<D>(value);
    });
}

template <typename T>
T round_to_integral(T value, Rounding rounding) {
    switch (rounding) {
        case Rounding::zero: return std::trunc(value);
        case Rounding::down: return std::floor(value);
        case Rounding::up: return std::ceil(value);
        default: return std::nearbyint(value);
    }
}

// op.flags: FloatKind of the source | rounding << 8.
template <typename D>
void float_to_integer(Warp& w, const Op& op, u32 mask) {
    const FloatKind kind = static_cast<FloatKind>(op.flags & 0xff);
    const Rounding rounding = static_cast<Rounding>(op.flags >> 8 & 0xff);
    for_lanes(mask, [&](u32 lane) {
        const double value = round_to_integral(load_float(slot(w, op.a), lane, kind), rounding);
        // 2^63 and 2^64 are exact in double, max() is not: compare against the power of two.
        const double limit = std::ldexp(1.0, std::numeric_limits<D>::digits);
        constexpr bool kWide = sizeof(D) == 8;
        D result = kWide || kind == FloatKind::f64 ? static_cast<D>(u64{1} << (8 * sizeof(D) - 1)) : D{0};
        if (value == value) {
            result = value >= limit ? std::numeric_limits<D>::max()
                     : value <= static_cast<double>(std::numeric_limits<D>::min())
                         ? std::numeric_limits<D>::min()
                         : static_cast<D>(value);
        }
        write_lane<D>(slot(w, op.d), lane, result);
    });
}

// Exact for 32-bit and narrower integers; 64-bit ones take the host's round-to-nearest.
template <typename S>
void integer_to_float(Warp& w, const Op& op, u32 mask) {
    const FloatKind kind = static_cast<FloatKind>(op.flags & 0xff);
    const Rounding rounding = static_cast<Rounding>(op.flags >> 8 & 0xff);
    for_lanes(mask, [&](u32 lane) {
        const S value = read_lane<S>(slot(w, op.a), lane);
        if (sizeof(S) == 8 && kind == FloatKind::f32) {
            static_cast<float*>(slot(w, op.d))[lane] = static_cast<float>(value);
        } else {
            store_float(slot(w, op.d), lane, static_cast<double>(value), kind, rounding,
                        formats::Overflow::ieee);
        }
    });
}

template <typename S>
void integer_to_f32_nearest(Warp& w, const Op& op, u32 mask) {
    const void* a = slot(w, op.a);
    each_lane<float>(slot(w, op.d), mask,
                     [=](u32 lane) { return static_cast<float>(read_lane<S>(a, lane)); });
}

// op.flags: source kind | destination kind << 8 | rounding << 16 | bits below.
constexpr u32 kIntegral = 1 << 24, kSaturate = 1 << 25, kFlush = 1 << 26, kRelu = 1 << 27, kFinite = 1 << 28;

void float_to_float(Warp& w, const Op& op, u32 mask) {
    const FloatKind from = static_cast<FloatKind>(op.flags & 0xff),
                    to = static_cast<FloatKind>(op.flags >> 8 & 0xff);
    const Rounding rounding = static_cast<Rounding>(op.flags >> 16 & 0xff);
    const formats::Overflow overflow =
        op.flags & kFinite ? formats::Overflow::saturate : formats::Overflow::ieee;
    for_lanes(mask, [&](u32 lane) {
        double value = load_float(slot(w, op.a), lane, from);
        if ((op.flags & kFlush) != 0 && std::fabs(value) < 0x1p-126) value = std::copysign(0.0, value);
        if (op.flags & kIntegral) value = round_to_integral(value, rounding);
        if (op.flags & kSaturate) value = value > 0 ? std::fmin(value, 1.0) : 0.0;
        if ((op.flags & kRelu) != 0 && value <= 0) value = 0.0;
        store_float(slot(w, op.d), lane, value, to, op.flags & kIntegral ? Rounding::nearest_even : rounding,
                    overflow);
    });
}

void f16_to_f32(Warp& w, const Op& op, u32 mask) {
    const u32* a = static_cast<u32*>(slot(w, op.a));
    each_lane<float>(slot(w, op.d), mask,
                     [=](u32 lane) { return formats::f16_to_f32(static_cast<u16>(a[lane])); });
}

void f32_to_f16(Warp& w, const Op& op, u32 mask) {
    const float* a = static_cast<float*>(slot(w, op.a));
    each_lane<u16>(slot(w, op.d), mask, [=](u32 lane) { return formats::f32_to_f16_rn(a[lane]); });
}

void bf16_to_f32(Warp& w, const Op& op, u32 mask) {
    const u32* a = static_cast<u32*>(slot(w, op.a));
    each_lane<u32>(slot(w, op.d), mask, [=](u32 lane) { return a[lane] << 16; });
}

Rounding integral_rounding(Decoder& x) {
    return x.has("rzi")   ? Rounding::zero
           : x.has("rmi") ? Rounding::down
           : x.has("rpi") ? Rounding::up
                          : Rounding::nearest_even;
}

void decode_to_integer(Decoder& x, Type to, FloatKind from) {
    x.op.flags = static_cast<u32>(from) | static_cast<u32>(integral_rounding(x)) << 8;
    x.op.run = for_integer(to, [](auto t) -> Handler { return float_to_integer<decltype(t)>; });
}

void decode_from_integer(Decoder& x, FloatKind to, Type from) {
    const Rounding rounding = rounding_of(x);
    if (type_bytes(from) == 8 && rounding != Rounding::nearest_even)
        x.unsupported("64-bit integer with directed rounding");
    x.op.flags = static_cast<u32>(to) | static_cast<u32>(rounding) << 8;
    const bool fast = to == FloatKind::f32 && rounding == Rounding::nearest_even;
    x.op.run = for_integer(from, [&](auto t) -> Handler {
        return fast ? integer_to_f32_nearest<decltype(t)> : integer_to_float<decltype(t)>;
    });
}

void decode_between_floats(Decoder& x, FloatKind to, FloatKind from) {
    if (to == FloatKind::f32 && from == FloatKind::f16 && x.in->modifiers.size() == 2) {
        x.op.run = f16_to_f32;
    } else if (to == FloatKind::f32 && from == FloatKind::bf16 && x.in->modifiers.size() == 2) {
        x.op.run = bf16_to_f32;
    } else if (to == FloatKind::f16 && from == FloatKind::f32 && x.in->modifiers.size() == 3 && x.has("rn")) {
        x.op.run = f32_to_f16;
    } else {
        const bool integral = x.has("rni") || x.has("rzi") || x.has("rmi") || x.has("rpi");
        const Rounding rounding = integral ? integral_rounding(x) : rounding_of(x);
        x.op.flags = static_cast<u32>(from) | static_cast<u32>(to) << 8 | static_cast<u32>(rounding) << 16 |
                     (integral ? kIntegral : 0) | (x.has("sat") ? kSaturate : 0) |
                     (x.has("ftz") ? kFlush : 0) | (x.has("relu") ? kRelu : 0) |
                     (x.has("satfinite") ? kFinite : 0);
        x.op.run = float_to_float;
    }
}

}  // namespace

FloatKind float_kind(Type type) {
    switch (type) {
        case Type::f16: return FloatKind::f16;
        case Type::bf16: return FloatKind::bf16;
        case Type::f32: return FloatKind::f32;
        case Type::f64: return FloatKind::f64;
        case Type::tf32: return FloatKind::tf32;
        default: return FloatKind::none;
    }
}

formats::Rounding rounding_of(const Decoder& x) {
    return x.has("rz")    ? Rounding::zero
           : x.has("rm")  ? Rounding::down
           : x.has("rp")  ? Rounding::up
           : x.has("rna") ? Rounding::nearest_away
                          : Rounding::nearest_even;
}

void decode_convert(Decoder& x) {
    if (decode_packed_convert(x)) return;
    const Type from = x.type_from_end(0), to = x.type_from_end(1);
    if (x.num_operands() != 2) x.unsupported();
    x.op.d = x.reg(x.operand(0), type_bytes(to));
    x.op.a = x.source(x.operand(1), type_bytes(from));
    const FloatKind from_kind = float_kind(from), to_kind = float_kind(to);
    if (from_kind != FloatKind::none && to_kind != FloatKind::none)
        return decode_between_floats(x, to_kind, from_kind);
    if (from_kind != FloatKind::none) return decode_to_integer(x, to, from_kind);
    if (to_kind != FloatKind::none) return decode_from_integer(x, to_kind, from);
    const bool saturate = x.has("sat");
    // A 64-bit destination register of a narrower type is still extended to its full width.
    const Type wide_to = x.register_bytes(x.operand(0)) == 8 && type_bytes(to) < 8 ? Type::none : to;
    x.op.run = for_integer(wide_to, [&](auto d) -> Handler {
        return for_integer(from, [&](auto s) -> Handler {
            return saturate ? integer_saturate<decltype(d), decltype(s)>
                            : integer_to_integer<decltype(d), decltype(s)>;
        });
    });
}

}  // namespace deep_gemm::emulator
