#include "op/workspace.h"

#include "base/process_local.h"

#include <algorithm>
#include <map>
#include <mutex>
#include <utility>

namespace deep_gemm::op {

namespace {

constexpr u64 kSmallestBytes = u64{1} << 20;

struct Region {
    u64 address = 0, bytes = 0;
};

struct Regions {
    std::mutex mutex;
    std::map<std::pair<driver::Device*, driver::Stream>, Region> of;
};

}  // namespace

u64 workspace(driver::Device& device, driver::Stream stream, u64 bytes) {
    Regions& all = process_local<Regions>();
    const std::lock_guard lock(all.mutex);
    Region& region = all.of[{&device, stream}];
    if (region.bytes < bytes) {
        const u64 wanted = std::max({bytes, 2 * region.bytes, kSmallestBytes});
        region = {device.allocate(wanted), wanted};
    }
    return region.address;
}

}  // namespace deep_gemm::op
