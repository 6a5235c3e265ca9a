#include "op/launcher.h"

#include "base/error.h"
#include "base/log.h"
#include "op/gemm_kernel.h"
#include "op/plan_table.h"

#include <cstring>

namespace deep_gemm::op {

namespace {

u64 mixed(const plan::GemmProblem& p) {
    return static_cast<u64>(p.groups) | static_cast<u64>(p.ab) << 8 | static_cast<u64>(p.d) << 16 |
           static_cast<u64>(p.scale_b) << 24 | u64{p.accumulate} << 32 | u64{p.d_tma} << 33 |
           static_cast<u64>(p.a_major) << 34 | static_cast<u64>(p.b_major) << 35;
}

using Key = PlanKey<plan::GemmProblem, GemmSpec>;

using Table = PlanTable<Key, Launcher, PlanKeyHasher<Key, mixed>>;

// 128 rows of a contiguous layout share a matrix. The emulated device can look; a GPU computes rows that
// break the rule with the matrix of their first row.
void check_contiguous_layout(std::span<const std::byte> bytes) {
    GemmParams params;
    DG_CHECK(bytes.size() == sizeof params, internal, "m_grouped_gemm: parameters of another kernel");
    std::memcpy(&params, bytes.data(), sizeof params);
    const i32* layout = params.group_layout;
    const auto is_group = [&params](i32 value) {
        return value >= 0 && static_cast<u32>(value) < params.num_groups;
    };
    for (u32 row = 0; row < params.m; ++row) {
        const u32 first = row / kGroupAlignment * kGroupAlignment;
        DG_CHECK(
            !is_group(layout[row]) || layout[row] == layout[first], value,
            "m_grouped_gemm: grouped_layout gives row {} to group {} and row {} to group {}; expected groups "
            "that start at multiples of {} rows: pad each group with rows of -1",
            first, layout[first], row, layout[row], kGroupAlignment);
    }
}

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
    launcher->config = {
        .grid = {launcher->plan.grid_blocks, 1, 1},
        .cluster = {cluster_size_of(spec), 1, 1},
        .block = {threads_of(spec), 1, 1},
        .dynamic_smem_bytes = plan_smem(spec).bytes,
        .check_inputs = spec.groups == GroupMode::contiguous ? check_contiguous_layout : nullptr};
    return Table::add(Key::of(call), std::move(launcher));
}

size_t num_launchers() {
    return Table::size();
}

}  // namespace deep_gemm::op
