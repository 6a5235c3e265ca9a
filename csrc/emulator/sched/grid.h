// Runs a whole launch: clusters over host threads where the kernel allows it, interleaved on one thread where
// CTAs may talk to each other through global memory. The result depends on the seed, never on the number of
// threads.
#pragma once

#include "emulator/exec/state.h"

namespace deep_gemm::emulator {

// `resident_clusters`: how many fit the device at once; a communicating kernel runs that many interleaved.
void run_grid(const Launch& launch, u32 resident_clusters);

}  // namespace deep_gemm::emulator
