// From a launch call to a running grid: the emulated GPU's limits, occupancy, and the memory a kernel may
// touch.
#pragma once

#include "emulator/emulated_module.h"
#include "emulator/options.h"

namespace deep_gemm::emulator {

struct Model {
    driver::DeviceProperties properties;
    u32 smem_per_sm = 0, threads_per_sm = 0, blocks_per_sm = 0;
};

[[nodiscard]] Model find_model(std::string_view arch);  // "sm_90a"

// Throws Error(ErrorKind::driver) for what cuLaunchKernelEx refuses, Error(ErrorKind::value) for parameters
// that are not the kernel's.
void check_launch(const Model& model, const EmulatedKernel& kernel, const driver::LaunchConfig& config,
                  size_t param_bytes);
[[nodiscard]] u32 count_active_clusters(const Model& model, const EmulatedKernel& kernel,
                                        const driver::LaunchConfig& config);
void run_launch(const Model& model, const Options& options, const EmulatedKernel& kernel,
                const driver::LaunchConfig& config, std::span<const std::byte> params,
                std::span<const driver::MemoryRange> memory, std::span<const driver::MemoryRange> allocations,
                u64 grid_id);

}  // namespace deep_gemm::emulator
