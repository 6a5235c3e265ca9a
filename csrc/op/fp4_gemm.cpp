#include "op/fp4_gemm.h"

#include "base/error.h"
#include "base/log.h"
#include "op/fp4_arrange.h"
#include "op/group_layout.h"
#include "op/kernel_table.h"
#include "op/plan_table.h"
#include "op/workspace.h"

#include <algorithm>
#include <array>
#include <vector>

namespace deep_gemm::op {

namespace {

constexpr jit::KernelId kSwapAb{"sm90_fp8_fp4_gemm_swap_ab", "deep_gemm/kernel/sm90_fp4_gemm_swap_ab.cuh"};
constexpr jit::KernelId kWide{"sm90_fp8_fp4_gemm_wide", "deep_gemm/kernel/sm90_fp4_gemm_wide.cuh"};

constexpr u64 kScratchAlignment = 128;

u64 mixed(const plan::Fp4Problem& p) {
    return static_cast<u64>(p.groups) | static_cast<u64>(p.form) << 8 | static_cast<u64>(p.d) << 16 |
           u64{p.split} << 24 | u64{p.accumulate} << 25 | u64{p.per_token} << 26 |
           u64{p.a == Format::bf16} << 27 | u64{p.by_32} << 28 | u64{p.fast_accumulation} << 29 |
           u64{p.bf16_products} << 30;
}

using Fp4Key = PlanKey<plan::Fp4Problem, Fp4GemmSpec>;

struct PlannedFp4 {
    Fp4Launched launched;
    const driver::Kernel* kernel = nullptr;
};

using Fp4Table = PlanTable<Fp4Key, PlannedFp4, PlanKeyHasher<Fp4Key, mixed>>;

thread_local Fp4Table::Entry last_fp4_launched;

driver::LaunchConfig config_of(const Fp4GemmCall& call, const PlannedFp4& planned) {
    const Fp4GemmSpec& spec = planned.launched.plan.spec;
    return {.grid = {planned.launched.plan.grid_blocks, 1, 1},
            .cluster = {spec.cluster, 1, 1},
            .block = {threads_of(spec), 1, 1},
            .dynamic_smem_bytes = plan_smem(spec).bytes,
            .stream = static_cast<driver::Stream>(call.stream),
            .programmatic_launch = settings().pdl,
            .check_inputs = layout_check_of<Fp4GemmParams>(spec.groups)};  // Fp4WideParams begin with them
}

const Fp4Table::Entry& build(const Fp4GemmCall& call) {
    const driver::DeviceProperties& properties = call.device->properties();
    const plan::DeviceModel model = plan::device_model(properties.arch, properties.num_sms);
    PlannedFp4 planned{.launched = {.problem = call.problem,
                                    .plan = call.spec ? plan::plan_for_spec(call.problem, *call.spec, model)
                                                      : plan::plan_fp4_gemm(call.problem, model)}};
    const Fp4GemmSpec& spec = planned.launched.plan.spec;
    log(LogLevel::info, "{}: {}", plan::to_string(call.problem), plan::to_string(spec));
    planned.kernel = spec.wide ? &kernel_for<Fp4WideParams>(*call.device, kWide, spec)
                               : &kernel_for<Fp4GemmParams>(*call.device, kSwapAb, spec);
    if (spec.cluster > 1) {
        // Clusters that the device's groups of SMs have no room for would run alone, after all others.
        u32& blocks = planned.launched.plan.grid_blocks;
        const u32 clusters = call.device->max_active_clusters(*planned.kernel, config_of(call, planned));
        if (clusters > 0) blocks = std::min(blocks, clusters * spec.cluster);
    }
    return Fp4Table::add(Fp4Key::of(call), std::make_shared<const PlannedFp4>(std::move(planned)));
}

const Fp4Table::Entry& planned_for(const Fp4GemmCall& call) {
    const Fp4Table::Entry& found = Fp4Table::find(Fp4Key::of(call));
    return found ? found : build(call);
}

Fp4GemmParams params_of(const Fp4GemmCall& call) {
    const plan::Fp4Problem& problem = call.problem;
    Fp4GemmParams p{};
    p.weights = reinterpret_cast<const u8*>(call.blobs);
    p.row_scales = reinterpret_cast<const float*>(call.row_scales);
    p.runs = reinterpret_cast<const u32*>(call.runs);
    p.a = reinterpret_cast<const u8*>(call.a.address);
    p.scale_a = reinterpret_cast<const float*>(call.scale_a.address);
    p.group_layout = reinterpret_cast<const i32*>(call.group_layout);
    p.list = reinterpret_cast<Fp4ListHead*>(call.list);
    p.a_rows = reinterpret_cast<const i32*>(call.a_rows);
    p.d_rows = reinterpret_cast<const i32*>(call.d_rows);
    p.c = reinterpret_cast<const void*>(call.c);
    p.d = reinterpret_cast<void*>(call.d.address);
    p.a_stride_group = call.a.stride_group * bytes_of(problem.a);
    p.scale_a_stride_group = call.scale_a.stride_group;
    p.d_stride_group = call.d.stride_group;
    p.a_stride_m = static_cast<u32>(call.a.stride_row * bytes_of(problem.a));
    p.scale_a_stride_m = static_cast<u32>(call.scale_a.stride_row);
    p.scale_a_stride_k = static_cast<u32>(call.scale_a.stride_column);
    p.d_stride_m = static_cast<u32>(call.d.stride_row);
    p.m = problem.m;
    p.n = problem.n;
    p.k = problem.k;
    p.num_groups = problem.num_groups;
    p.a_num_rows = static_cast<u32>(call.a.rows);
    p.d_num_rows = static_cast<u32>(call.d.rows);
    return p;
}

}  // namespace

u32 token_terms_of(const Fp4GemmCall& call) {
    return call.empty ? 1 : planned_for(call)->launched.plan.spec.token_terms;
}

u64 scratch_bytes(const plan::Fp4Problem& problem, u64 a_rows) {
    const u64 direct = arranged_bytes(problem, 1);
    if (problem.a != Format::bf16 || problem.bf16_products) return direct;
    const u64 terms = align_up(two_terms_bytes(problem, a_rows), kScratchAlignment);
    return std::max(direct, terms + arranged_bytes(problem, 2));
}

void run(const Fp4GemmCall& call) {
    if (call.empty) return;
    const Fp4Table::Entry& entry = planned_for(call);
    if (last_fp4_launched != entry) last_fp4_launched = entry;
    const PlannedFp4& planned = *entry;
    const Fp4GemmSpec& spec = planned.launched.plan.spec;
    const driver::LaunchConfig config = config_of(call, planned);
    const u64 run_bytes = u64{fp4_k_blocks(call.problem.k)} * fp4_blob_bytes_of(call.problem.form);
    const bool ended =
        spec.token_terms == 2;  // all kernels but the one that makes the terms (kTokensComeLast)
    std::vector<driver::MemoryRange> memory = {
        {call.blobs, call.num_runs * run_bytes, false, ended},
        {call.row_scales, call.num_runs * kFp4BlockRows * 4, false},
        {call.runs, call.runs ? call.num_blocks * 4 : 0, false, ended},
        {call.group_layout, call.group_layout_length * 4, false, ended},
        {call.list, call.list ? sizeof(Fp4ListHead) : 0, true, ended},
        {call.d_rows, call.d_rows ? call.slots * 4 : 0, false},
        {call.c, call.c ? bytes_spanned(call.d, call.problem.d) : 0, false},
        {call.d.address, bytes_spanned(call.d, call.problem.d), true},
    };
    Fp4GemmParams params = params_of(call);
    std::array<driver::MemoryRange, 2> tokens = {
        {{call.a.address, bytes_spanned(call.a, call.problem.a), false},
         {call.scale_a.address, call.scale_a.address ? bytes_spanned(call.scale_a, Format::fp32) : 0,
          false}}};
    const bool makes_terms = spec.token_terms == 2 && call.term_scales == 0;
    const u64 two_terms =
        makes_terms ? align_up(two_terms_bytes(call.problem, call.a.rows), kScratchAlignment) : 0;
    const u64 needed = two_terms + (spec.wide ? arranged_bytes(call.problem, spec.token_terms) : 0);
    WorkspaceLease lease;  // until after the last launch
    if (call.scratch == 0 && needed > 0)
        lease = workspace(*call.device, static_cast<driver::Stream>(call.stream), needed);
    const u64 scratch = call.scratch != 0 ? call.scratch : lease.address;
    if (spec.token_terms == 2) {
        const TwoTerms made =
            makes_terms ? split_in_two_terms(call, scratch, params) : read_two_terms(call, params);
        tokens = {made.tokens, made.scales};
    }
    const auto launch = [&](const auto& whole) {
        call.device->launch(*planned.kernel, config, std::as_bytes(std::span(&whole, 1)), memory);
    };
    if (spec.wide) {
        const Arranged arranged = arrange(call, params, spec.token_terms, tokens, scratch + two_terms);
        memory.insert(memory.end(), {arranged.tokens, arranged.scales});
        launch(arranged.params);
    } else {
        memory.insert(memory.end(),
                      {tokens[0], tokens[1], {call.a_rows, call.a_rows ? call.slots * 4 : 0, false}});
        launch(params);
    }
}

jit::KernelSource fp4_kernel_source(const Fp4GemmSpec& spec) {
    const char* reason = why_illegal(spec);
    DG_CHECK(reason == nullptr, value, "fp4_gemm: [{}] is not a legal kernel: {}", plan::to_string(spec),
             reason);
    return spec.wide ? jit::source_for<Fp4WideParams>(kWide, spec)
                     : jit::source_for<Fp4GemmParams>(kSwapAb, spec);
}

size_t num_fp4_plans() {
    return Fp4Table::size();
}

const Fp4Launched* last_fp4_launch() {
    return last_fp4_launched ? &last_fp4_launched->launched : nullptr;
}

}  // namespace deep_gemm::op
