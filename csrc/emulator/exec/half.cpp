// Arithmetic on f16, bf16 and their packed pairs. Each element is computed in double and rounded once: sums
// that double cannot hold are rounded to odd first, so that the final rounding is the correct one.
#include "emulator/exec/elementwise.h"
#include "emulator/exec/rounding.h"

#include <cmath>

namespace deep_gemm::emulator {
namespace {

constexpr u32 kBf16 = 1, kPacked = 2, kRelu = 4, kSat = 8, kFtz = 16, kNanWins = 32;

enum class Arithmetic { add, sub, mul, fma, min, max };

double extremum(double a, double b, bool maximum, bool nan_wins) {
    if (a != a || b != b) return nan_wins ? std::nan("") : a != a ? b : a;
    if (a == b) return std::signbit(a) == maximum ? b : a;
    return (a > b) == maximum ? a : b;
}

template <Arithmetic kind>
u32 element(u32 a, u32 b, u32 c, u32 flags) {
    const formats::FloatLayout& layout = flags & kBf16 ? formats::kBf16 : formats::kF16;
    const double x = formats::decode(a & 0xffff, layout), y = formats::decode(b & 0xffff, layout);
    double value = 0;
    if (kind == Arithmetic::add) value = add_to_odd(x, y);
    if (kind == Arithmetic::sub) value = add_to_odd(x, -y);
    if (kind == Arithmetic::mul) value = x * y;
    if (kind == Arithmetic::fma) value = add_to_odd(x * y, formats::decode(c & 0xffff, layout));
    if (kind == Arithmetic::min || kind == Arithmetic::max) {
        value = extremum(x, y, kind == Arithmetic::max, (flags & kNanWins) != 0);
    }
    if ((flags & kRelu) != 0 && value <= 0) value = 0.0;
    if ((flags & kSat) != 0) value = value > 0 ? (value < 1 ? value : 1.0) : 0.0;
    u32 code = formats::encode(value, layout);
    const u32 magnitude = code & 0x7fff;
    if ((flags & kFtz) != 0 && magnitude < (1u << layout.mantissa_bits)) code &= 0x8000;
    return code;
}

template <Arithmetic kind>
void compute(Warp& w, const Op& op, u32 mask) {
    const u32 *a = static_cast<u32*>(slot(w, op.a)), *b = static_cast<u32*>(slot(w, op.b));
    const u32* c = op.c == kNoSlot ? a : static_cast<u32*>(slot(w, op.c));
    for_lanes(mask, [&](u32 lane) {
        u32 result = element<kind>(a[lane], b[lane], c[lane], op.flags);
        if (op.flags & kPacked)
            result |= element<kind>(a[lane] >> 16, b[lane] >> 16, c[lane] >> 16, op.flags) << 16;
        static_cast<u32*>(slot(w, op.d))[lane] = result;
    });
}

// abs and neg act on the sign bits only. op.immediate: the bits to clear (abs) or flip (neg).
template <bool negate>
void change_sign(Warp& w, const Op& op, u32 mask) {
    const u32* a = static_cast<u32*>(slot(w, op.a));
    const u32 bits = static_cast<u32>(op.immediate);
    each_lane<u32>(slot(w, op.d), mask, [=](u32 lane) { return negate ? a[lane] ^ bits : a[lane] & ~bits; });
}

}  // namespace

void decode_half(Decoder& x) {
    const std::string_view root = x.in->root;
    const Type type = x.type();
    const bool packed = type == Type::f16x2 || type == Type::bf16x2;
    x.destination_and_sources(4);
    x.op.flags = (type == Type::bf16 || type == Type::bf16x2 ? kBf16 : 0) | (packed ? kPacked : 0) |
                 (x.has("relu") ? kRelu : 0) | (x.has("sat") ? kSat : 0) | (x.has("ftz") ? kFtz : 0) |
                 (x.has("NaN") ? kNanWins : 0);
    if (root == "add") x.op.run = compute<Arithmetic::add>;
    if (root == "sub") x.op.run = compute<Arithmetic::sub>;
    if (root == "mul") x.op.run = compute<Arithmetic::mul>;
    if (root == "fma") x.op.run = compute<Arithmetic::fma>;
    if (root == "min") x.op.run = compute<Arithmetic::min>;
    if (root == "max") x.op.run = compute<Arithmetic::max>;
    if (root == "abs" || root == "neg") {
        x.op.immediate = packed ? 0x80008000 : 0x8000;
        x.op.run = root == "neg" ? change_sign<true> : change_sign<false>;
    }
}

}  // namespace deep_gemm::emulator
