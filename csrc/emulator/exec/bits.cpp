// Logic, shifts and bit fields. Shift counts clamp to the width; predicates take the logic ops too.
#include "emulator/exec/elementwise.h"

namespace deep_gemm::emulator {
namespace {

struct And {
    template <typename T>
    static T apply(T a, T b) {
        return a & b;
    }
};
struct Or {
    template <typename T>
    static T apply(T a, T b) {
        return a | b;
    }
};
struct Xor {
    template <typename T>
    static T apply(T a, T b) {
        return a ^ b;
    }
};
struct Not {
    template <typename T>
    static T apply(T a) {
        return static_cast<T>(~a);
    }
};
struct CNot {
    template <typename T>
    static T apply(T a) {
        return a == 0 ? T{1} : T{0};
    }
};
struct Prmt {
    static u32 apply(u32 a, u32 b, u32 selectors) {
        const u64 bytes = static_cast<u64>(b) << 32 | a;
        u32 result = 0;
        for (u32 i = 0; i < 4; ++i) {
            const u32 selector = selectors >> (4 * i) & 15;
            u32 value = static_cast<u32>(bytes >> (8 * (selector & 7))) & 0xff;
            if (selector & 8) value = value & 0x80 ? 0xff : 0;
            result |= value << (8 * i);
        }
        return result;
    }
};

enum class PredicateOp { bit_and, bit_or, bit_xor, bit_not };

template <PredicateOp kind>
void predicate_logic(Warp& w, const Op& op, u32 mask) {
    const u32 a = predicate(w, op.a);
    const u32 b = kind == PredicateOp::bit_not ? 0 : predicate(w, op.b);
    set_predicate(w, op.d, mask,
                  kind == PredicateOp::bit_and   ? a & b
                  : kind == PredicateOp::bit_or  ? a | b
                  : kind == PredicateOp::bit_xor ? a ^ b
                                                 : ~a);
}

template <typename T, bool right>
void shift(Warp& w, const Op& op, u32 mask) {
    void* d = slot(w, op.d);
    const void* a = slot(w, op.a);
    const u32* b = static_cast<u32*>(slot(w, op.b));
    constexpr u32 kBits = 8 * sizeof(T);
    each_lane<T>(d, mask, [=](u32 lane) {
        const T value = read_lane<T>(a, lane);
        const u32 count = b[lane];
        const u32 clamped = count < kBits ? count : kBits - 1;
        if constexpr (right) {
            const T shifted = static_cast<T>(value >> clamped);
            return count < kBits || std::is_signed_v<T> ? shifted : T{0};
        } else {
            return count < kBits ? static_cast<T>(static_cast<std::make_unsigned_t<T>>(value) << clamped)
                                 : T{0};
        }
    });
}

template <bool left, bool wrap>
void funnel_shift(Warp& w, const Op& op, u32 mask) {
    const u32 *a = static_cast<u32*>(slot(w, op.a)), *b = static_cast<u32*>(slot(w, op.b)),
              *c = static_cast<u32*>(slot(w, op.c));
    each_lane<u32>(slot(w, op.d), mask, [=](u32 lane) {
        const u64 both = static_cast<u64>(b[lane]) << 32 | a[lane];
        const u32 count = wrap ? c[lane] & 31 : c[lane] < 32 ? c[lane] : 32;
        return static_cast<u32>(left ? (both << count) >> 32 : both >> count);
    });
}

template <typename T>
void bit_field_extract(Warp& w, const Op& op, u32 mask) {
    const void* a = slot(w, op.a);
    const u32 *b = static_cast<u32*>(slot(w, op.b)), *c = static_cast<u32*>(slot(w, op.c));
    constexpr u32 kBits = 8 * sizeof(T);
    each_lane<T>(slot(w, op.d), mask, [=](u32 lane) {
        const T value = read_lane<T>(a, lane);
        const u32 position = b[lane] & 0xff, length = c[lane] & 0xff;
        if (length == 0) return T{0};
        const u32 last = position + length - 1 < kBits - 1 ? position + length - 1 : kBits - 1;
        const bool sign = std::is_signed_v<T> && (value >> last & 1);
        T result = 0;
        for (u32 i = 0; i < kBits; ++i) {
            const bool bit = i < length && position + i < kBits ? (value >> (position + i)) & 1 : sign;
            result = static_cast<T>(result | static_cast<T>(static_cast<std::make_unsigned_t<T>>(bit) << i));
        }
        return result;
    });
}

template <typename T>
void bit_field_insert(Warp& w, const Op& op, u32 mask) {
    const void *a = slot(w, op.a), *b = slot(w, op.b);
    const u32 *c = static_cast<u32*>(slot(w, op.c)), *e = static_cast<u32*>(slot(w, op.list[0]));
    constexpr u32 kBits = 8 * sizeof(T);
    each_lane<T>(slot(w, op.d), mask, [=](u32 lane) {
        const T from = read_lane<T>(a, lane), into = read_lane<T>(b, lane);
        const u32 position = c[lane] & 0xff, length = e[lane] & 0xff;
        if (length == 0 || position >= kBits) return into;
        const T field = length >= kBits ? static_cast<T>(~T{0}) : static_cast<T>((T{1} << length) - 1);
        const T keep = static_cast<T>(field << position);
        return static_cast<T>((into & ~keep) | ((from << position) & keep));
    });
}

void three_input_logic(Warp& w, const Op& op, u32 mask) {
    const u32 *a = static_cast<u32*>(slot(w, op.a)), *b = static_cast<u32*>(slot(w, op.b)),
              *c = static_cast<u32*>(slot(w, op.c));
    const u32 table = static_cast<u32>(op.immediate);
    each_lane<u32>(slot(w, op.d), mask, [=](u32 lane) {
        u32 result = 0;
        for (u32 row = 0; row < 8; ++row) {
            const u32 on = 0u - (table >> row & 1);
            result |= on & (row & 4 ? a[lane] : ~a[lane]) & (row & 2 ? b[lane] : ~b[lane]) &
                      (row & 1 ? c[lane] : ~c[lane]);
        }
        return result;
    });
}

// Functions of one operand whose result is a 32-bit count.
enum class Count { ones, leading_zeros, find, find_shift };

template <typename T, Count kind>
void count_bits(Warp& w, const Op& op, u32 mask) {
    const void* a = slot(w, op.a);
    each_lane<u32>(slot(w, op.d), mask, [=](u32 lane) -> u32 {
        using U = std::make_unsigned_t<T>;
        T value = read_lane<T>(a, lane);
        if constexpr (kind == Count::ones) return static_cast<u32>(std::popcount(static_cast<U>(value)));
        if constexpr (kind == Count::leading_zeros)
            return static_cast<u32>(std::countl_zero(static_cast<U>(value)));
        if (std::is_signed_v<T> && value < T{0}) value = static_cast<T>(~value);
        if (value == 0) return ~0u;
        const u32 leading = static_cast<u32>(std::countl_zero(static_cast<U>(value)));
        return kind == Count::find_shift ? leading : 8 * sizeof(T) - 1 - leading;
    });
}

struct Reverse {
    template <typename T>
    static T apply(T a) {
        T result = 0;
        for (u32 i = 0; i < 8 * sizeof(T); ++i)
            result = static_cast<T>(result | ((a >> i & 1) << (8 * sizeof(T) - 1 - i)));
        return result;
    }
};

void bit_mask(Warp& w, const Op& op, u32 mask) {
    const u32 *a = static_cast<u32*>(slot(w, op.a)), *b = static_cast<u32*>(slot(w, op.b));
    const bool wrap = (op.flags & 1) != 0;
    each_lane<u32>(slot(w, op.d), mask, [=](u32 lane) {
        const u32 position = wrap ? a[lane] & 31 : a[lane], length = wrap ? b[lane] & 31 : b[lane];
        if (position >= 32 || length == 0) return 0u;
        return (length >= 32 ? ~0u : (1u << length) - 1) << position;
    });
}

void decode_predicate_logic(Decoder& x) {
    const std::string_view root = x.in->root;
    x.op.d = x.predicate(x.operand(0));
    x.op.a = x.predicate(x.operand(1));
    if (root != "not") x.op.b = x.predicate(x.operand(2));
    x.op.run = root == "and"   ? predicate_logic<PredicateOp::bit_and>
               : root == "or"  ? predicate_logic<PredicateOp::bit_or>
               : root == "xor" ? predicate_logic<PredicateOp::bit_xor>
                               : predicate_logic<PredicateOp::bit_not>;
}

void decode_counts(Decoder& x, Type type) {
    const std::string_view root = x.in->root;
    x.destination_and_sources(4, type_bytes(type), 0, 0);
    const bool shift_amount = x.has("shiftamt");
    x.op.run = for_integer(type, [&](auto t) -> Handler {
        using T = decltype(t);
        if (root == "popc") return count_bits<T, Count::ones>;
        if (root == "clz") return count_bits<T, Count::leading_zeros>;
        return shift_amount ? count_bits<T, Count::find_shift> : count_bits<T, Count::find>;
    });
}

}  // namespace

void decode_bits(Decoder& x) {
    const std::string_view root = x.in->root;
    const Type type = x.type();
    const u32 bytes = type_bytes(type);
    if (type == Type::pred) return decode_predicate_logic(x);
    if (root == "popc" || root == "clz" || root == "bfind") return decode_counts(x, type);
    if (root == "shl" || root == "shr") {
        x.destination_and_sources(bytes, bytes, 4, 4);
        x.op.run = for_integer(type, [&](auto t) -> Handler {
            return root == "shl" ? shift<decltype(t), false> : shift<decltype(t), true>;
        });
    } else if (root == "shf") {
        x.destination_and_sources(4);
        const bool wrap = x.has("wrap");
        x.op.run = x.has("l") ? (wrap ? funnel_shift<true, true> : funnel_shift<true, false>)
                              : (wrap ? funnel_shift<false, true> : funnel_shift<false, false>);
    } else if (root == "bfe") {
        x.destination_and_sources(bytes, bytes, 4, 4);
        x.op.run = for_integer(type, [&](auto t) -> Handler { return bit_field_extract<decltype(t)>; });
    } else if (root == "bfi") {
        x.destination_and_sources(bytes, bytes, bytes, 4);
        x.set_list({x.source(x.operand(4), 4)});
        x.op.run = for_integer(type, [&](auto t) -> Handler { return bit_field_insert<decltype(t)>; });
    } else if (root == "prmt") {
        if (x.in->modifiers.size() != 1) x.unsupported("prmt modes other than the default");
        x.destination_and_sources(4);
        x.op.run = ternary<u32, Prmt>;
    } else if (root == "lop3") {
        x.destination_and_sources(4);
        x.op.immediate = static_cast<i64>(x.immediate(x.operand(4)));
        x.op.run = three_input_logic;
    } else if (root == "bmsk") {
        x.destination_and_sources(4);
        x.op.flags |= x.has("wrap") ? 1 : 0;
        x.op.run = bit_mask;
    } else {
        x.destination_and_sources(bytes);
        x.op.run = for_integer(type, [&](auto t) -> Handler {
            using T = decltype(t);
            if (root == "and") return binary<T, And>;
            if (root == "or") return binary<T, Or>;
            if (root == "xor") return binary<T, Xor>;
            if (root == "not") return unary<T, Not>;
            if (root == "cnot") return unary<T, CNot>;
            if (root == "brev") return unary<std::make_unsigned_t<T>, Reverse>;
            return nullptr;
        });
    }
}

}  // namespace deep_gemm::emulator
