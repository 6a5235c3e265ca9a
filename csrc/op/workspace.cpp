#include "op/workspace.h"

#include "base/process_local.h"

#include <algorithm>
#include <atomic>
#include <map>
#include <tuple>

namespace deep_gemm::op {

namespace {

constexpr u64 kSmallestBytes = u64{1} << 20;
constexpr u64 kPerThreadStream = 2;  // cudaStreamPerThread: one handle, another stream in every thread

struct Region {
    std::mutex in_use;
    u64 address = 0, bytes = 0;
};

struct Regions {
    std::mutex mutex;  // of the map, not of what it holds
    std::map<std::tuple<driver::Device*, driver::Stream, u64>, Region> of;  // grows only
};

// Never that of another thread, past ones included: their streams may still be at work.
u64 thread_number() {
    static std::atomic<u64> next{1};
    thread_local const u64 number = next.fetch_add(1, std::memory_order_relaxed);
    return number;
}

Region& region_of(driver::Device& device, driver::Stream stream) {
    const u64 thread = reinterpret_cast<u64>(stream) == kPerThreadStream ? thread_number() : 0;
    Regions& all = process_local<Regions>();
    const std::lock_guard lock(all.mutex);
    return all.of[{&device, stream, thread}];
}

}  // namespace

WorkspaceLease workspace(driver::Device& device, driver::Stream stream, u64 bytes) {
    Region& region = region_of(device, stream);
    std::unique_lock in_use(region.in_use);
    if (region.bytes < bytes) {
        const u64 wanted = std::max({bytes, 2 * region.bytes, kSmallestBytes});
        region.address = device.allocate(wanted);
        region.bytes = wanted;
    }
    return {.address = region.address, .in_use = std::move(in_use)};
}

}  // namespace deep_gemm::op
