// Activations put in order for the wide FP4 GEMM (spec/arrange.h), in the call's scratch or the stream's
// workspace.
#pragma once

#include "op/fp4_gemm.h"
#include "op/workspace.h"

namespace deep_gemm::op {

// Launches the kernel that arranges the activations of `call`, and describes what it leaves for a wide
// kernel, which is launched before this goes. `gemm` are that kernel's other parameters.
struct Arranged {
    Fp4WideParams params;
    driver::MemoryRange tokens, scales;
    WorkspaceLease lease;  // of the workspace, if it is that
};
[[nodiscard]] Arranged arrange(const Fp4GemmCall& call, const Fp4GemmParams& gemm);

}  // namespace deep_gemm::op
