#include "op/launcher.h"

#include "base/log.h"
#include "op/gemm_kernel.h"
#include "op/group_layout.h"
#include "op/plan_table.h"

namespace deep_gemm::op {

namespace {

u64 mixed(const plan::GemmProblem& p) {
    return static_cast<u64>(p.groups) | static_cast<u64>(p.ab) << 8 | static_cast<u64>(p.d) << 16 |
           static_cast<u64>(p.scale_b) << 24 | u64{p.accumulate} << 32 | u64{p.d_tma} << 33 |
           static_cast<u64>(p.a_major) << 34 | static_cast<u64>(p.b_major) << 35;
}

using Key = PlanKey<plan::GemmProblem, GemmSpec>;

using Table = PlanTable<Key, Launcher, PlanKeyHasher<Key, mixed>>;

}  // namespace

const LauncherEntry& find_launcher(const GemmCall& call) {
    return Table::find(Key::of(call));
}

const LauncherEntry& build_launcher(const GemmCall& call) {
    const driver::DeviceProperties& properties = call.device->properties();
    const plan::DeviceModel model = plan::device_model(properties.arch, properties.num_sms);
    auto launcher = std::make_shared<Launcher>();
    launcher->device_name = properties.name;
    launcher->problem = call.problem;
    launcher->plan = call.spec ? plan::plan_for_spec(call.problem, *call.spec, model)
                               : plan::plan_gemm(call.problem, model);
    const GemmSpec& spec = launcher->plan.spec;
    log(LogLevel::info, "{}: {}", plan::to_string(call.problem), plan::to_string(spec));
    LoadedKernel loaded = load_gemm_kernel(*call.device, spec);
    launcher->keep_alive = std::move(loaded.keep_alive);
    launcher->kernel = loaded.kernel;
    launcher->config = {.grid = {launcher->plan.grid_blocks, 1, 1},
                        .cluster = {cluster_size_of(spec), 1, 1},
                        .block = {threads_of(spec), 1, 1},
                        .dynamic_smem_bytes = plan_smem(spec).bytes,
                        .check_inputs = layout_check_of<GemmParams>(spec.groups)};
    return Table::add(Key::of(call), std::move(launcher));
}

size_t num_launchers() {
    return Table::size();
}

}  // namespace deep_gemm::op
