// From a GemmSpec to its kernel: the names that belong to it, and the request that jit/ builds.
#pragma once

#include "driver/device.h"
#include "jit/source.h"
#include "op/api.h"

#include <deep_gemm/spec/gemm.h>

#include <memory>
#include <span>
#include <string>

namespace deep_gemm::op {

struct LoadedKernel {
    const driver::Kernel* kernel = nullptr;
    std::shared_ptr<const void> keep_alive;  // what the kernel lives in
};

// The text that NVRTC compiles for it.
[[nodiscard]] jit::KernelSource source_of(const GemmSpec& spec);

[[nodiscard]] LoadedKernel load_gemm_kernel(driver::Device& device, const GemmSpec& spec);
// In parallel; each is loaded on the device when this returns.
void build_gemm_kernels(driver::Device& device, std::span<const GemmSpec> specs,
                        const WarmupProgress& progress);

}  // namespace deep_gemm::op
