// Warp-wide exchange: shfl, vote, match, redux, activemask, elect. Lanes named by the member mask must be
// here together: a group that arrives alone waits for the others to reach this pc.
#include "emulator/exec/collective.h"
#include "emulator/exec/families.h"
#include "emulator/exec/lanes.h"

namespace deep_gemm::emulator {
namespace {

enum class Shuffle { bfly, down, up, idx };

struct SourceLane {
    u32 lane = 0;
    bool inside = false;  // of the segment; outside, a lane keeps its own value
};

template <Shuffle mode>
constexpr SourceLane source_lane(u32 lane, u32 b, u32 c) {
    const u32 clamp = c & 31, segment = c >> 8 & 31, by = b & 31;
    const u32 last = (lane & segment) | (clamp & ~segment), first = lane & segment;
    SourceLane from;
    if (mode == Shuffle::bfly) from.lane = lane ^ by;
    if (mode == Shuffle::down) from.lane = lane + by;
    if (mode == Shuffle::up) from.lane = lane - by;
    if (mode == Shuffle::idx) from.lane = first | (by & ~segment);
    from.inside =
        mode == Shuffle::up ? static_cast<i32>(from.lane) >= static_cast<i32>(last) : from.lane <= last;
    if (!from.inside) from.lane = lane;
    return from;
}

// All lanes shuffle by the same number over the whole warp, as they do in reductions: looked up.
template <Shuffle mode>
struct WholeWarp {
    static constexpr u32 kClamp = mode == Shuffle::up ? 0 : 31;
    u8 from[kLanes][kLanes] = {};  // [by][lane]
    u32 inside[kLanes] = {};
    constexpr WholeWarp() {
        for (u32 by = 0; by < kLanes; ++by) {
            for (u32 lane = 0; lane < kLanes; ++lane) {
                const SourceLane source = source_lane<mode>(lane, by, kClamp);
                from[by][lane] = static_cast<u8>(source.lane);
                inside[by] |= static_cast<u32>(source.inside) << lane;
            }
        }
    }
};
template <Shuffle mode>
constexpr WholeWarp<mode> kWholeWarp;

// op.list[0]: the member mask.
template <Shuffle mode>
void shuffle(Warp& w, const Op& op, u32 mask) {
    if (!members_present(w, op.list[0], mask)) return;
    const u32 *a = static_cast<u32*>(slot(w, op.a)), *b = static_cast<u32*>(slot(w, op.b)),
              *c = static_cast<u32*>(slot(w, op.c));
    u32 values[kLanes], inside = 0, differs = ~mask;
    for (u32 lane = 0; lane < kLanes; ++lane)
        differs |= (b[lane] ^ b[0]) | (c[lane] ^ WholeWarp<mode>::kClamp);
    if (differs == 0) {
        const u32 by = b[0] & 31;
        for (u32 lane = 0; lane < kLanes; ++lane) values[lane] = a[kWholeWarp<mode>.from[by][lane]];
        inside = kWholeWarp<mode>.inside[by];
    } else {
        for (u32 lane = 0; lane < kLanes; ++lane) {
            const SourceLane from = source_lane<mode>(lane, b[lane], c[lane]);
            if ((mask >> lane & 1) != 0 && (mask >> from.lane & 1) == 0) {
                fault(w, static_cast<i32>(lane),
                      "shfl reads lane {}, which does not execute it (lanes {:#010x} do)", from.lane, mask);
            }
            values[lane] = a[from.lane];
            inside |= static_cast<u32>(from.inside) << lane;
        }
    }
    each_lane<u32>(slot(w, op.d), mask, [&](u32 lane) { return values[lane]; });
    if (op.target != kNoSlot) set_predicate(w, op.target, mask, inside);
}

enum class Vote { all, any, uniform, ballot };

template <Vote mode>
void vote(Warp& w, const Op& op, u32 mask) {
    if (!members_present(w, op.b, mask)) return;
    const u32 yes = (predicate(w, op.a) ^ static_cast<u32>(op.immediate)) & mask;
    if (mode == Vote::ballot) {
        each_lane<u32>(slot(w, op.d), mask, [=](u32) { return yes; });
        return;
    }
    const bool result = mode == Vote::all   ? yes == mask
                        : mode == Vote::any ? yes != 0
                                            : yes == 0 || yes == mask;
    set_predicate(w, op.d, mask, result ? kFullMask : 0);
}

// match.any: lanes with my value. match.all: the mask when all agree, else 0, and the predicate op.target.
template <typename T, bool all>
void match(Warp& w, const Op& op, u32 mask) {
    if (!members_present(w, op.b, mask)) return;
    const T* a = static_cast<T*>(slot(w, op.a));
    u32 equal[kLanes] = {};
    bool agree = true;
    for_lanes(mask, [&](u32 lane) {
        for_lanes(mask, [&](u32 other) { equal[lane] |= static_cast<u32>(a[other] == a[lane]) << other; });
        agree &= equal[lane] == mask;
    });
    each_lane<u32>(slot(w, op.d), mask, [&](u32 lane) { return all ? (agree ? mask : 0) : equal[lane]; });
    if (all && op.target != kNoSlot) set_predicate(w, op.target, mask, agree ? kFullMask : 0);
}

enum class Reduce { add, min, max, bit_and, bit_or, bit_xor };

template <typename T, Reduce kind>
void reduce(Warp& w, const Op& op, u32 mask) {
    if (!members_present(w, op.b, mask)) return;
    const T* a = static_cast<T*>(slot(w, op.a));
    T result = a[first_lane(mask)];
    for_lanes(mask & (mask - 1), [&](u32 lane) {
        const T v = a[lane];
        if (kind == Reduce::add) result = static_cast<T>(static_cast<u32>(result) + static_cast<u32>(v));
        if (kind == Reduce::min) result = v < result ? v : result;
        if (kind == Reduce::max) result = v > result ? v : result;
        if (kind == Reduce::bit_and) result &= v;
        if (kind == Reduce::bit_or) result |= v;
        if (kind == Reduce::bit_xor) result ^= v;
    });
    each_lane<T>(slot(w, op.d), mask, [=](u32) { return result; });
}

void active_mask(Warp& w, const Op& op, u32 mask) {
    each_lane<u32>(slot(w, op.d), mask, [=](u32) { return mask; });
}

// The leader is the lowest member lane.
void elect(Warp& w, const Op& op, u32 mask) {
    if (!members_present(w, op.a, mask)) return;
    const u32 leader = first_lane(mask);
    if (op.d != kNoSlot) each_lane<u32>(slot(w, op.d), mask, [=](u32) { return leader; });
    if (op.target != kNoSlot) set_predicate(w, op.target, mask, 1u << leader);
}

void decode_shuffle(Decoder& x) {
    if (!x.has("sync")) x.unsupported("shfl without .sync");
    x.destination_pair(x.operand(0));
    x.op.a = x.source(x.operand(1), 4);
    x.op.b = x.source(x.operand(2), 4);
    x.op.c = x.source(x.operand(3), 4);
    x.set_list({x.source(x.operand(4), 4)});
    x.op.run = x.has("bfly")   ? shuffle<Shuffle::bfly>
               : x.has("down") ? shuffle<Shuffle::down>
               : x.has("up")   ? shuffle<Shuffle::up>
               : x.has("idx")  ? shuffle<Shuffle::idx>
                               : nullptr;
}

void decode_vote(Decoder& x) {
    if (!x.has("sync")) x.unsupported("vote without .sync");
    const bool ballot = x.has("ballot");
    x.op.d = ballot ? x.reg(x.operand(0), 4) : x.predicate(x.operand(0));
    x.op.a = x.predicate(x.operand(1));
    x.op.immediate = x.operand(1).negated ? ~0u : 0;
    x.op.b = x.source(x.operand(2), 4);
    x.op.run = x.has("all")   ? vote<Vote::all>
               : x.has("any") ? vote<Vote::any>
               : x.has("uni") ? vote<Vote::uniform>
               : ballot       ? vote<Vote::ballot>
                              : nullptr;
}

Handler reduction(const Decoder& x) {
    const bool is_signed = x.type() == Type::s32;
    if (x.has("add")) return reduce<u32, Reduce::add>;
    if (x.has("min")) return is_signed ? reduce<i32, Reduce::min> : reduce<u32, Reduce::min>;
    if (x.has("max")) return is_signed ? reduce<i32, Reduce::max> : reduce<u32, Reduce::max>;
    if (x.has("and")) return reduce<u32, Reduce::bit_and>;
    if (x.has("or")) return reduce<u32, Reduce::bit_or>;
    return x.has("xor") ? reduce<u32, Reduce::bit_xor> : nullptr;
}

}  // namespace

void decode_warp(Decoder& x) {
    const std::string_view root = x.in->root;
    if (root == "shfl") return decode_shuffle(x);
    if (root == "vote") return decode_vote(x);
    if (root == "activemask") {
        x.op.d = x.reg(x.operand(0), 4);
        x.op.run = active_mask;
    } else if (root == "elect") {
        x.destination_pair(x.operand(0));
        x.op.a = x.source(x.operand(1), 4);
        x.op.run = elect;
    } else if (root == "match") {
        x.destination_pair(x.operand(0));
        const bool wide = type_bytes(x.type()) == 8;
        x.op.a = x.source(x.operand(1), type_bytes(x.type()));
        x.op.b = x.source(x.operand(2), 4);
        x.op.run = x.has("all") ? (wide ? match<u64, true> : match<u32, true>)
                                : (wide ? match<u64, false> : match<u32, false>);
    } else {
        x.destination_and_sources(4);
        if (x.type() != Type::u32 && x.type() != Type::s32 && x.type() != Type::b32)
            x.unsupported("redux on this type");
        x.op.run = reduction(x);
    }
}

}  // namespace deep_gemm::emulator
