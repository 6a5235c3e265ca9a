// The deadlock report: each waiting lane group, what it waits for, and the state of that thing.
#include "emulator/async/mbarrier.h"
#include "emulator/sched/scheduler.h"

#include <fmt/format.h>

namespace deep_gemm::emulator {
namespace {

constexpr u32 kMaxLines = 64;

std::string describe_wait(const Cta& cta, const Warp& w, const Wait& wait) {
    switch (wait.kind) {
        case WaitKind::mbarrier: {
            u64 word;
            std::memcpy(&word, cta.smem.data() + wait.address, sizeof word);
            return fmt::format("waits for parity {} of the mbarrier at shared offset {} ({})", wait.value,
                               wait.address, mbarrier::describe(word));
        }
        case WaitKind::named_barrier: {
            const NamedBarrier& b = cta.barriers[wait.address];
            return fmt::format("waits at barrier {}: {} of {} threads arrived", wait.address, b.arrived,
                               b.expected != 0 ? b.expected : cta.live_warps * kLanes);
        }
        case WaitKind::cluster_barrier:
            return fmt::format("waits at the cluster barrier: {} of {} threads arrived",
                               cta.cluster->barrier_arrived, cta.cluster->live_threads);
        case WaitKind::reconvergence:
            return fmt::format("waits for lanes {:#010x} of its warp to arrive at this instruction",
                               wait.mask);
        case WaitKind::wgmma: {
            const Warpgroup& group = cta.warpgroups[w.id / 4];
            return fmt::format(
                "waits for wgmma groups (at most {} pending): {} operations executed, this warp issued {}; "
                "the other "
                "warps of the warpgroup must issue the same",
                wait.value, group.executed, w.tensor_issued);
        }
        case WaitKind::cp_async:
            return fmt::format("waits for cp.async groups, {} copies in flight", w.copies_in_flight.size());
        case WaitKind::bulk_group: return "waits for bulk groups";
        case WaitKind::registers:
            return fmt::format("waits for {} registers per thread; the pool has {} registers left",
                               wait.value, cta.register_pool);
        case WaitKind::none: break;
    }
    return "does not move";
}

}  // namespace

std::string describe_waits(const Cluster& c) {
    std::string out;
    u32 lines = 0;
    for (const auto& cta : c.ctas) {
        for (const Warp& w : cta->warps) {
            if (w.state == WarpState::exited) continue;
            for (const Wait& wait : w.waits) {
                if (++lines > kMaxLines) return out + "\n  ...";
                out += fmt::format("\n  CTA ({},{},{}) warp {} {} at {}", cta->index[0], cta->index[1],
                                   cta->index[2], w.id, describe_wait(*cta, w, wait),
                                   describe_line(*w.program, wait.pc));
            }
        }
    }
    return out;
}

}  // namespace deep_gemm::emulator
