#include "op/cluster_room.h"

#include "base/process_local.h"

#include <map>
#include <mutex>
#include <utility>

namespace deep_gemm::op {

namespace {

// Kernels stay as long as the process (KernelTable).
struct ClusterRoom {
    std::mutex mutex;
    std::map<std::pair<const driver::Kernel*, u32>, u32> found;
};

}  // namespace

u32 cluster_room(driver::Device& device, const driver::Kernel& kernel, const ClusterShape& shape) {
    auto& room = process_local<ClusterRoom>();
    const std::lock_guard lock(room.mutex);
    const std::pair key(&kernel, shape.ctas);
    if (const auto at = room.found.find(key); at != room.found.end()) return at->second;
    const driver::LaunchConfig config{.grid = {shape.ctas, 1, 1},
                                      .cluster = {shape.ctas, 1, 1},
                                      .block = {shape.threads, 1, 1},
                                      .dynamic_smem_bytes = shape.smem_bytes};
    return room.found[key] = device.max_active_clusters(kernel, config);
}

}  // namespace deep_gemm::op
