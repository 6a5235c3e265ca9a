// Launcher: a planned, compiled and loaded kernel with everything about its launch that does not change
// between calls of one problem. Found by the problem's fields alone: a hit builds no string and, after a
// thread's first, takes no lock.
#pragma once

#include "driver/device.h"
#include "op/gemm_call.h"

#include <memory>

namespace deep_gemm::op {

struct Launcher {
    std::string device_name;
    plan::GemmProblem problem;
    plan::GemmPlan plan;
    std::shared_ptr<const void> keep_alive;  // the module
    const driver::Kernel* kernel = nullptr;
    driver::LaunchConfig config;  // stream and programmatic_launch are the call's
};

// nullptr: this problem has not been built yet.
[[nodiscard]] const Launcher* find_launcher(const GemmCall& call);
// Plans and compiles (up to a second); safe to race. The launcher lives as long as the process.
const Launcher& build_launcher(const GemmCall& call);

}  // namespace deep_gemm::op
