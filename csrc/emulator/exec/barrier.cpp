// bar, barrier (named barriers of a CTA, with thread counts and reductions) and barrier.cluster. Arrivals
// count whole warps, as the hardware does. A waiting warp executes its instruction again when something
// happened.
#include "emulator/exec/barrier.h"

#include "emulator/exec/collective.h"
#include "emulator/exec/families.h"
#include "emulator/exec/races.h"

namespace deep_gemm::emulator {
namespace {

constexpr u32 kNumBarriers = 16;
constexpr u32 kAligned = 1, kRelaxed = 2;  // of barrier.cluster

u32 expected_threads(const Cta& cta, const NamedBarrier& b) {
    return b.expected != 0 ? b.expected : cta.live_warps * kLanes;
}

bool complete_if_full(Cta& cta, NamedBarrier& b) {
    if (b.arrived == 0 || b.arrived < expected_threads(cta, b)) return false;
    b.last_any = b.any, b.last_all = b.all, b.last_count = b.count;
    b.any = 0, b.all = 1, b.count = 0, b.arrived = 0, b.expected = 0;
    ++b.generation;
    cta.cluster->wake();
    if (cta.cluster->races) cta.cluster->races->barrier_complete(cta, static_cast<u32>(&b - cta.barriers));
    return true;
}

NamedBarrier& barrier_of(Warp& w, const Op& op) {
    const u32 id = read_lane<u32>(slot(w, op.a), first_lane(w.active));
    if (id >= kNumBarriers) fault(w, -1, "barrier {} does not exist; there are {}", id, kNumBarriers);
    return w.cta->barriers[id];
}

// op.b: thread count or none; op.c: predicate of a reduction or none.
void arrive(Warp& w, const Op& op, NamedBarrier& b) {
    const u32 count = op.b == kNoSlot ? 0 : read_lane<u32>(slot(w, op.b), first_lane(w.active));
    if (count % kLanes != 0 || count > w.cta->cluster->launch->warps() * kLanes) {
        fault(w, -1, "barrier count {} must be a multiple of 32 and at most the {} threads of the CTA", count,
              w.cta->cluster->launch->threads());
    }
    if (b.arrived != 0 && b.expected != count) {
        fault(w, -1, "barrier expects {} threads here but {} where another warp arrived", count, b.expected);
    }
    b.expected = count;
    b.arrived += kLanes;
    if (Races* races = w.cta->cluster->races.get())
        races->barrier_arrive(w, static_cast<u32>(&b - w.cta->barriers));
    if (op.c != kNoSlot) {
        const u32 yes = (predicate(w, op.c) ^ static_cast<u32>(op.immediate)) & w.active;
        b.any |= yes != 0;
        b.all &= yes == w.active;
        b.count += static_cast<u32>(std::popcount(yes));
    }
    if (b.arrived > expected_threads(*w.cta, b)) {
        fault(w, -1, "{} threads arrived at a barrier for {}", b.arrived, expected_threads(*w.cta, b));
    }
}

enum class Result { none, any, all, count };

template <Result result>
void barrier_sync(Warp& w, const Op& op, u32 mask) {
    if (!whole_warp_present(w, mask)) return;
    NamedBarrier& b = barrier_of(w, op);
    if (!w.barrier_arrived) {
        w.barrier_generation = b.generation;
        arrive(w, op, b);
        w.barrier_arrived = true;
        complete_if_full(*w.cta, b);
    }
    if (b.generation == w.barrier_generation) {
        const u32 id = read_lane<u32>(slot(w, op.a), first_lane(mask));
        w.block(w.pc - 1, {WaitKind::named_barrier, w.pc - 1, mask, id, 0});
        return;
    }
    w.barrier_arrived = false;
    if (Races* races = w.cta->cluster->races.get())
        races->barrier_pass(w, static_cast<u32>(&b - w.cta->barriers));
    if (result == Result::any) set_predicate(w, op.d, mask, b.last_any ? kFullMask : 0);
    if (result == Result::all) set_predicate(w, op.d, mask, b.last_all ? kFullMask : 0);
    if (result == Result::count) each_lane<u32>(slot(w, op.d), mask, [&](u32) { return b.last_count; });
}

void barrier_arrive(Warp& w, const Op& op, u32 mask) {
    if (!whole_warp_present(w, mask)) return;
    NamedBarrier& b = barrier_of(w, op);
    arrive(w, op, b);
    complete_if_full(*w.cta, b);
}

// bar.warp.sync mask
void warp_sync(Warp& w, const Op& op, u32 mask) {
    if (!members_present(w, op.a, mask)) return;
    if (Races* races = w.cta->cluster->races.get()) races->warp_sync(w, mask);
}

void cluster_arrive(Warp& w, const Op& op, u32 mask) {
    if ((op.flags & kAligned) != 0 && !whole_warp_present(w, mask)) return;
    Cluster& c = *w.cta->cluster;
    if (w.cluster_arrived && w.cluster_generation == c.barrier_generation) {
        fault(w, -1, "arrives twice at the cluster barrier without waiting");
    }
    w.cluster_arrived = true;
    w.cluster_generation = c.barrier_generation;
    c.barrier_arrived += static_cast<u32>(std::popcount(mask));
    if (c.races) c.races->cluster_arrive(w, mask, (op.flags & kRelaxed) != 0);
    complete_cluster_barrier_if_full(c);
}

void cluster_wait(Warp& w, const Op& op, u32 mask) {
    if ((op.flags & kAligned) != 0 && !whole_warp_present(w, mask)) return;
    if (!w.cluster_arrived) fault(w, -1, "waits at the cluster barrier without having arrived");
    if (w.cluster_generation == w.cta->cluster->barrier_generation) {
        w.block(w.pc - 1, {WaitKind::cluster_barrier, w.pc - 1, mask, 0, 0});
        return;
    }
    w.cluster_arrived = false;
    if (Races* races = w.cta->cluster->races.get()) races->cluster_pass(w, mask);
}

void decode_reduction(Decoder& x) {
    const bool counts = x.has("popc");
    x.op.d = counts ? x.reg(x.operand(0), 4) : x.predicate(x.operand(0));
    x.op.a = x.source(x.operand(1), 4);
    if (x.num_operands() == 4) x.op.b = x.source(x.operand(2), 4);
    const ptx::Operand& test = x.operand(x.num_operands() - 1);
    x.op.c = x.predicate(test);
    x.op.immediate = test.negated ? ~0u : 0;
    x.op.run = counts         ? barrier_sync<Result::count>
               : x.has("and") ? barrier_sync<Result::all>
                              : barrier_sync<Result::any>;
}

}  // namespace

void complete_barriers_after_exit(Cta& cta) {
    for (NamedBarrier& b : cta.barriers) {
        if (b.expected == 0) complete_if_full(cta, b);
    }
}

void complete_cluster_barrier_if_full(Cluster& c) {
    if (c.barrier_arrived == 0 || c.barrier_arrived < c.live_threads) return;
    c.barrier_arrived = 0;
    ++c.barrier_generation;
    c.wake();
    if (c.races) c.races->cluster_complete();
}

void decode_barrier(Decoder& x) {
    if (x.has("cluster")) {
        x.op.flags = (x.has("aligned") ? kAligned : 0) | (x.has("relaxed") ? kRelaxed : 0);
        x.op.run = x.has("arrive") ? cluster_arrive : x.has("wait") ? cluster_wait : nullptr;
        return;
    }
    if (x.has("red")) return decode_reduction(x);
    x.op.a = x.source(x.operand(0), 4);
    if (x.has("warp")) {
        x.op.run = warp_sync;
        return;
    }
    if (x.num_operands() > 1) x.op.b = x.source(x.operand(1), 4);
    if (x.has("arrive") && x.num_operands() < 2) x.unsupported("bar.arrive needs a thread count");
    x.op.run = x.has("arrive") ? barrier_arrive : x.has("sync") ? barrier_sync<Result::none> : nullptr;
}

}  // namespace deep_gemm::emulator
