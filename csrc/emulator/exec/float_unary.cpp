// rcp, sqrt, rsqrt, ex2, lg2, sin, cos, tanh. The .rn forms are exact; the .approx forms are computed in
// double and rounded once, which is at least as good as the hardware but not bit-equal to it.
#include "emulator/exec/elementwise.h"

#include <cmath>

namespace deep_gemm::emulator {
namespace {

template <typename T>
T canonical_nan() {
    if constexpr (sizeof(T) == 4) return std::bit_cast<float>(0x7fffffffu);
    if constexpr (sizeof(T) == 8) return std::bit_cast<double>(u64{0x7fffffffffffffff});
}

enum class Function { rcp, sqrt, rsqrt, ex2, lg2, sin, cos, tanh };

template <typename T>
T flush(T value) {
    if constexpr (sizeof(T) == 4) return std::fabs(value) < 0x1p-126f ? std::copysign(0.0f, value) : value;
    return value;
}

template <typename T, Function function>
T evaluate(T value) {
    const double x = static_cast<double>(value);
    switch (function) {
        case Function::rcp: return T(1) / value;
        case Function::sqrt: return std::sqrt(value);
        case Function::rsqrt: return static_cast<T>(1.0 / std::sqrt(x));
        case Function::ex2: return static_cast<T>(std::exp2(x));
        case Function::lg2: return static_cast<T>(std::log2(x));
        case Function::sin: return static_cast<T>(std::sin(x));
        case Function::cos: return static_cast<T>(std::cos(x));
        case Function::tanh: return static_cast<T>(std::tanh(x));
    }
    return value;
}

template <typename T, Function function, bool ftz>
void compute(Warp& w, const Op& op, u32 mask) {
    const T* a = static_cast<T*>(slot(w, op.a));
    for_lanes(mask, [&](u32 lane) {
        T result = evaluate<T, function>(ftz ? flush(a[lane]) : a[lane]);
        if (ftz) result = flush(result);
        if (result != result) result = canonical_nan<T>();
        static_cast<T*>(slot(w, op.d))[lane] = result;
    });
}

template <Function function>
Handler select(Type type, bool ftz) {
    if (type == Type::f64) return compute<double, function, false>;
    if (type != Type::f32) return nullptr;
    return ftz ? compute<float, function, true> : compute<float, function, false>;
}

}  // namespace

void decode_float_unary(Decoder& x) {
    const std::string_view root = x.in->root;
    const Type type = x.type();
    if (x.has("rz") || x.has("rm") || x.has("rp")) x.unsupported("a directed rounding mode");
    x.destination_and_sources(type_bytes(type));
    const bool ftz = x.has("ftz");
    if (root == "rcp") x.op.run = select<Function::rcp>(type, ftz);
    if (root == "sqrt") x.op.run = select<Function::sqrt>(type, ftz);
    if (root == "rsqrt") x.op.run = select<Function::rsqrt>(type, ftz);
    if (root == "ex2") x.op.run = select<Function::ex2>(type, ftz);
    if (root == "lg2") x.op.run = select<Function::lg2>(type, ftz);
    if (root == "sin") x.op.run = select<Function::sin>(type, ftz);
    if (root == "cos") x.op.run = select<Function::cos>(type, ftz);
    if (root == "tanh") x.op.run = select<Function::tanh>(type, ftz);
}

}  // namespace deep_gemm::emulator
