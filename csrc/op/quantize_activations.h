// The quantisation of x for the small-batch kernels, and how a kernel of theirs is launched.
#pragma once

#include "op/linear_check.h"

namespace deep_gemm::op {

[[nodiscard]] bool dependent_launch(const Device& device);
[[nodiscard]] driver::LaunchConfig launch_config(const Device& device, driver::Dim3 grid, u32 threads,
                                                 u32 smem, driver::Stream stream);

// Where the narrow elements and their scales go.
struct Quantized {
    u64 values, scales;
    u64 values_stride, scales_stride;  // in elements
};

void launch_quantize(Device& device, const RowsView& x, Format format, Activation to, const Quantized& out,
                     driver::Stream stream);

}  // namespace deep_gemm::op
