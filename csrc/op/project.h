// Projections. To quantise x: deep_gemm::quantize (op/quantize.h), recipe fp8_128.
// The rules of op/model_ops.h hold.
#pragma once

#include "op/api.h"

namespace deep_gemm::op {

// y = add + x w^T. With groups: y[:, g] = add[:, g] + x[:, g] w[g]^T.
//   x        [t, k] or [t, g, k]: real; or fp8_e4m3 with x_scale fp32 [t, k / 128] or [t, g, k / 128]
//   w        [n, k] or [g, n, k]:
//              fp32, bf16   any k that is a multiple of 4; no w_scale
//              fp8_e4m3     k multiple of 128, n any; w_scale [ceil(n / 128), k / 128] (with groups
//                           [g, ...]), fp32 or fp8_ue8m0
//              fp4_e2m1     as int8 [n, k / 2], the bytes of checkpoints, k multiple of 128; w_scale
//                           fp8_ue8m0 [n, k / 32]
//   y, add   real [t, n] or [t, g, n]; add may be absent or y itself
// w and w_scale are read before preceding launches of the stream have finished: no launch may write them.
// fp8 x goes with fp8 or fp4 w only (the products of a scale's columns are summed, then scaled). Rows of x
// and w start at multiples of four elements.
// round_x: rows of bf16 x meet FP8 w as quantize (fp8_128, scales rounded up) would leave them, for up to
// project_rounds_up_to() rows whose start is aligned to 16 bytes; more are better rounded once, before.
struct ProjectArguments {
    TensorView x, x_scale, w, w_scale, y, add;
    bool round_x = false;
    void* stream = nullptr;
};
void project(const ProjectArguments& arguments);
[[nodiscard]] i64 project_rounds_up_to();

// The same for several matrices that meet the same x [t, k]: one launch for two kinds (formats of w and y) of
// few rows, where tensor cores serve them (bf16 or fp8 x with bf16 or fp8 w, k a multiple of 128), else one
// each.
//   x, x_scale  what matrices with a w_scale meet
//   wide_x      what the others meet; absent: x
struct ProjectMatrix {
    TensorView w, w_scale, y;
};
struct ProjectManyArguments {
    TensorView x, x_scale, wide_x;
    std::span<const ProjectMatrix> matrices;
    void* stream = nullptr;
};
void project_many(const ProjectManyArguments& arguments);

}  // namespace deep_gemm::op
