// The experts of few tokens, by products of vectors. The rules of op/model_ops.h hold.
#pragma once

#include "op/api.h"

namespace deep_gemm::op {

// mid[:, j] = silu(min(x w1[e]^T, limit)) * clamp(x w3[e]^T, -limit, limit) * weights[:, j],
// e = experts[:, j].
//   x         [t, d] as in project, x_scale too
//   w1, w3    [e, i, d] (gate, up), as in project with groups; scales w1_scale, w3_scale. One buffer
//             [e, 2, i, d] is two views with stride 2 i d.
//   experts   int32 [t, j]; an id outside [0, e) leaves zeros. Absent (the shared expert): j = 1, expert 0
//   weights   fp32 [t, j] or absent (1)
//   mid       real [t, j, i]
//   limit     0: no clamp (Qwen3)
struct ExpertUpArguments {
    TensorView x, x_scale, w1, w1_scale, w3, w3_scale, experts, weights, mid;
    float limit = 0;
    void* stream = nullptr;
};
void expert_up(const ExpertUpArguments& arguments);

// y = add + sum over j, in order, of mid[:, j] w2[experts[:, j]]^T. Ids outside [0, e) add nothing.
//   mid       [t, j, i] real, or fp8_e4m3 with mid_scale fp32 [t, j, i / 128]
//   w2        [e, n, i] and w2_scale as w and w_scale of project with groups
//   weights   fp32 [t, j] or absent: applied to each expert's result (what was not applied before w2)
//   y, add    real [t, n]; add may be absent or y itself
struct ExpertDownArguments {
    TensorView mid, mid_scale, w2, w2_scale, experts, weights, y, add;
    void* stream = nullptr;
};
void expert_down(const ExpertDownArguments& arguments);

}  // namespace deep_gemm::op
