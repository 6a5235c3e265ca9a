// Which registers an instruction reads and writes: the only place that knows where PTX puts destinations.
#pragma once

#include "emulator/ptx/ast.h"

namespace deep_gemm::emulator {

struct Effects {
    std::vector<u32> reads, writes;
    std::vector<u32> asynchronous;  // wgmma accumulators and A fragments: their slots may not be shared
    bool falls_through = true;
    std::vector<u32> targets;  // of a branch
};

[[nodiscard]] Effects effects_of(const ptx::Function& function, const ptx::Instruction& instruction);

}  // namespace deep_gemm::emulator
