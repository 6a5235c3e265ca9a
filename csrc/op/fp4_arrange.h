// Activations put in order for the wide FP4 GEMM (spec/arrange.h), in the stream's workspace.
#pragma once

#include "op/fp4_gemm.h"

namespace deep_gemm::op {

// Launches the kernel that arranges the activations of `call`, and describes what it leaves for a wide
// kernel. `gemm` are that kernel's other parameters.
struct Arranged {
    Fp4WideParams params;
    driver::MemoryRange tokens, scales;
};
[[nodiscard]] Arranged arrange(const Fp4GemmCall& call, const Fp4GemmParams& gemm);

}  // namespace deep_gemm::op
