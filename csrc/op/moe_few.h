// A mixture of FP8 experts for few tokens (spec/moe_few.h): two launches, with the bits of fused_moe()'s six
// where those have no sum cut in parts.
#pragma once

#include "op/fused_moe.h"

namespace deep_gemm::op {

// Whether there are kernels for this shape, on this device.
[[nodiscard]] bool serves_few(const driver::Device& device, const MoeShape& shape);

// Arguments that fused_moe() has checked; mid is bf16 [T * top_k, intermediate].
void run_moe_few(Device& device, const FusedMoeArguments& a, const MoeShape& shape, const TensorView& mid);

}  // namespace deep_gemm::op
