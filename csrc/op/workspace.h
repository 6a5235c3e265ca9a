// Memory that an operation needs between its kernels: one buffer for each device and stream, in the stream's
// order. It grows and is never freed, so that captured graphs may keep its address: graphs captured on one
// stream share its buffer, and must not run at the same time.
#pragma once

#include "driver/device.h"

#include <mutex>

namespace deep_gemm::op {

// The buffer, and the right to use it. Held from before the launch that fills it until after the one that
// reads it: another thread's work on the same stream comes before both or after both.
struct WorkspaceLease {
    u64 address = 0;
    std::unique_lock<std::mutex> in_use;
};

// At least `bytes`, 256-byte aligned, for work on `stream`. Waits for another thread's lease of it; a thread
// holds one at a time. The first request of a size allocates, during a capture as well.
[[nodiscard]] WorkspaceLease workspace(driver::Device& device, driver::Stream stream, u64 bytes);

}  // namespace deep_gemm::op
