// Whether a device has room for the clusters of a kernel. A cluster's CTAs run at once on one group of SMs; how
// many SMs a group has differs from product to product, and parts of a device may have small groups alone.
#pragma once

#include "op/kernel_table.h"

namespace deep_gemm::op {

struct ClusterShape {
    u32 ctas = 1, threads = 0, smem_bytes = 0;
};

// Clusters that run at once. Asks the device once for each kernel and number of CTAs.
[[nodiscard]] u32 cluster_room(driver::Device& device, const driver::Kernel& kernel,
                               const ClusterShape& shape);

// Of the kernel `id` of `spec`, which is compiled the first time.
template <typename Params, typename Spec>
[[nodiscard]] u32 cluster_room(driver::Device& device, const jit::KernelId& id, const Spec& spec, u32 ctas,
                               u32 threads) {
    return cluster_room(device, kernel_for<Params>(device, id, spec),
                        {.ctas = ctas, .threads = threads, .smem_bytes = plan_smem(spec).bytes});
}
template <typename Params, typename Spec>
[[nodiscard]] bool has_cluster_room(driver::Device& device, const jit::KernelId& id, const Spec& spec,
                                    u32 ctas, u32 threads) {
    return cluster_room<Params>(device, id, spec, ctas, threads) > 0;
}

}  // namespace deep_gemm::op
