// PTX text -> Module. Accepts what NVRTC emits (NVVM 7.0.1 and 20.0.0 dialects) and the inline asm of our
// kernels.
#pragma once

#include "emulator/ptx/ast.h"

namespace deep_gemm::emulator::ptx {

[[nodiscard]] std::unique_ptr<Module> parse(std::string_view text);

}  // namespace deep_gemm::emulator::ptx
