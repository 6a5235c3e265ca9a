// Two ways to run a grid. Of several faults the one of the lowest cluster is reported, so the message is
// deterministic too.
#include "emulator/sched/grid.h"

#include "base/error.h"
#include "emulator/sched/host_pool.h"
#include "emulator/sched/scheduler.h"
#include "emulator/sched/setup.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <thread>

namespace deep_gemm::emulator {
namespace {

void check_livelock(const Cluster& c, u64 idle) {
    DG_CHECK(idle <= c.launch->options.step_budget, emulator,
             "emulator: kernel {}: livelock (seed {}, cluster {}): {} warp instructions without a store, "
             "arrival or exit{}",
             c.launch->program->name, c.launch->options.seed, c.number, idle, describe_waits(c));
}

void run_alone(Cluster& c) {
    u64 progress = 0, since = 0;
    while (step_cluster(c)) {
        if (c.progress != progress) progress = c.progress, since = c.now;
        check_livelock(c, c.now - since);
    }
}

u32 num_clusters(const Launch& l) {
    return l.grid.x * l.grid.y * l.grid.z / l.cluster_size();
}

void run_parallel(const Launch& launch, u32 threads) {
    const u32 total = num_clusters(launch);
    std::atomic<u32> next{0}, first_failed{total};
    std::mutex lock;
    std::exception_ptr failure;
    HostPool& pool = HostPool::instance();
    pool.run(std::min(threads, total) - 1, [&] {
        std::unique_ptr<Cluster> cluster;
        for (u32 number = next++; number < total && number <= first_failed; number = next++) {
            try {
                if (!cluster) cluster = pool.take();
                set_up_cluster(*cluster, launch, number);
                run_alone(*cluster);
            } catch (...) {
                const std::lock_guard guard(lock);
                if (number < first_failed) first_failed = number, failure = std::current_exception();
            }
        }
        if (cluster) pool.give(std::move(cluster));
    });
    if (failure) std::rethrow_exception(failure);
}

// All resident clusters take turns by seed; a finished one makes room for the next.
void run_interleaved(const Launch& launch, u32 resident) {
    const u32 total = num_clusters(launch);
    Rng rng(launch.options.seed);
    HostPool& pool = HostPool::instance();
    std::vector<std::unique_ptr<Cluster>> running;
    u32 next = 0;
    u64 idle = 0;
    while (next < total || !running.empty()) {
        while (next < total && running.size() < resident) {
            running.push_back(pool.take());
            set_up_cluster(*running.back(), launch, next++);
        }
        const u32 pick = rng.below(static_cast<u32>(running.size()));
        Cluster& c = *running[pick];
        const u64 before = c.progress, started = c.now;
        if (!step_cluster(c)) {
            pool.give(std::move(running[pick]));
            running.erase(running.begin() + pick);
            continue;
        }
        idle = c.progress != before ? 0 : idle + (c.now - started);
        check_livelock(c, idle);
    }
}

}  // namespace

void run_grid(const Launch& launch, u32 resident_clusters) {
    if (launch.program->communicates && num_clusters(launch) > 1) {
        run_interleaved(launch, resident_clusters);
        return;
    }
    const u32 cores = std::max(std::thread::hardware_concurrency(), 1u);
    run_parallel(launch, launch.options.threads != 0 ? launch.options.threads : cores);
}

}  // namespace deep_gemm::emulator
