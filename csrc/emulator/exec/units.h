// The functions of a Program and where their variables and registers live.
#pragma once

#include "emulator/exec/loader.h"
#include "emulator/ir/decoder.h"

namespace deep_gemm::emulator {

// Also fills in the Program's sizes: shared, local and parameter bytes, and where its constants begin.
[[nodiscard]] std::vector<Unit> make_units(const ModuleImage& image, const ptx::Function& kernel,
                                           Program& program);

}  // namespace deep_gemm::emulator
