// What launches leave for the next one: host threads, and clusters with the memory of their CTAs. Starting
// threads and paging in fresh memory would cost a small launch more than running it.
//
// Nothing exists before the first launch. A process that forked begins with a pool of its own: it has none of
// the parent's threads, and whoever held the parent's lock is not there to release it. Threads are never
// joined: they wait for work until the process ends.
#pragma once

#include "emulator/exec/state.h"

#include <sys/types.h>

#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>

namespace deep_gemm::emulator {

class HostPool {
  public:
    static HostPool& instance();

    // A cluster of some earlier launch, or a new one. set_up_cluster() makes both the same.
    [[nodiscard]] std::unique_ptr<Cluster> take();
    void give(std::unique_ptr<Cluster> cluster);

    // Calls work() here and on up to `helpers` other threads; returns when all calls have. `work` does not
    // throw, and is complete when one call returns: a helper that comes late is not waited for.
    void run(u32 helpers, const std::function<void()>& work);

  private:
    struct Job {
        const std::function<void()>* work = nullptr;
        u32 wanted = 0, running = 0;
        std::condition_variable done;
    };
    HostPool();
    void start_threads(u32 number);
    void help();

    const pid_t process_;
    const size_t max_kept_;
    std::mutex mutex_;
    std::condition_variable wake_;
    std::deque<Job*> jobs_;  // that want helpers
    u32 num_threads_ = 0;
    std::vector<std::unique_ptr<Cluster>> kept_;
};

}  // namespace deep_gemm::emulator
