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

struct StreamMemory {
    std::mutex in_use;
    u64 address = 0, bytes = 0;
};

struct StreamMemories {
    std::mutex mutex;  // of the map, not of what it holds
    std::map<std::tuple<driver::Device*, driver::Stream, u64>, StreamMemory> of;  // grows only
};

// Never that of another thread, past ones included: their streams may still be at work.
u64 thread_number() {
    static std::atomic<u64> next{1};
    thread_local const u64 number = next.fetch_add(1, std::memory_order_relaxed);
    return number;
}

StreamMemory& memory_of(driver::Device& device, driver::Stream stream) {
    const u64 thread = reinterpret_cast<u64>(stream) == kPerThreadStream ? thread_number() : 0;
    StreamMemories& all = process_local<StreamMemories>();
    const std::lock_guard lock(all.mutex);
    return all.of[{&device, stream, thread}];
}

}  // namespace

WorkspaceLease workspace(driver::Device& device, driver::Stream stream, u64 bytes) {
    StreamMemory& memory = memory_of(device, stream);
    std::unique_lock in_use(memory.in_use);
    if (memory.bytes < bytes) {
        const u64 wanted = std::max({bytes, 2 * memory.bytes, kSmallestBytes});
        memory.address = device.allocate(wanted);
        memory.bytes = wanted;
    }
    return {.address = memory.address, .in_use = std::move(in_use)};
}

}  // namespace deep_gemm::op
