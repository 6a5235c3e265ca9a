#include "base/process_local.h"

#include <pthread.h>

namespace deep_gemm {

namespace {

std::atomic<unsigned> generation{0};

void count_fork() {
    generation.fetch_add(1, std::memory_order_relaxed);
}

}  // namespace

unsigned fork_generation() {
    static const int registered = ::pthread_atfork(nullptr, nullptr, count_fork);
    (void)registered;
    return generation.load(std::memory_order_relaxed);
}

}  // namespace deep_gemm
