// Weights of projections and experts: checks, and the view that kernels get.
#pragma once

#include "op/model_check.h"

#include <deep_gemm/spec/project.h>

namespace deep_gemm::op {

struct CheckedWeight {
    WeightView view;
    Format format = Format::none, scale_format = Format::none;
    u32 count = 0, n = 0, k = 0;
};

// w is [count, n, k] (or [n, k]: count = 1) and its scales as project.h says.
[[nodiscard]] CheckedWeight check_weight(ModelChecks& checks, const char* name, TensorView w,
                                         const char* scale_name, TensorView scale);

// x [rows, inner, k] and its scales (rank 3; scales are absent unless x is FP8).
void check_activation(ModelChecks& checks, const char* name, const TensorView& x, const char* scale_name,
                      const TensorView& scale, const CheckedWeight& w);

}  // namespace deep_gemm::op
