// index_select() and a projection of the low-rank query, of few rows in one launch. The rules of op/model_ops.h hold.
#pragma once

#include "op/index_select.h"
#include "op/norm.h"
#include "op/project.h"

namespace deep_gemm::op {

// rms_norm(), project() of what it leaves in FP8, and index_select(): the same bits. The normed rows themselves are not
// stored.
//   norm    x [t, k] and what becomes of it; narrow: fp8_128, scales rounded up
//   matrix  fp8_e4m3 [n, k], with y [t, n]
struct QueryIndexArguments {
    RmsNormArguments norm;
    ProjectMatrix matrix;
    IndexSelectArguments selection;
};
// Whether there is a kernel for these (spec/project_staged.h, op/index_select.h) and room for its clusters.
[[nodiscard]] bool query_index_takes(const QueryIndexArguments& arguments);
void query_index(const QueryIndexArguments& arguments);

}  // namespace deep_gemm::op
