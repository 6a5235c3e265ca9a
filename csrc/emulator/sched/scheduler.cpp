// Turns, wake-ups and events of one cluster.
#include "emulator/sched/scheduler.h"

#include "emulator/exec/events.h"
#include "emulator/exec/lanes.h"

namespace deep_gemm::emulator {
namespace {

constexpr u32 kMaxTurn = 1024;
constexpr u32 kSpuriousRounds = 3;

void finish_cta(Cta& cta, const Warp& last) {
    cta.exited = true;
    --cta.cluster->live_ctas;
    if (cta.async_reads + cta.async_writes != 0) {
        fault(last, -1,
              "the CTA exits while {} asynchronous copies still use its shared memory; wait for them first",
              cta.async_reads + cta.async_writes);
    }
}

// Runs up to `budget` instructions; returns how many.
u32 interpret(Warp& w, u32 budget) {
    const Op* code = w.program->code.data();
    u32 executed = 0;
    while (executed < budget) {
        if (w.pc >= w.merge_pc) [[unlikely]] {
            w.save(w.active, w.pc);
            w.pick_group();
        }
        const Op& op = code[w.pc++];
        ++executed;
        u32 mask = w.active;
        if (op.guard >= 0) {
            mask &= predicate(w, static_cast<u32>(op.guard)) ^ op.guard_flip;
            if (mask == 0) continue;
        }
        op.run(w, op, mask);
        if (w.state != WarpState::ready || w.turn_over) break;
    }
    return executed;
}

void run_turn(Cluster& c, Warp& w) {
    const u64 wakes = c.wakes;
    w.waits.clear();
    w.turn_over = false;
    w.stuck = 0;
    w.state = WarpState::ready;
    // In a divergent warp any group may get the turn: a low one may be spinning on a high one.
    w.pc_bound = 0;
    if (c.rng.next() & 1) w.pc_bound = w.pc_of(c.rng.below(kLanes));
    w.pick_group();
    const u32 budget = 1 + c.rng.below(1u << c.rng.below(11));
    try {
        c.now += interpret(w, budget);
    } catch (const PlacedFault&) {
        throw;
    } catch (const Error& error) {
        raise_fault(place_of(w), error.what());
    }
    w.seen_wakes = wakes;
    if (w.state == WarpState::exited) {
        if (w.cta->live_warps == 0) finish_cta(*w.cta, w);
    } else if (w.state == WarpState::ready) {
        w.save(w.active, w.pc);
    }
}

void run_due_events(Cluster& c) {
    while (!c.events.empty() && c.events.front().due <= c.now) {
        std::pop_heap(c.events.begin(), c.events.end(), LaterEvent{});
        const Event event = std::move(c.events.back());
        c.events.pop_back();
        ++c.progress;
        try {
            event.run();
        } catch (const PlacedFault&) {
            throw;
        } catch (const Error& error) {
            raise_fault(event.place, error.what());
        }
    }
}

bool can_run(const Cluster& c, const Warp& w) {
    return w.state == WarpState::ready || (w.state == WarpState::blocked && w.seen_wakes != c.wakes);
}

}  // namespace

bool step_cluster(Cluster& c) {
    if (c.live_ctas == 0 && c.events.empty()) return false;
    const u32 count = static_cast<u32>(c.schedule.size());
    const u32 start = c.rng.below(count);
    for (u32 i = 0; i < count; ++i) {
        Warp& w = *c.schedule[start + i < count ? start + i : start + i - count];
        if (!can_run(c, w)) continue;
        run_turn(c, w);
        run_due_events(c);
        return true;
    }
    if (!c.events.empty()) {
        c.now = std::max(c.now, c.events.front().due);
        run_due_events(c);
        return true;
    }
    // A try_wait may give up by itself: let every waiter look again before calling it a deadlock.
    if (c.spurious_rounds++ < kSpuriousRounds) {
        ++c.wakes;
        return true;
    }
    fail(ErrorKind::emulator,
         "emulator: kernel {}: deadlock (seed {}, cluster {}): nothing can run and nothing is in flight{}",
         c.launch->program->name, c.launch->options.seed, c.number, describe_waits(c));
}

}  // namespace deep_gemm::emulator
