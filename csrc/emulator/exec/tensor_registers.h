// Registers that the program shares with the tensor core: accumulators, and A where it comes from registers.
// Who may use one, and when (PTX ISA, "wgmma.fence" and "wgmma.mma_async"):
//
//   an ordinary instruction, then a wgmma     a wgmma.fence lies between; one precedes the warp's first wgmma
//   a wgmma, then an ordinary instruction     a wgmma.wait_group that covers the wgmma lies between
//   two wgmma, the same accumulators          free where the shape is the same
//   two wgmma, otherwise                      A may be shared; else a wait lies between
#pragma once

#include "emulator/exec/state.h"

namespace deep_gemm::emulator {

void fence_tensor_registers(Warp& w);

// What a wgmma about to be issued needs of its registers, as slots.
void check_tensor_registers(const Warp& w, std::span<const u32> accumulators, std::span<const u32> a);
// The wgmma has number `w.tensor_issued`.
void take_tensor_registers(Warp& w, std::span<const u32> accumulators, std::span<const u32> a);
[[nodiscard]] bool tensor_results_in_flight(const Warp& w, std::span<const u32> slots);

// Makes the op at `pc`, which is no wgmma, note that it touches these slots, and fault where it may not.
void guard_tensor_registers(Program& program, u32 pc, std::vector<u32> slots);

}  // namespace deep_gemm::emulator
