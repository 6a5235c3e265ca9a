// Who knows of what: vector clocks of the threads of a cluster.
//
// A clock says, for every lane of every warp, up to which time that lane's accesses happened before; and the
// same for each engine that accesses memory on its own: the copy engine on behalf of an mbarrier, a warp's
// cp.async and bulk groups, a warpgroup's tensor core. Lanes' times are kept twice: `visible` (what they
// wrote can be read) and `performed` (the access is over, so its place may be reused). They differ where an
// arrival at another CTA's mbarrier has CTA scope: it hands back a buffer, but carries no values.
#pragma once

#include "emulator/ir/op.h"

#include <deep_gemm/spec/types.h>

#include <algorithm>
#include <array>
#include <bit>
#include <memory>
#include <vector>

namespace deep_gemm::emulator {

using Time = u32;

// What is known of a warp: all lanes up to `all`, those in `lanes` up to `some`. Lanes of a warp mostly move
// together, or one of them acts for the rest. Where that is not so, a join claims a little more than is
// known: it can hide a race, never make one up.
struct KnownWarp {
    Time all = 0, some = 0;
    u32 lanes = 0;

    void join(const KnownWarp& other) {
        all = std::max(all, other.all);
        if (other.some > all) {
            if (some <= all) {
                lanes = other.lanes;
            } else if (some <= other.some && (lanes & ~other.lanes) == 0) {
                lanes = other.lanes;
            } else if (other.some < some && (other.lanes & ~lanes) == 0) {
                return;
            } else {
                lanes |= other.lanes;
            }
            some = std::max(some, other.some);
        }
        if (some <= all) some = 0, lanes = 0;
    }
    [[nodiscard]] bool covers(u32 which, Time time) const {
        return all >= time || (some >= time && (which & ~lanes) == 0) || which == 0;
    }
};

class Clock {
  public:
    void reset(u32 num_warps, u32 num_engines) {
        visible_.assign(num_warps, {});
        performed_.assign(num_warps, {});
        engines_.assign(num_engines, 0);
    }
    [[nodiscard]] bool empty() const { return visible_.empty(); }
    void join(const Clock& other) {
        for (size_t i = 0; i < visible_.size(); ++i) visible_[i].join(other.visible_[i]);
        join_performed(other);
    }
    void join_performed(const Clock& other) {
        for (size_t i = 0; i < performed_.size(); ++i) performed_[i].join(other.performed_[i]);
        for (size_t i = 0; i < engines_.size(); ++i) engines_[i] = std::max(engines_[i], other.engines_[i]);
    }
    void learn_warp(u32 warp, const KnownWarp& known, bool performed_only = false) {
        performed_[warp].join(known);
        if (!performed_only) visible_[warp].join(known);
    }
    void learn_engine(u32 engine, Time time) { engines_[engine] = std::max(engines_[engine], time); }

    [[nodiscard]] const KnownWarp& visible(u32 warp) const { return visible_[warp]; }
    [[nodiscard]] const KnownWarp& performed(u32 warp) const { return performed_[warp]; }
    [[nodiscard]] Time engine(u32 engine) const { return engines_[engine]; }

  private:
    std::vector<KnownWarp> visible_, performed_;
    std::vector<Time> engines_;
};

// The clocks of a warp's lanes. Lanes mostly know the same; those that do not have a clock of their own. What
// a lane knows of itself is not kept up to date: a lane is ordered with itself. Time moves when a lane tells
// others, so an access is told of exactly if its time is below the teller's next one.
struct WarpClock {
    Time now = 1;
    u32 unit = 0;    // the warp's number in the cluster
    u32 absent = 0;  // lanes that never were: the block ends in this warp
    u32 apart = 0;   // lanes with a clock of their own
    Clock together;
    std::array<std::unique_ptr<Clock>, kLanes> own;

    void reset(u32 number, u32 lanes, const Clock& zero) {
        now = 1, unit = number, absent = ~lanes, apart = 0;
        together = zero;
    }
    [[nodiscard]] const Clock& of(u32 lane) const { return apart >> lane & 1 ? *own[lane] : together; }

    // Applies `learn_one` to the clocks of the lanes in `mask`; `live` are all the warp has.
    template <typename Learn>
    void learn(u32 mask, u32 live, Learn learn_one) {
        if (mask == live) {
            learn_one(together);
        } else {
            for (u32 m = mask & ~apart; m != 0; m &= m - 1) take_apart(static_cast<u32>(std::countr_zero(m)));
        }
        for (u32 m = mask & apart; m != 0; m &= m - 1) learn_one(*own[static_cast<u32>(std::countr_zero(m))]);
    }

    // Tells `into` what the lanes of `mask` know and did. The caller moves time on after the last lane's
    // tale.
    void tell(u32 mask, Clock& into, bool performed_only = false) const {
        const auto join = [&](const Clock& clock) {
            performed_only ? into.join_performed(clock) : into.join(clock);
        };
        if ((mask & ~apart) != 0) join(together);
        for (u32 m = mask & apart; m != 0; m &= m - 1) join(*own[static_cast<u32>(std::countr_zero(m))]);
        into.learn_warp(unit, did(mask), performed_only);
    }

    // bar.warp.sync: the lanes of `mask` know the same afterwards.
    void meet(u32 mask, u32 live) {
        if (mask == live) {
            if ((mask & ~apart) == 0) together = of(static_cast<u32>(std::countr_zero(mask)));
            for (u32 m = mask & apart; m != 0; m &= m - 1)
                together.join(*own[static_cast<u32>(std::countr_zero(m))]);
            together.learn_warp(unit, did(mask));
            apart = 0;
        } else {
            Clock all = of(static_cast<u32>(std::countr_zero(mask)));
            tell(mask, all);
            for (u32 m = mask; m != 0; m &= m - 1) {
                const u32 lane = static_cast<u32>(std::countr_zero(m));
                take_apart(lane);
                *own[lane] = all;
            }
        }
        ++now;
    }
    // A barrier of whole warps, at which every lane told `all`.
    void meet_at(const Clock& all) {
        together.join(all);
        apart = 0;
    }

  private:
    // Everything these lanes did until now.
    [[nodiscard]] KnownWarp did(u32 mask) const {
        if ((mask | absent) == kFullMask) return {.all = now, .some = 0, .lanes = 0};
        return {.all = 0, .some = now, .lanes = mask};
    }
    void take_apart(u32 lane) {
        if (apart >> lane & 1) return;
        if (!own[lane]) own[lane] = std::make_unique<Clock>();
        *own[lane] = together;
        apart |= 1u << lane;
    }
};

// A barrier whose phases follow each other: what was told since, and what waiters of completed phases learn.
struct BarrierClock {
    Clock told, learned;
    void reset(const Clock& zero) { told = learned = zero; }
    void complete() { learned.join(told); }
};

}  // namespace deep_gemm::emulator
