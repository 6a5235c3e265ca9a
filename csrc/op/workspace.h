// Memory that an operation needs between its kernels: one buffer for each device and stream, in the stream's
// order. It grows and is never freed, so that captured graphs may keep its address.
#pragma once

#include "driver/device.h"

namespace deep_gemm::op {

// At least `bytes`, 256-byte aligned, for work on `stream` until the stream's next request. The first request
// of a size allocates: make it before a capture.
[[nodiscard]] u64 workspace(driver::Device& device, driver::Stream stream, u64 bytes);

}  // namespace deep_gemm::op
