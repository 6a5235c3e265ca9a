// A cluster ready to run: memory poisoned, warps at pc 0, special registers filled in.
#pragma once

#include "emulator/exec/state.h"

namespace deep_gemm::emulator {

// `c` may be a cluster of an earlier run, of any launch: its memory is reused.
void set_up_cluster(Cluster& c, const Launch& launch, u32 number);

}  // namespace deep_gemm::emulator
