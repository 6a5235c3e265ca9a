// Weights that a launch brings to L2 (spec/ahead.h).
#pragma once

#include "op/model_ops.h"

#include <deep_gemm/spec/ahead.h>

namespace deep_gemm::op {

// Of the views, those that fit the table; blocks are a multiple of `cluster`, and 0 where there is nothing.
[[nodiscard]] Ahead ahead_of(const driver::Device& device, AheadViews views, u32 cluster = 1);

}  // namespace deep_gemm::op
