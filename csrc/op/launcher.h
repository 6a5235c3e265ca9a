// Launcher: a planned, compiled and loaded kernel with everything about its launch that does not change
// between calls of one problem; kept in a table (op/plan_table.h) that forgets the oldest.
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

using LauncherEntry = std::shared_ptr<const Launcher>;
// Both references hold until this thread's next call here. Empty: this problem has not been built yet.
[[nodiscard]] const LauncherEntry& find_launcher(const GemmCall& call);
// Plans and compiles (up to a second); safe to race.
const LauncherEntry& build_launcher(const GemmCall& call);

[[nodiscard]] size_t num_launchers();  // in the table

}  // namespace deep_gemm::op
