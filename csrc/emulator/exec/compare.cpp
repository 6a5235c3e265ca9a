// setp, set, selp, slct, testp. Ordered float comparisons are false with a NaN, the -u forms true.
#include "emulator/exec/elementwise.h"
#include "emulator/formats/formats.h"

#include <cmath>

namespace deep_gemm::emulator {
namespace {

enum class Relation { eq, ne, lt, le, gt, ge, equ, neu, ltu, leu, gtu, geu, num, nan };

template <Relation relation, typename T>
bool holds(T a, T b) {
    const bool unordered = a != a || b != b;
    switch (relation) {
        case Relation::eq: return a == b;
        case Relation::ne: return a != b && !unordered;
        case Relation::lt: return a < b;
        case Relation::le: return a <= b;
        case Relation::gt: return a > b;
        case Relation::ge: return a >= b;
        case Relation::equ: return a == b || unordered;
        case Relation::neu: return a != b;
        case Relation::ltu: return !(a >= b);
        case Relation::leu: return !(a > b);
        case Relation::gtu: return !(a <= b);
        case Relation::geu: return !(a < b);
        case Relation::num: return !unordered;
        case Relation::nan: return unordered;
    }
    return false;
}

struct Half {};
struct BrainHalf {};

template <typename T>
auto load(const void* slot, u32 lane) {
    if constexpr (std::is_same_v<T, Half>) {
        return formats::f16_to_f32(read_lane<u16>(slot, lane));
    } else if constexpr (std::is_same_v<T, BrainHalf>) {
        return formats::bf16_to_f32(read_lane<u16>(slot, lane));
    } else {
        return read_lane<T>(slot, lane);
    }
}

enum Combine : u32 { kNone, kAnd, kOr, kXor };

template <typename T, Relation relation>
u32 compare_lanes(Warp& w, const Op& op) {
    const void *a = slot(w, op.a), *b = slot(w, op.b);
    u32 bits = 0;
#pragma GCC ivdep
    for (u32 lane = 0; lane < kLanes; ++lane) {
        bits |= static_cast<u32>(holds<relation>(load<T>(a, lane), load<T>(b, lane))) << lane;
    }
    return bits;
}

u32 combined(Warp& w, const Op& op, u32 bits) {
    if (op.flags == kNone) return bits;
    const u32 c = predicate(w, op.c) ^ static_cast<u32>(op.immediate);
    return op.flags == kAnd ? bits & c : op.flags == kOr ? bits | c : bits ^ c;
}

// op.target: the second destination of p|q, which gets the negated comparison.
template <typename T, Relation relation>
void set_predicates(Warp& w, const Op& op, u32 mask) {
    const u32 bits = compare_lanes<T, relation>(w, op);
    const u32 p = combined(w, op, bits), q = op.target == kNoSlot ? 0 : combined(w, op, ~bits);
    if (op.d != kNoSlot) set_predicate(w, op.d, mask, p);
    if (op.target != kNoSlot) set_predicate(w, op.target, mask, q);
}

// op.list[0]: the value for true.
template <typename T, Relation relation>
void set_register(Warp& w, const Op& op, u32 mask) {
    const u32 bits = combined(w, op, compare_lanes<T, relation>(w, op));
    const u32 yes = op.list[0];
    each_lane<u32>(slot(w, op.d), mask, [=](u32 lane) { return bits >> lane & 1 ? yes : 0u; });
}

// clang-format off
template <typename T>
Handler by_relation(std::string_view name, bool to_register) {
#define DG_RELATION(text, relation) \
    if (name == text) return to_register ? set_register<T, Relation::relation> : set_predicates<T, Relation::relation>;
    DG_RELATION("eq", eq)
    DG_RELATION("lt", lt) DG_RELATION("le", le) DG_RELATION("gt", gt) DG_RELATION("ge", ge)
    if constexpr (std::is_integral_v<T>) {
        DG_RELATION("ne", neu)
        DG_RELATION("lo", lt) DG_RELATION("ls", le) DG_RELATION("hi", gt) DG_RELATION("hs", ge)
    } else {
        DG_RELATION("ne", ne) DG_RELATION("equ", equ) DG_RELATION("neu", neu) DG_RELATION("ltu", ltu)
        DG_RELATION("leu", leu) DG_RELATION("gtu", gtu) DG_RELATION("geu", geu) DG_RELATION("num", num)
        DG_RELATION("nan", nan)
    }
#undef DG_RELATION
    return nullptr;
}
// clang-format on

Handler by_type(Type type, std::string_view relation, bool to_register) {
    if (type == Type::f16) return by_relation<Half>(relation, to_register);
    if (type == Type::bf16) return by_relation<BrainHalf>(relation, to_register);
    if (const Handler handler =
            for_float(type, [&](auto t) { return by_relation<decltype(t)>(relation, to_register); })) {
        return handler;
    }
    return for_integer(type, [&](auto t) { return by_relation<decltype(t)>(relation, to_register); });
}

template <typename T>
void select(Warp& w, const Op& op, u32 mask) {
    const u32 bits = predicate(w, op.c);
    const T *a = static_cast<T*>(slot(w, op.a)), *b = static_cast<T*>(slot(w, op.b));
    each_lane<T>(slot(w, op.d), mask, [=](u32 lane) { return bits >> lane & 1 ? a[lane] : b[lane]; });
}

// d = c >= 0 ? a : b
template <typename T, typename C>
void select_by_sign(Warp& w, const Op& op, u32 mask) {
    const T *a = static_cast<T*>(slot(w, op.a)), *b = static_cast<T*>(slot(w, op.b));
    const C* c = static_cast<C*>(slot(w, op.c));
    each_lane<T>(slot(w, op.d), mask, [=](u32 lane) { return c[lane] >= C(0) ? a[lane] : b[lane]; });
}

template <typename T>
void test_property(Warp& w, const Op& op, u32 mask) {
    const T* a = static_cast<T*>(slot(w, op.a));
    u32 bits = 0;
    for (u32 lane = 0; lane < kLanes; ++lane)
        bits |= static_cast<u32>((op.flags >> std::fpclassify(a[lane])) & 1) << lane;
    set_predicate(w, op.d, mask, bits);
}

void decode_test(Decoder& x) {
    x.op.d = x.predicate(x.operand(0));
    x.op.a = x.source(x.operand(1), type_bytes(x.type()));
    const std::string_view what = x.modifier(0);
    const u32 normal = 1u << FP_NORMAL, sub = 1u << FP_SUBNORMAL, zero = 1u << FP_ZERO,
              inf = 1u << FP_INFINITE, nan = 1u << FP_NAN;
    x.op.flags = what == "finite"       ? normal | sub | zero
                 : what == "infinite"   ? inf
                 : what == "number"     ? normal | sub | zero | inf
                 : what == "notanumber" ? nan
                 : what == "normal"     ? normal
                                        : sub;
    x.op.run = for_float(x.type(), [](auto t) -> Handler { return test_property<decltype(t)>; });
}

void decode_set(Decoder& x) {
    const bool to_register = x.in->root == "set";
    const Type type = x.type();
    const ptx::Operand& destination = x.operand(0);
    x.op.target = kNoSlot;
    if (destination.kind == ptx::OperandKind::pair) {
        if (to_register) x.unsupported("a pair of destinations");
        x.op.d = x.predicate_or_none(destination.items[0]);
        x.op.target = x.predicate_or_none(destination.items[1]);
    } else {
        x.op.d = to_register ? x.reg(destination, 4) : x.predicate(destination);
    }
    x.op.a = x.source(x.operand(1), type_bytes(type));
    x.op.b = x.source(x.operand(2), type_bytes(type));
    if (x.num_operands() > 3) {
        x.op.c = x.predicate(x.operand(3));
        x.op.immediate = x.operand(3).negated ? ~0u : 0;
        x.op.flags = x.has("and") ? kAnd : x.has("or") ? kOr : x.has("xor") ? kXor : kNone;
    }
    if (to_register) x.set_list({x.type_from_end(1) == Type::f32 ? 0x3f800000u : ~0u});
    x.op.run = by_type(type, x.modifier(0), to_register);
}

}  // namespace

void decode_compare(Decoder& x) {
    const std::string_view root = x.in->root;
    if (root == "setp" || root == "set") return decode_set(x);
    if (root == "testp") return decode_test(x);
    if (root == "selp") {
        const u32 bytes = type_bytes(x.type());
        x.op.d = x.reg(x.operand(0), bytes);
        x.op.a = x.source(x.operand(1), bytes);
        x.op.b = x.source(x.operand(2), bytes);
        x.op.c = x.predicate(x.operand(3));
        x.op.run = bytes == 8 ? select<u64> : select<u32>;
        return;
    }
    const u32 bytes = type_bytes(x.type_from_end(1));
    x.destination_and_sources(bytes, bytes, bytes, 4);
    const bool by_float = x.type() == Type::f32;
    x.op.run = bytes == 8 ? (by_float ? select_by_sign<u64, float> : select_by_sign<u64, i32>)
                          : (by_float ? select_by_sign<u32, float> : select_by_sign<u32, i32>);
}

}  // namespace deep_gemm::emulator
