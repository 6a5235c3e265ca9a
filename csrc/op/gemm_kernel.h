// From a GemmSpec to its kernel: the names that belong to it, and the request that jit/ builds.
#pragma once

#include "driver/device.h"
#include "jit/source.h"
#include "op/api.h"
#include "plan/gemm.h"

#include <deep_gemm/spec/gemm.h>

#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace deep_gemm::op {

struct LoadedKernel {
    const driver::Kernel* kernel = nullptr;
    std::shared_ptr<const void> keep_alive;  // what the kernel lives in
};

// A problem in words as a call would plan it: on as many SMs as the settings say, where it says nothing.
[[nodiscard]] plan::GemmProblem problem_of(std::string_view text);

// The text that NVRTC compiles for it.
[[nodiscard]] jit::KernelSource source_of(const GemmSpec& spec);

[[nodiscard]] LoadedKernel load_gemm_kernel(driver::Device& device, const GemmSpec& spec);
// In parallel; each is loaded on the device when this returns.
void build_gemm_kernels(driver::Device& device, std::span<const GemmSpec> specs,
                        const WarmupProgress& progress);

}  // namespace deep_gemm::op
