// Launching a kernel of a family without a plan: look it up by its spec, give it its parameters.
#pragma once

#include "op/kernel_table.h"
#include "op/tensor_check.h"

#include <initializer_list>
#include <span>
#include <vector>

namespace deep_gemm::op {

[[nodiscard]] inline driver::MemoryRange reads(const TensorView& t) {
    return {address_of(t), bytes_spanned(t), false};
}
// Of weights, which nobody writes while launches that may overlap are on their way.
[[nodiscard]] inline driver::MemoryRange reads_constant(const TensorView& t) {
    return {address_of(t), bytes_spanned(t), false, true};
}
[[nodiscard]] inline driver::MemoryRange writes(const TensorView& t) {
    return {address_of(t), bytes_spanned(t), true};
}

// Clusters of up to sixteen CTAs.
[[nodiscard]] inline bool has_large_clusters(const Device& device) {
    return device.properties().max_cluster() >= 16;
}

struct LaunchShape {
    u32 grid = 0, threads = 0, cluster = 1;
    driver::CheckInputs check_inputs = nullptr;
};

// A launch that is checked and has its parameters, but no stream yet.
template <typename Spec, typename Params>
struct Prepared {
    Spec spec;
    Params params;
    u32 grid = 0;
    std::vector<driver::MemoryRange> memory;
};

// grid 0 launches nothing.
template <typename Params, typename Spec>
void launch(Device& device, const jit::KernelId& id, const Spec& spec, const LaunchShape& shape, void* stream,
            const Params& params, std::span<const driver::MemoryRange> memory) {
    if (shape.grid == 0) return;
    const driver::Kernel& kernel = kernel_for<Params>(device, id, spec);
    const driver::LaunchConfig config{.grid = {shape.grid, 1, 1},
                                      .cluster = {shape.cluster, 1, 1},
                                      .block = {shape.threads, 1, 1},
                                      .dynamic_smem_bytes = plan_smem(spec).bytes,
                                      .stream = static_cast<driver::Stream>(stream),
                                      .programmatic_launch = settings().pdl,
                                      .check_inputs = shape.check_inputs};
    device.launch(kernel, config, std::as_bytes(std::span(&params, 1)), memory);
}
template <typename Params, typename Spec>
void launch(Device& device, const jit::KernelId& id, const Spec& spec, const LaunchShape& shape, void* stream,
            const Params& params, std::initializer_list<driver::MemoryRange> memory) {
    launch(device, id, spec, shape, stream, params, std::span(memory.begin(), memory.size()));
}
template <typename Params, typename Spec>
void launch(Device& device, const jit::KernelId& id, u32 threads, void* stream,
            const Prepared<Spec, Params>& prepared) {
    launch(device, id, prepared.spec, {prepared.grid, threads}, stream, prepared.params, prepared.memory);
}

}  // namespace deep_gemm::op
