// CudaDevice: the Device interface over libcuda, one object per GPU. It uses the GPU's primary context (the
// one torch and CuPy use) and never creates another; whatever context the caller had current is current again
// afterwards.
#pragma once

#include "driver/device.h"

namespace deep_gemm::driver {

[[nodiscard]] std::unique_ptr<Device> make_cuda_device(u32 ordinal);

// The GPU of the calling thread's current context, else 0.
[[nodiscard]] u32 current_cuda_ordinal();

}  // namespace deep_gemm::driver
