// Weights that a launch brings to L2 (spec/ahead.h).
#pragma once

#include "op/api.h"

#include <deep_gemm/spec/ahead.h>

#include <span>

namespace deep_gemm::op {

// Weights that a launch brings to L2 for later ones while it has little to read itself; packed, of any shape.
// A hint: nothing depends on it. No launch may write them.
using AheadViews = std::span<const TensorView>;

// Of the views, those that fit the table; blocks are a multiple of `cluster`, and 0 where there is nothing.
[[nodiscard]] Ahead ahead_of(const driver::Device& device, AheadViews views, u32 cluster = 1);

}  // namespace deep_gemm::op
