// Element-wise reductions of the copy engine, on host memory.
#pragma once

#include "emulator/async/tma.h"

namespace deep_gemm::emulator {

// target[i] = target[i] OP source[i] over `bytes` bytes of `format`; throws for a pair the hardware does not
// have.
void reduce_elements(ReduceOp op, Format format, std::byte* target, const std::byte* source, u32 bytes);

}  // namespace deep_gemm::emulator
