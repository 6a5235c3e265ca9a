// Hyper-connections: h residual streams, h = 2 or 4, and what mixes them. The rules of op/model_ops.h hold.
#pragma once

#include "op/norm.h"

namespace deep_gemm::op {

// From streams to a sublayer's input and the coefficients that put its output back.
//   x       real [t, h, d], d multiple of 4
//   fn      fp32 [(2 + h) h, h d]; base fp32 [(2 + h) h]; scale fp32 [3]
//   weight  real [d] or absent: RMS norm of the input folded in; absent: no norm at all
//   y       real [t, d] out; post fp32 [t, h] out; comb fp32 [t, h, h] out (source stream first)
//   add     real [t, d] or absent: the output of the sublayer before, which x takes in first, in place, as
//           hc_post does with what post and comb hold at the start
//   narrow  of bf16 y, d a multiple of 1024
// fn, base, scale and weight may be read before the launch before has ended: no launch may write them meanwhile.
struct HcPreArguments {
    TensorView x, fn, base, scale, weight, y, post, comb, add = {};
    NarrowCopy narrow = {};
    u32 sinkhorn_iterations = 20;
    float hc_eps = 1e-6f, rms_eps = 1e-6f;
    void* stream = nullptr;
};
void hc_pre(const HcPreArguments& arguments);

// out[:, b] = post[:, b] y + sum over a of comb[:, a, b] x[:, a]. y real [t, d]; x, out real [t, h, d], out
// may be x.
struct HcPostArguments {
    TensorView x, y, post, comb, out;
    void* stream = nullptr;
};
void hc_post(const HcPostArguments& arguments);

// The streams' weighted sum before the output head, and the RMS norm that follows it.
//   fn fp32 [h, h d]; base fp32 [h]; scale fp32 [1]; weight real [d] or absent (no norm); y real [t, d]
struct HcHeadArguments {
    TensorView x, fn, base, scale, weight, y;
    float hc_eps = 1e-6f, rms_eps = 1e-6f;
    void* stream = nullptr;
};
void hc_head(const HcHeadArguments& arguments);

}  // namespace deep_gemm::op
