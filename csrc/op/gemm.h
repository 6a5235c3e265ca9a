// Running a checked GEMM, in steps, for callers that hold a lock of their own (Python's): check, look whether
// the rest would block, run. gemm() of op/api.h is the three together.
#pragma once

#include "op/launcher.h"

namespace deep_gemm::op {

void run(const GemmCall& call);

// The launcher of this thread's last run() that launched a kernel; nullptr before the first. Its plan says
// which kernel an operation really used.
[[nodiscard]] const Launcher* last_launcher();

}  // namespace deep_gemm::op
