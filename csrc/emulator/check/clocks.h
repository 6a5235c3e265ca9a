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

// Mostly nobody knows of a part of a warp: then a join is one loop over times, and `parts_` is not looked at.
class Clock {
  public:
    Clock() = default;
    Clock(const Clock& other) { *this = other; }
    Clock& operator=(const Clock& other) {
        num_warps_ = other.num_warps_;
        times_ = other.times_;
        has_parts_ = other.has_parts_;
        if (has_parts_) parts_ = other.parts_;
        return *this;
    }
    void reset(u32 num_warps, u32 num_engines) {
        num_warps_ = num_warps;
        times_.assign(2 * num_warps + num_engines, 0);
        has_parts_ = false;
    }
    void clear() { times_.clear(); }
    [[nodiscard]] bool empty() const { return times_.empty(); }
    void join(const Clock& other) { join_from(0, other); }
    void join_performed(const Clock& other) { join_from(num_warps_, other); }
    void learn_warp(u32 warp, const KnownWarp& known, bool performed_only = false) {
        learn(num_warps_ + warp, known);
        if (!performed_only) learn(warp, known);
    }
    void learn_engine(u32 engine, Time time) {
        Time& known = times_[2 * num_warps_ + engine];
        known = std::max(known, time);
    }

    [[nodiscard]] KnownWarp visible(u32 warp) const { return known(warp); }
    [[nodiscard]] KnownWarp performed(u32 warp) const { return known(num_warps_ + warp); }
    [[nodiscard]] Time engine(u32 engine) const { return times_[2 * num_warps_ + engine]; }

  private:
    struct Part {
        Time some = 0;
        u32 lanes = 0;
    };
    [[nodiscard]] KnownWarp known(size_t i) const {
        return {times_[i], has_parts_ ? parts_[i].some : 0, has_parts_ ? parts_[i].lanes : 0};
    }
    void learn(size_t i, const KnownWarp& news) {
        KnownWarp all = known(i);
        all.join(news);
        times_[i] = all.all;
        if (all.some != 0 && !has_parts_) {
            has_parts_ = true;
            parts_.assign(2 * num_warps_, {});
        }
        if (has_parts_) parts_[i] = {all.some, all.lanes};
    }
    void join_from(size_t begin, const Clock& other) {
        if (has_parts_ || other.has_parts_) {
            for (size_t i = begin; i < 2 * num_warps_; ++i) learn(i, other.known(i));
            begin = 2 * num_warps_;
            // Without parts, `parts_` is what an earlier use of this clock left.
            has_parts_ = has_parts_ &&
                         std::any_of(parts_.begin(), parts_.end(), [](const Part& p) { return p.some != 0; });
        }
        Time* mine = times_.data();
        const Time* theirs = other.times_.data();
        const size_t end = times_.size();
#pragma GCC ivdep
        for (size_t i = begin; i < end; ++i) mine[i] = mine[i] > theirs[i] ? mine[i] : theirs[i];
    }

    size_t num_warps_ = 0;
    std::vector<Time> times_;  // by warp: `all` of what is visible, of what is performed; then by engine
    std::vector<Part> parts_;  // by warp likewise: `some` and `lanes`, if has_parts_
    bool has_parts_ = false;
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
    void clear() { told.clear(); }
    [[nodiscard]] bool empty() const { return told.empty(); }
    void complete() { learned.join(told); }
};

}  // namespace deep_gemm::emulator
