// Memory of a mixture of experts: its workspace and its output are written while other tensors are still
// read. x is read before the output is written, and the shared expert's output element by element where the
// output is: either may be the output itself.
#pragma once

#include "op/fused_moe.h"

namespace deep_gemm::op {

// Fails if the workspace or the output shares memory with what it may not.
void check_moe_memory(const FusedMoeArguments& arguments, u64 workspace_bytes);

}  // namespace deep_gemm::op
