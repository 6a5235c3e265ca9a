// A value per process: made on first use, made anew in a forked child, never destroyed. The child must not
// touch what the parent built: its mutexes may be held by threads that do not exist here, its GPU handles
// belong to the parent.
#pragma once

#include <atomic>
#include <memory>

namespace deep_gemm {

// How many forks lie between this process and the first one that asked.
[[nodiscard]] unsigned fork_generation();

template <typename T>
T& process_local() {
    struct Slot {
        unsigned generation = fork_generation();
        T value;
    };
    static std::atomic<Slot*> current{nullptr};
    Slot* seen = current.load(std::memory_order_acquire);
    while (!seen || seen->generation != fork_generation()) {
        auto fresh = std::make_unique<Slot>();
        if (current.compare_exchange_strong(seen, fresh.get(), std::memory_order_acq_rel))
            return fresh.release()->value;
    }
    return seen->value;
}

}  // namespace deep_gemm
