// How often linear() launched which kernel.
#pragma once

#include "op/linear.h"

namespace deep_gemm::op {

void count_small(Quant w, Activation x, u32 tokens, bool strict);
void count_large(Quant w, Activation x, u32 tokens);

}  // namespace deep_gemm::op
