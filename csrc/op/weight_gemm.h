// Launches of the large-batch form of linear().
#pragma once

#include "jit/source.h"
#include "op/linear_check.h"
#include "plan/linear.h"

namespace deep_gemm::op {

// Whether the call's form is the large-batch one: forced by a spec, or chosen.
[[nodiscard]] bool is_large(const LinearCall& call, const plan::LinearProblem& problem);
// Whether the FP8 GEMM can write the results of every matrix.
[[nodiscard]] bool has_plain_y(const LinearCall& call);
// One launch for each matrix.
void run_large(const LinearCall& call, const plan::LinearProblem& problem);

[[nodiscard]] jit::KernelSource source_of(const WeightGemmSpec& spec);

}  // namespace deep_gemm::op
