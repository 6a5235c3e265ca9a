// Integer arithmetic. Wraps modulo 2^N; division by zero gives all ones, remainder by zero the dividend.
#include "emulator/exec/elementwise.h"

namespace deep_gemm::emulator {
namespace {

template <typename T>
using Unsigned = std::make_unsigned_t<T>;

__extension__ using i128 = __int128;
__extension__ using u128 = unsigned __int128;

struct Add {
    template <typename T>
    static T apply(T a, T b) {
        return static_cast<T>(static_cast<Unsigned<T>>(a) + static_cast<Unsigned<T>>(b));
    }
};
struct Sub {
    template <typename T>
    static T apply(T a, T b) {
        return static_cast<T>(static_cast<Unsigned<T>>(a) - static_cast<Unsigned<T>>(b));
    }
};
struct MulLo {
    template <typename T>
    static T apply(T a, T b) {
        return static_cast<T>(static_cast<u64>(a) * static_cast<u64>(b));
    }
};
struct MulHi {
    template <typename T>
    static T apply(T a, T b) {
        using Wide = std::conditional_t<std::is_signed_v<T>, i128, u128>;
        return static_cast<T>((static_cast<Wide>(a) * static_cast<Wide>(b)) >> (8 * sizeof(T)));
    }
};
struct MadLo {
    template <typename T>
    static T apply(T a, T b, T c) {
        return Add::apply(MulLo::apply(a, b), c);
    }
};
struct MadHi {
    template <typename T>
    static T apply(T a, T b, T c) {
        return Add::apply(MulHi::apply(a, b), c);
    }
};
template <typename T>
constexpr bool overflows(T a, T b) {
    if constexpr (std::is_signed_v<T>)
        return b == T(-1) && a == static_cast<T>(Unsigned<T>{1} << (8 * sizeof(T) - 1));
    return false;
}
struct Div {
    template <typename T>
    static T apply(T a, T b) {
        return b == 0 ? static_cast<T>(-1) : overflows(a, b) ? a : static_cast<T>(a / b);
    }
};
struct Rem {
    template <typename T>
    static T apply(T a, T b) {
        return b == 0 ? a : overflows(a, b) ? T{0} : static_cast<T>(a % b);
    }
};
struct Min {
    template <typename T>
    static T apply(T a, T b) {
        return a < b ? a : b;
    }
};
struct Max {
    template <typename T>
    static T apply(T a, T b) {
        return a > b ? a : b;
    }
};
struct Neg {
    template <typename T>
    static T apply(T a) {
        return Sub::apply(T{0}, a);
    }
};
struct Abs {
    template <typename T>
    static T apply(T a) {
        return a < T{0} ? Neg::apply(a) : a;
    }
};
struct Sad {
    template <typename T>
    static T apply(T a, T b, T c) {
        return Add::apply(c, a > b ? Sub::apply(a, b) : Sub::apply(b, a));
    }
};
struct AddSaturate {
    static i32 apply(i32 a, i32 b) {
        const i64 sum = static_cast<i64>(a) + b;
        return static_cast<i32>(sum > 0x7fffffff          ? 0x7fffffff
                                : sum < -0x7fffffffll - 1 ? -0x7fffffffll - 1
                                                          : sum);
    }
};
struct SubSaturate {
    static i32 apply(i32 a, i32 b) {
        const i64 sum = static_cast<i64>(a) - b;
        return static_cast<i32>(sum > 0x7fffffff          ? 0x7fffffff
                                : sum < -0x7fffffffll - 1 ? -0x7fffffffll - 1
                                                          : sum);
    }
};
template <typename T, bool high>
struct Mul24 {
    static T apply(T a, T b) {
        auto extend = [](T v) {
            return std::is_signed_v<T> ? (static_cast<i64>(v) << 40) >> 40 : static_cast<i64>(v & 0xffffff);
        };
        return static_cast<T>((extend(a) * extend(b)) >> (high ? 16 : 0));
    }
};

template <typename S, typename D, bool accumulate>
void multiply_wide(Warp& w, const Op& op, u32 mask) {
    void* d = slot(w, op.d);
    const void *a = slot(w, op.a), *b = slot(w, op.b), *c = accumulate ? slot(w, op.c) : nullptr;
    each_lane<D>(d, mask, [=](u32 lane) {
        const D product =
            static_cast<D>(static_cast<D>(read_lane<S>(a, lane)) * static_cast<D>(read_lane<S>(b, lane)));
        if constexpr (accumulate) return Add::apply(product, read_lane<D>(c, lane));
        return product;
    });
}

// Four or two products of bytes added to c. `half`: the 16-bit half of a that dp2a uses with bytes 0,1 or 2,3
// of b.
template <typename A, typename B, u32 count>
void dot_bytes(Warp& w, const Op& op, u32 mask) {
    const u32 *a = static_cast<u32*>(slot(w, op.a)), *b = static_cast<u32*>(slot(w, op.b)),
              *c = static_cast<u32*>(slot(w, op.c));
    const u32 skip = static_cast<u32>(op.immediate);
    each_lane<u32>(slot(w, op.d), mask, [=](u32 lane) {
        u32 sum = c[lane];
        for (u32 i = 0; i < count; ++i) {
            const i32 x = count == 4
                              ? static_cast<A>(a[lane] >> (8 * i))
                              : static_cast<i32>(std::is_signed_v<A> ? static_cast<i16>(a[lane] >> (16 * i))
                                                                     : static_cast<u16>(a[lane] >> (16 * i)));
            const i32 y = static_cast<B>(b[lane] >> (8 * (i + skip)));
            sum += static_cast<u32>(x * y);
        }
        return sum;
    });
}

// Extended-precision chains; the condition code is Warp::carry. op.flags bit 0: .cc writes it.
template <typename T, bool subtract, bool carry_in>
void add_carry(Warp& w, const Op& op, u32 mask) {
    const T *a = static_cast<T*>(slot(w, op.a)), *b = static_cast<T*>(slot(w, op.b));
    u32 carry = w.carry, out = 0;
    T result[kLanes];
    for (u32 lane = 0; lane < kLanes; ++lane) {
        const u128 in = carry_in ? carry >> lane & 1 : subtract ? 1 : 0;
        const u128 sum = static_cast<u128>(a[lane]) + static_cast<T>(subtract ? ~b[lane] : b[lane]) + in;
        result[lane] = static_cast<T>(sum);
        out |= static_cast<u32>((sum >> (8 * sizeof(T))) & 1) << lane;
    }
    each_lane<T>(slot(w, op.d), mask, [&](u32 lane) { return result[lane]; });
    if (op.flags & 1) w.carry = (carry & ~mask) | (out & mask);
}

template <typename T, bool high, bool carry_in>
void mad_carry(Warp& w, const Op& op, u32 mask) {
    const T *a = static_cast<T*>(slot(w, op.a)), *b = static_cast<T*>(slot(w, op.b)),
            *c = static_cast<T*>(slot(w, op.c));
    u32 out = 0;
    T result[kLanes];
    for (u32 lane = 0; lane < kLanes; ++lane) {
        const T product = high ? MulHi::apply(a[lane], b[lane]) : MulLo::apply(a[lane], b[lane]);
        const u128 sum = static_cast<u128>(product) + c[lane] + (carry_in ? w.carry >> lane & 1 : 0);
        result[lane] = static_cast<T>(sum);
        out |= static_cast<u32>((sum >> (8 * sizeof(T))) & 1) << lane;
    }
    each_lane<T>(slot(w, op.d), mask, [&](u32 lane) { return result[lane]; });
    if (op.flags & 1) w.carry = (w.carry & ~mask) | (out & mask);
}

void decode_carry(Decoder& x, Type type) {
    const bool wide = type_bytes(type) == 8;
    const std::string_view root = x.in->root;
    x.destination_and_sources(type_bytes(type));
    x.op.flags |= x.has("cc") ? 1 : 0;
    const bool high = x.has("hi");
    if (root == "add") x.op.run = wide ? add_carry<u64, false, false> : add_carry<u32, false, false>;
    if (root == "addc") x.op.run = wide ? add_carry<u64, false, true> : add_carry<u32, false, true>;
    if (root == "sub") x.op.run = wide ? add_carry<u64, true, false> : add_carry<u32, true, false>;
    if (root == "subc") x.op.run = wide ? add_carry<u64, true, true> : add_carry<u32, true, true>;
    if (root == "mad" && high) x.op.run = wide ? mad_carry<u64, true, false> : mad_carry<u32, true, false>;
    if (root == "mad" && !high) x.op.run = wide ? mad_carry<u64, false, false> : mad_carry<u32, false, false>;
    if (root == "madc" && high) x.op.run = wide ? mad_carry<u64, true, true> : mad_carry<u32, true, true>;
    if (root == "madc" && !high) x.op.run = wide ? mad_carry<u64, false, true> : mad_carry<u32, false, true>;
}

void decode_multiply(Decoder& x, Type type) {
    const bool mad = x.in->root == "mad";
    const u32 bytes = type_bytes(type);
    if (x.has("wide")) {
        x.destination_and_sources(2 * bytes, bytes, bytes, 2 * bytes);
        switch (type) {
            case Type::s32:
                x.op.run = mad ? multiply_wide<i32, i64, true> : multiply_wide<i32, i64, false>;
                return;
            case Type::u32:
                x.op.run = mad ? multiply_wide<u32, u64, true> : multiply_wide<u32, u64, false>;
                return;
            case Type::s16:
                x.op.run = mad ? multiply_wide<i16, i32, true> : multiply_wide<i16, i32, false>;
                return;
            case Type::u16:
                x.op.run = mad ? multiply_wide<u16, u32, true> : multiply_wide<u16, u32, false>;
                return;
            default: x.unsupported();
        }
    }
    x.destination_and_sources(bytes);
    const bool high = x.has("hi");
    x.op.run = for_integer(type, [&](auto t) -> Handler {
        using T = decltype(t);
        if (mad) return high ? ternary<T, MadHi> : ternary<T, MadLo>;
        return high ? binary<T, MulHi> : binary<T, MulLo>;
    });
}

void decode_dot(Decoder& x) {
    x.destination_and_sources(4);
    const bool four = x.in->root == "dp4a";
    const Type a = x.type_from_end(1), b = x.type_from_end(0);
    const bool sa = a == Type::s32, sb = b == Type::s32;
    if (!four) x.op.immediate = x.has("hi") ? 2 : 0;
    if (four) {
        x.op.run = sa ? (sb ? dot_bytes<i8, i8, 4> : dot_bytes<i8, u8, 4>)
                      : (sb ? dot_bytes<u8, i8, 4> : dot_bytes<u8, u8, 4>);
    } else {
        x.op.run = sa ? (sb ? dot_bytes<i8, i8, 2> : dot_bytes<i8, u8, 2>)
                      : (sb ? dot_bytes<u8, i8, 2> : dot_bytes<u8, u8, 2>);
    }
}

}  // namespace

void decode_integer(Decoder& x) {
    const std::string_view root = x.in->root;
    const Type type = x.type();
    if (root == "dp4a" || root == "dp2a") return decode_dot(x);
    if (x.has("cc") || root == "addc" || root == "subc" || root == "madc") return decode_carry(x, type);
    if (root == "mul" || root == "mad") return decode_multiply(x, type);
    x.destination_and_sources(type_bytes(type));
    if (root == "mul24") {
        x.op.run = type == Type::s32
                       ? (x.has("hi") ? binary<i32, Mul24<i32, true>> : binary<i32, Mul24<i32, false>>)
                       : (x.has("hi") ? binary<u32, Mul24<u32, true>> : binary<u32, Mul24<u32, false>>);
        return;
    }
    if (x.has("sat")) {
        if (type != Type::s32) x.unsupported();
        x.op.run = root == "add"   ? binary<i32, AddSaturate>
                   : root == "sub" ? binary<i32, SubSaturate>
                                   : nullptr;
        return;
    }
    x.op.run = for_integer(type, [&](auto t) -> Handler {
        using T = decltype(t);
        if (root == "add") return binary<T, Add>;
        if (root == "sub") return binary<T, Sub>;
        if (root == "div") return binary<T, Div>;
        if (root == "rem") return binary<T, Rem>;
        if (root == "min") return binary<T, Min>;
        if (root == "max") return binary<T, Max>;
        if (root == "neg") return unary<T, Neg>;
        if (root == "abs") return unary<T, Abs>;
        if (root == "sad") return ternary<T, Sad>;
        return nullptr;
    });
}

}  // namespace deep_gemm::emulator
