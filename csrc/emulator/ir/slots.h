// Register slots: PTX is SSA with thousands of registers, a warp's register file should be tens of kilobytes.
// Liveness over the control-flow graph gives each register one interval of program order; intervals that do
// not overlap share a slot. Holds per lane, so divergence is safe: every write is masked to the lanes that
// execute it.
#pragma once

#include "emulator/ptx/ast.h"

namespace deep_gemm::emulator {

struct SlotMap {
    std::vector<u32> offset;   // by register id: byte offset, or kNoSlot for a register that is never used
    u32 bytes = 0;             // end of the slots
    u32 peak_lanes_bytes = 0;  // bytes of lane slots (no predicates): the register count
};

// Slots start at `base`, so that several functions can live in one register file.
[[nodiscard]] SlotMap assign_slots(const ptx::Function& function, u32 base);

}  // namespace deep_gemm::emulator
