// Asynchronous completions: what lands later, and when. Delays are log-uniform, because bugs hide from
// uniform ones.
#pragma once

#include "emulator/exec/fault.h"

#include <algorithm>
#include <cmath>

namespace deep_gemm::emulator {

constexpr u64 kLazyDelay = u64{1} << 40;
constexpr double kMaxDelayLog2 = 13;

[[nodiscard]] inline u64 random_delay(Cluster& c) {
    switch (c.launch->options.latency) {
        case Latency::eager: return 0;
        case Latency::lazy: return kLazyDelay;
        case Latency::random: break;
    }
    const double unit = static_cast<double>(c.rng.next() >> 11) * 0x1p-53;
    return static_cast<u64>(std::exp2(unit * kMaxDelayLog2));
}

struct LaterEvent {
    bool operator()(const Event& x, const Event& y) const {
        return x.due != y.due ? x.due > y.due : x.order > y.order;
    }
};

inline void schedule_at(Cluster& c, u64 due, const Place& place, std::function<void()> run) {
    c.events.push_back({due, c.num_events++, place, std::move(run)});
    std::push_heap(c.events.begin(), c.events.end(), LaterEvent{});
}
inline void schedule(Cluster& c, const Place& place, std::function<void()> run) {
    schedule_at(c, c.now + random_delay(c), place, std::move(run));
}

}  // namespace deep_gemm::emulator
