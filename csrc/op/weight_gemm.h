// Launches of the large-batch form of linear().
#pragma once

#include "jit/source.h"
#include "op/linear_check.h"
#include "plan/linear.h"

namespace deep_gemm::op {

// Whether the form of a launch is the large-batch one: forced by a spec, or chosen. `problem` is of a matrix of
// the call, or of both of swiglu. Fails where a spec, or int8 tokens, ask for what does not serve it.
[[nodiscard]] bool is_large(const LinearCall& call, const plan::LinearProblem& problem);
// Of matrix `first` (swiglu: and the next).
void run_large(const LinearCall& call, u32 first, const plan::LinearProblem& problem);

[[nodiscard]] jit::KernelSource source_of(const WeightGemmSpec& spec);

}  // namespace deep_gemm::op
