// RMS norm. The rules of op/model_ops.h hold.
#pragma once

#include "op/api.h"

#include <deep_gemm/spec/quantize.h>

namespace deep_gemm::op {

// A result also in a narrow form, as quantize() makes it of the stored (bf16) one; packed. Absent: not
// wanted.
//   fp8_128   codes fp8_e4m3 [t, d], scales fp32 [t, d / 128]
//   mxfp4     codes int8 [t, d / 2], scales int8 [t, d / 32]
//   nvfp4     codes int8 [t, d / 2], scales int8 [t, d / 16], global_scale fp32 [t]: a token's own
// hc_pre() knows ScaleRule::up alone where scales are powers of two; the rule of nvfp4 does not matter.
struct NarrowCopy {
    TensorView codes, scales;
    ScaleRule rule = ScaleRule::up;
    Recipe recipe = Recipe::fp8_128;
    TensorView global_scale = {};
    [[nodiscard]] bool present() const { return codes.present(); }
};

// y = x / sqrt(mean(x^2) + eps) * weight over the last dimension: x, y real [t, d] or [t, r, d] (y may be x);
// weight real [d] or absent. narrow: of rows [t, d] of bf16, d a multiple of 128.
struct RmsNormArguments {
    TensorView x, weight, y;
    float eps = 1e-6f;
    NarrowCopy narrow = {};
    void* stream = nullptr;
};
void rms_norm(const RmsNormArguments& arguments);

}  // namespace deep_gemm::op
