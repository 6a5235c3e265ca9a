// Barriers whose expectation changes when warps exit.
#pragma once

#include "emulator/exec/state.h"

namespace deep_gemm::emulator {

void complete_barriers_after_exit(Cta& cta);
void complete_cluster_barrier_if_full(Cluster& c);

}  // namespace deep_gemm::emulator
