// Runs one cluster, a turn at a time: pick a warp by seed, run it for a random number of instructions, land
// what is due. A cluster that can neither run nor wait for anything is deadlocked.
#pragma once

#include "emulator/exec/state.h"

namespace deep_gemm::emulator {

// False when the cluster has finished. Throws the fault of a kernel, including deadlock.
bool step_cluster(Cluster& c);

// The lines of a deadlock report: who waits for what.
[[nodiscard]] std::string describe_waits(const Cluster& c);

}  // namespace deep_gemm::emulator
