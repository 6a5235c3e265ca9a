// RMS norm. The rules of op/model_ops.h hold.
#pragma once

#include "op/api.h"

#include <deep_gemm/spec/quantize.h>

namespace deep_gemm::op {

// A result also in FP8, as quantize() makes it of the stored (bf16) one: codes fp8_e4m3 [t, d], scales fp32
// [t, d / 128], packed. Absent: not wanted. hc_pre() knows ScaleRule::up alone.
struct Fp8Copy {
    TensorView codes, scales;
    ScaleRule rule = ScaleRule::up;
    [[nodiscard]] bool present() const { return codes.present(); }
};

// y = x / sqrt(mean(x^2) + eps) * weight over the last dimension: x, y real [t, d] or [t, r, d] (y may be x);
// weight real [d] or absent. fp8: of rows [t, d] of bf16, d a multiple of 128.
struct RmsNormArguments {
    TensorView x, weight, y;
    float eps = 1e-6f;
    Fp8Copy fp8 = {};
    void* stream = nullptr;
};
void rms_norm(const RmsNormArguments& arguments);

}  // namespace deep_gemm::op
