// Threads that wait for jobs, and a list of clusters.
#include "emulator/sched/host_pool.h"

#include "emulator/exec/races.h"

#include <unistd.h>

#include <atomic>
#include <system_error>
#include <thread>

namespace deep_gemm::emulator {
namespace {

constexpr size_t kMinKept = 8;  // interleaved clusters are more than cores

}  // namespace

HostPool::HostPool()
    : process_(getpid()), max_kept_(std::max<size_t>(std::thread::hardware_concurrency(), kMinKept)) {}

HostPool& HostPool::instance() {
    static std::atomic<HostPool*> current{nullptr};  // never deleted: its threads use it to the end
    HostPool* pool = current;
    if (pool != nullptr && pool->process_ == getpid()) return *pool;
    std::unique_ptr<HostPool> fresh(new HostPool);
    if (current.compare_exchange_strong(pool, fresh.get())) return *fresh.release();
    return *pool;
}

std::unique_ptr<Cluster> HostPool::take() {
    const std::lock_guard lock(mutex_);
    if (kept_.empty()) return std::make_unique<Cluster>();
    std::unique_ptr<Cluster> cluster = std::move(kept_.back());
    kept_.pop_back();
    return cluster;
}

void HostPool::give(std::unique_ptr<Cluster> cluster) {
    cluster->events.clear();  // of a launch that failed
    const std::lock_guard lock(mutex_);
    if (kept_.size() < max_kept_) kept_.push_back(std::move(cluster));
}

void HostPool::run(u32 helpers, const std::function<void()>& work) {
    if (helpers == 0) return work();
    Job job;
    job.work = &work;
    job.wanted = helpers;
    {
        const std::lock_guard lock(mutex_);
        start_threads(helpers);
        jobs_.push_back(&job);
    }
    wake_.notify_all();
    work();
    std::unique_lock lock(mutex_);
    std::erase(jobs_, &job);
    job.done.wait(lock, [&] { return job.running == 0; });
}

// A host that has no more threads to give makes a launch slower, not wrong.
void HostPool::start_threads(u32 number) {
    try {
        for (; num_threads_ < number; ++num_threads_) std::thread([this] { help(); }).detach();
    } catch (const std::system_error&) {
        return;
    }
}

void HostPool::help() {
    std::unique_lock lock(mutex_);
    for (;;) {
        wake_.wait(lock, [&] { return !jobs_.empty(); });
        Job& job = *jobs_.front();
        if (--job.wanted == 0) jobs_.pop_front();
        ++job.running;
        lock.unlock();
        (*job.work)();
        lock.lock();
        if (--job.running == 0) job.done.notify_all();
    }
}

}  // namespace deep_gemm::emulator
