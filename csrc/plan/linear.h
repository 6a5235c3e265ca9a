// y = x W^T: which of two forms computes it. The small-batch kernels (plan/gemv.h) give every row the bits it
// has alone; the large-batch kernels (plan/weight_gemm.h) are faster for many rows and agree with them to
// within a rounding of bf16. Up to kMaxGemvTokens rows there is no choice; beyond, the cheaper one is taken.
#pragma once

#include "plan/gemv.h"
#include "plan/weight_gemm.h"

#include <string_view>

namespace deep_gemm::plan {

struct LinearProblem {
    GemvProblem small;
    std::string_view arch = "90a";
    bool invariant = false;    // the bits of a row alone, at any m
    bool whole_scales = true;  // see WeightGemmSpec
    bool rows_apart = true;    // rows of x share no bytes
    // What the FP8 GEMM writes: bf16 or fp32 without bias, a residual that lies as y does, rows of y and of the
    // scales of x less than 2^31 elements apart.
    bool plain_y = true;
};

// W and x in FP8 with scales for 128 x 128 and 128: what the FP8 GEMM (plan/gemm.h) multiplies. It reads W
// once, and is the large-batch form of these.
[[nodiscard]] constexpr bool multiplies_fp8(const LinearProblem& p) {
    return p.small.w == Quant::fp8_128x128 && p.small.x == Activation::fp8_128;
}

// nullptr, or why the large-batch form cannot serve it.
[[nodiscard]] const char* why_no_large_batch(const LinearProblem& problem);
// nullptr, or why only the small-batch form comes into question. (int8 tokens have no other than the large
// one, whose sums are exact: there is no seam.)
[[nodiscard]] const char* why_small_batch(const LinearProblem& problem);
// What that form is expected to take; the other's is plan_weight_gemm().cost of every matrix. The cheaper one
// is chosen.
[[nodiscard]] float small_batch_us(const LinearProblem& problem, const DeviceModel& device);
[[nodiscard]] WeightProblem weight_problem_of(const LinearProblem& problem, u32 matrix);

// What explain_linear() needs of a GPU; one without the large-batch form has no costs.
[[nodiscard]] DeviceModel linear_device_model(std::string_view arch, u32 num_sms);

// The same from text, such as "linear w=mxfp4 m=512 n=14336 k=4096": x=, y=, strict, invariant, swiglu,
// unaligned, and padded for rows at multiples of 16 bytes where k does not make them so.
[[nodiscard]] std::string explain_linear(std::string_view text, const DeviceModel& device, u32 rows = 12);

}  // namespace deep_gemm::plan
