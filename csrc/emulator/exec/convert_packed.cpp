// cvt with packed or narrow types. In every two-element form operand a goes to the upper half, b to the
// lower.
#include "emulator/exec/convert.h"

namespace deep_gemm::emulator {
namespace {

using namespace formats;

constexpr u32 kRelu = 1, kSatFinite = 2, kZero = 4, kUp = 8;

u32 narrow(float value, Type to, u32 flags) {
    const Rounding rounding = flags & kZero ? Rounding::zero
                              : flags & kUp ? Rounding::up
                                            : Rounding::nearest_even;
    const Overflow overflow = flags & kSatFinite ? Overflow::saturate : Overflow::ieee;
    if (flags & kRelu) value = relu(value);
    switch (to) {
        case Type::f16x2: return f32_to_f16(value, rounding, overflow);
        case Type::bf16x2: return f32_to_bf16(value, rounding, overflow);
        case Type::e4m3x2: return f32_to_e4m3(value);
        case Type::e5m2x2: return f32_to_e5m2(value);
        case Type::e2m1x2: return f32_to_e2m1(value);
        case Type::e2m3x2: return f32_to_e2m3(value);
        case Type::e3m2x2: return f32_to_e3m2(value);
        default: return f32_to_ue8m0(value, rounding);
    }
}

float widen(u32 pair, u32 half, Type from) {
    switch (from) {
        case Type::f16x2: return f16_to_f32(static_cast<u16>(pair >> (16 * half)));
        case Type::bf16x2: return bf16_to_f32(static_cast<u16>(pair >> (16 * half)));
        case Type::e4m3x2: return e4m3_to_f32(static_cast<u8>(pair >> (8 * half)));
        case Type::e5m2x2: return e5m2_to_f32(static_cast<u8>(pair >> (8 * half)));
        case Type::e2m1x2: return e2m1_to_f32(static_cast<u8>(pair >> (4 * half) & 15));
        case Type::e2m3x2: return e2m3_to_f32(static_cast<u8>(pair >> (8 * half)));
        case Type::e3m2x2: return e3m2_to_f32(static_cast<u8>(pair >> (8 * half)));
        default: return ue8m0_to_f32(static_cast<u8>(pair >> (8 * half)));
    }
}

u32 half_bits(Type type) {
    return type == Type::f16x2 || type == Type::bf16x2 ? 16 : type == Type::e2m1x2 ? 4 : 8;
}

bool is_pair(Type type) {
    switch (type) {
        case Type::f16x2:
        case Type::bf16x2:
        case Type::e4m3x2:
        case Type::e5m2x2:
        case Type::e2m1x2:
        case Type::e2m3x2:
        case Type::e3m2x2:
        case Type::ue8m0x2: return true;
        default: return false;
    }
}

// The epilogue of nearly every kernel.
void f32_pair_to_bf16x2(Warp& w, const Op& op, u32 mask) {
    const float *a = static_cast<float*>(slot(w, op.a)), *b = static_cast<float*>(slot(w, op.b));
    each_lane<u32>(slot(w, op.d), mask, [=](u32 lane) {
        return static_cast<u32>(f32_to_bf16_rn(a[lane])) << 16 | f32_to_bf16_rn(b[lane]);
    });
}

void f32_pair_to_f16x2(Warp& w, const Op& op, u32 mask) {
    const float *a = static_cast<float*>(slot(w, op.a)), *b = static_cast<float*>(slot(w, op.b));
    each_lane<u32>(slot(w, op.d), mask, [=](u32 lane) {
        return static_cast<u32>(f32_to_f16_rn(a[lane])) << 16 | f32_to_f16_rn(b[lane]);
    });
}

// op.immediate: destination type; op.target: source type of the pair form.
void f32_pair_to_narrow(Warp& w, const Op& op, u32 mask) {
    const float *a = static_cast<float*>(slot(w, op.a)), *b = static_cast<float*>(slot(w, op.b));
    const Type to = static_cast<Type>(op.immediate);
    for_lanes(mask, [&](u32 lane) {
        static_cast<u32*>(slot(w, op.d))[lane] =
            narrow(a[lane], to, op.flags) << half_bits(to) | narrow(b[lane], to, op.flags);
    });
}

void pair_to_pair(Warp& w, const Op& op, u32 mask) {
    const u32* a = static_cast<u32*>(slot(w, op.a));
    const Type to = static_cast<Type>(op.immediate), from = static_cast<Type>(op.target);
    for_lanes(mask, [&](u32 lane) {
        static_cast<u32*>(slot(w, op.d))[lane] = narrow(widen(a[lane], 1, from), to, op.flags)
                                                     << half_bits(to) |
                                                 narrow(widen(a[lane], 0, from), to, op.flags);
    });
}

// Weights of 4 and 8 bits: op.extra is what each of their codes becomes. op.immediate: bits of a code.
using CodeTable = std::array<u16, 256>;

void code_pair_to_16_bits(Warp& w, const Op& op, u32 mask) {
    const CodeTable& table = *static_cast<const CodeTable*>(op.extra);
    const u32* a = static_cast<u32*>(slot(w, op.a));
    const u32 bits = static_cast<u32>(op.immediate), keep = (1u << bits) - 1;
    each_lane<u32>(slot(w, op.d), mask, [&](u32 lane) {
        return static_cast<u32>(table[a[lane] >> bits & keep]) << 16 | table[a[lane] & keep];
    });
}

void make_code_table(Decoder& x, Type to, Type from) {
    CodeTable table{};
    for (u32 code = 0; code < 1u << half_bits(from); ++code)
        table[code] = static_cast<u16>(narrow(widen(code, 0, from), to, x.op.flags));
    x.make_extra(table);
    x.op.immediate = half_bits(from);
    x.op.run = code_pair_to_16_bits;
}

}  // namespace

bool decode_packed_convert(Decoder& x) {
    const Type from = x.type_from_end(0), to = x.type_from_end(1);
    if (!is_pair(to)) {
        if (is_pair(from)) x.unsupported();
        return false;
    }
    x.op.d = x.reg(x.operand(0), 4);
    x.op.immediate = static_cast<i64>(to);
    x.op.flags = (x.has("relu") ? kRelu : 0) | (x.has("satfinite") ? kSatFinite : 0) |
                 (x.has("rz") ? kZero : 0) | (x.has("rp") ? kUp : 0);
    x.op.a = x.source(x.operand(1), 4);
    if (from == Type::f32) {
        x.op.b = x.source(x.operand(2), 4);
        x.op.run = x.op.flags != 0      ? f32_pair_to_narrow
                   : to == Type::bf16x2 ? f32_pair_to_bf16x2
                   : to == Type::f16x2  ? f32_pair_to_f16x2
                                        : f32_pair_to_narrow;
    } else if (is_pair(from) && half_bits(from) <= 8 && half_bits(to) == 16) {
        make_code_table(x, to, from);
    } else if (is_pair(from)) {
        x.op.target = static_cast<u32>(from);
        x.op.run = pair_to_pair;
    } else {
        x.unsupported();
    }
    return true;
}

}  // namespace deep_gemm::emulator
