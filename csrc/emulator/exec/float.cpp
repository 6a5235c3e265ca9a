// f32 and f64 arithmetic: IEEE, round to nearest even, one rounding per instruction (the library is compiled
// with -ffp-contract=off). A NaN result is the GPU's canonical NaN. .ftz flushes subnormal inputs and
// results, .sat clamps to [0, 1] and turns NaN into 0.
#include "emulator/exec/elementwise.h"
#include "emulator/exec/rounding.h"

#include <cmath>

namespace deep_gemm::emulator {
namespace {

template <typename T>
T canonical(T value) {
    if constexpr (sizeof(T) == 4) {
        return value != value ? std::bit_cast<float>(0x7fffffffu) : value;
    } else {
        return value != value ? std::bit_cast<double>(u64{0x7fffffffffffffff}) : value;
    }
}

template <typename T>
T flush(T value) {
    if constexpr (sizeof(T) == 4) {
        const u32 bits = std::bit_cast<u32>(value);
        return (bits & 0x7f800000u) == 0 ? std::bit_cast<float>(bits & 0x80000000u) : value;
    }
    return value;
}

template <typename T>
T saturate(T value) {
    return value > T(0) ? (value < T(1) ? value : T(1)) : T(0);
}

// Modes of a handler, known when decoding.
constexpr u32 kPlain = 0, kFtz = 1, kSat = 2;

template <u32 mode, typename T>
T input(T value) {
    return mode & kFtz ? flush(value) : value;
}
template <u32 mode, typename T>
T output(T value) {
    value = mode & kFtz ? flush(value) : value;
    return mode & kSat ? saturate(value) : canonical(value);
}

struct Add {
    template <typename T>
    static T apply(T a, T b) {
        return a + b;
    }
};
struct Sub {
    template <typename T>
    static T apply(T a, T b) {
        return a - b;
    }
};
struct Mul {
    template <typename T>
    static T apply(T a, T b) {
        return a * b;
    }
};
struct Div {
    template <typename T>
    static T apply(T a, T b) {
        return a / b;
    }
};
// Bits of equal values: either operand's, but for zeros -0 < +0 decides. Branch-free, so that it vectorises.
template <bool maximum, typename T>
T equal_bits(T a, T b) {
    using Bits = std::conditional_t<sizeof(T) == 4, u32, u64>;
    const Bits x = std::bit_cast<Bits>(a), y = std::bit_cast<Bits>(b);
    return std::bit_cast<T>(maximum ? x & y : x | y);
}
// minNum / maxNum: a NaN loses.
struct Min {
    template <typename T>
    static T apply(T a, T b) {
        return a < b ? a : a == b ? equal_bits<false>(a, b) : b != b ? a : b;
    }
};
struct Max {
    template <typename T>
    static T apply(T a, T b) {
        return a > b ? a : a == b ? equal_bits<true>(a, b) : b != b ? a : b;
    }
};
struct MinNan {
    template <typename T>
    static T apply(T a, T b) {
        return a != a ? a : b != b ? b : Min::apply(a, b);
    }
};
struct MaxNan {
    template <typename T>
    static T apply(T a, T b) {
        return a != a ? a : b != b ? b : Max::apply(a, b);
    }
};
template <typename F>
struct Thrice {
    template <typename T>
    static T apply(T a, T b, T c) {
        return F::apply(F::apply(a, b), c);
    }
};

template <typename F, u32 mode>
struct Moded {
    template <typename T>
    static T apply(T a, T b) {
        return output<mode>(F::apply(input<mode>(a), input<mode>(b)));
    }
    template <typename T>
    static T apply(T a, T b, T c) {
        return output<mode>(F::apply(input<mode>(a), input<mode>(b), input<mode>(c)));
    }
};

// The bulk of every kernel: use the host's FMA instruction where it has one (the libm fallback is exact but
// slow).
#if defined(__x86_64__) && defined(__gnu_linux__)
__attribute__((target_clones("arch=x86-64-v3", "default")))
#endif
void fma_f32(float* d, const float* a, const float* b, const float* c) {
    for (u32 lane = 0; lane < kLanes; ++lane) d[lane] = __builtin_fmaf(a[lane], b[lane], c[lane]);
}
#if defined(__x86_64__) && defined(__gnu_linux__)
__attribute__((target_clones("arch=x86-64-v3", "default")))
#endif
void fma_f64(double* d, const double* a, const double* b, const double* c) {
    for (u32 lane = 0; lane < kLanes; ++lane) d[lane] = __builtin_fma(a[lane], b[lane], c[lane]);
}

template <u32 mode>
void fused_multiply_add_f32(Warp& w, const Op& op, u32 mask) {
    float result[kLanes], flushed[3][kLanes];
    const float* in[3] = {static_cast<float*>(slot(w, op.a)), static_cast<float*>(slot(w, op.b)),
                          static_cast<float*>(slot(w, op.c))};
    if constexpr ((mode & kFtz) != 0) {
        for (u32 i = 0; i < 3; ++i) {
            for (u32 lane = 0; lane < kLanes; ++lane) flushed[i][lane] = flush(in[i][lane]);
            in[i] = flushed[i];
        }
    }
    fma_f32(result, in[0], in[1], in[2]);
    each_lane<float>(slot(w, op.d), mask, [&](u32 lane) { return output<mode>(result[lane]); });
}

void fused_multiply_add_f64(Warp& w, const Op& op, u32 mask) {
    double result[kLanes];
    fma_f64(result, static_cast<double*>(slot(w, op.a)), static_cast<double*>(slot(w, op.b)),
            static_cast<double*>(slot(w, op.c)));
    each_lane<double>(slot(w, op.d), mask, [&](u32 lane) { return canonical(result[lane]); });
}

// f32x2: two floats in one 64-bit lane.
template <typename F>
void packed_pair(Warp& w, const Op& op, u32 mask) {
    const float *a = static_cast<float*>(slot(w, op.a)), *b = static_cast<float*>(slot(w, op.b));
    const float* c = op.c == kNoSlot ? a : static_cast<float*>(slot(w, op.c));
    float result[2 * kLanes];
    for (u32 i = 0; i < 2 * kLanes; ++i) {
        if constexpr (std::is_void_v<F>) {
            result[i] = canonical(__builtin_fmaf(a[i], b[i], c[i]));
        } else {
            result[i] = canonical(F::apply(a[i], b[i]));
        }
    }
    for_lanes(mask,
              [&](u32 lane) { std::memcpy(static_cast<u64*>(slot(w, op.d)) + lane, &result[2 * lane], 8); });
}

// f32 add, sub, mul and fma with a directed rounding mode, op.flags. Products are exact in double.
enum class Directed { add, sub, mul, fma };

template <Directed kind>
void directed(Warp& w, const Op& op, u32 mask) {
    const float *a = static_cast<float*>(slot(w, op.a)), *b = static_cast<float*>(slot(w, op.b));
    const float* c = op.c == kNoSlot ? a : static_cast<float*>(slot(w, op.c));
    const auto rounding = static_cast<formats::Rounding>(op.flags);
    for_lanes(mask, [&](u32 lane) {
        const double x = a[lane], y = b[lane];
        double value = x * y;
        if constexpr (kind != Directed::mul) {
            const double p = kind == Directed::fma ? value : x;
            const double q = kind == Directed::fma ? c[lane] : kind == Directed::sub ? -y : y;
            value = add_to_odd(p, q);
            // Terms that cancel give -0 when rounding down.
            if (value == 0 && rounding == formats::Rounding::down && std::signbit(p) != std::signbit(q))
                value = -0.0;
        }
        static_cast<u32*>(slot(w, op.d))[lane] = formats::encode(value, formats::kF32, rounding);
    });
}

void decode_directed(Decoder& x) {
    const std::string_view root = x.in->root;
    if (x.type() != Type::f32 || x.has("ftz") || x.has("sat")) x.unsupported("a directed rounding mode here");
    x.destination_and_sources(4);
    x.op.flags = static_cast<u32>(x.has("rz")   ? formats::Rounding::zero
                                  : x.has("rm") ? formats::Rounding::down
                                                : formats::Rounding::up);
    if (root == "add") x.op.run = directed<Directed::add>;
    if (root == "sub") x.op.run = directed<Directed::sub>;
    if (root == "mul") x.op.run = directed<Directed::mul>;
    if (root == "fma") x.op.run = directed<Directed::fma>;
}

template <bool negate, bool ftz>
void sign_f32(Warp& w, const Op& op, u32 mask) {
    const float* a = static_cast<float*>(slot(w, op.a));
    each_lane<u32>(slot(w, op.d), mask, [=](u32 lane) {
        const u32 bits = std::bit_cast<u32>(ftz ? flush(a[lane]) : a[lane]);
        return negate ? bits ^ 0x80000000u : bits & 0x7fffffffu;
    });
}
template <bool negate>
void sign_f64(Warp& w, const Op& op, u32 mask) {
    const u64* a = static_cast<u64*>(slot(w, op.a));
    constexpr u64 kSign = u64{1} << 63;
    each_lane<u64>(slot(w, op.d), mask,
                   [=](u32 lane) { return negate ? a[lane] ^ kSign : a[lane] & ~kSign; });
}

// d has the sign of a and the magnitude of b.
template <typename T>
void copy_sign(Warp& w, const Op& op, u32 mask) {
    const T *a = static_cast<T*>(slot(w, op.a)), *b = static_cast<T*>(slot(w, op.b));
    each_lane<T>(slot(w, op.d), mask, [=](u32 lane) { return std::copysign(b[lane], a[lane]); });
}

template <typename F>
Handler two_operands(Type type, u32 mode) {
    if (type == Type::f64) return binary<double, Moded<F, kPlain>>;
    switch (mode) {
        case kPlain: return binary<float, Moded<F, kPlain>>;
        case kFtz: return binary<float, Moded<F, kFtz>>;
        case kSat: return binary<float, Moded<F, kSat>>;
        default: return binary<float, Moded<F, kFtz | kSat>>;
    }
}

template <typename F>
Handler extremum(Decoder& x, Type type, u32 mode) {
    if (x.num_operands() == 4) return type == Type::f32 ? ternary<float, Moded<Thrice<F>, kPlain>> : nullptr;
    return two_operands<F>(type, mode);
}

Handler fused(Type type, u32 mode) {
    if (type == Type::f64) return fused_multiply_add_f64;
    switch (mode) {
        case kPlain: return fused_multiply_add_f32<kPlain>;
        case kFtz: return fused_multiply_add_f32<kFtz>;
        case kSat: return fused_multiply_add_f32<kSat>;
        default: return fused_multiply_add_f32<kFtz | kSat>;
    }
}

void decode_pair(Decoder& x) {
    x.destination_and_sources(8);
    const std::string_view root = x.in->root;
    x.op.run = root == "add"   ? packed_pair<Add>
               : root == "sub" ? packed_pair<Sub>
               : root == "mul" ? packed_pair<Mul>
               : root == "fma" ? packed_pair<void>
                               : nullptr;
}

}  // namespace

void decode_float(Decoder& x) {
    const std::string_view root = x.in->root;
    const Type type = x.type();
    if (x.has("rz") || x.has("rm") || x.has("rp")) return decode_directed(x);
    if (x.has_prefix("xorsign")) x.unsupported();
    if (type == Type::f32x2) return decode_pair(x);
    const u32 mode = (x.has("ftz") ? kFtz : 0) | (x.has("sat") ? kSat : 0);
    x.destination_and_sources(type_bytes(type));
    const bool is_nan = x.has("NaN");
    if (root == "add") x.op.run = two_operands<Add>(type, mode);
    if (root == "sub") x.op.run = two_operands<Sub>(type, mode);
    if (root == "mul") x.op.run = two_operands<Mul>(type, mode);
    if (root == "div") x.op.run = two_operands<Div>(type, mode);
    if (root == "min") x.op.run = is_nan ? extremum<MinNan>(x, type, mode) : extremum<Min>(x, type, mode);
    if (root == "max") x.op.run = is_nan ? extremum<MaxNan>(x, type, mode) : extremum<Max>(x, type, mode);
    if (root == "fma" || root == "mad") x.op.run = fused(type, mode);
    const bool ftz = (mode & kFtz) != 0;
    if (root == "abs")
        x.op.run = type == Type::f64 ? sign_f64<false> : ftz ? sign_f32<false, true> : sign_f32<false, false>;
    if (root == "neg")
        x.op.run = type == Type::f64 ? sign_f64<true> : ftz ? sign_f32<true, true> : sign_f32<true, false>;
    if (root == "copysign")
        x.op.run = for_float(type, [](auto t) -> Handler { return copy_sign<decltype(t)>; });
}

void decode_arithmetic(Decoder& x) {
    switch (x.type()) {
        case Type::f32:
        case Type::f64:
        case Type::f32x2: return decode_float(x);
        case Type::f16:
        case Type::f16x2:
        case Type::bf16:
        case Type::bf16x2: return decode_half(x);
        default: return decode_integer(x);
    }
}

}  // namespace deep_gemm::emulator
