#include "op/linear.h"

#include "base/error.h"
#include "op/gemv_kernel.h"
#include "op/kernel_table.h"
#include "op/linear_check.h"
#include "op/linear_counts.h"
#include "op/quantize_activations.h"
#include "op/weight_gemm.h"
#include "op/workspace.h"

#include <algorithm>
#include <array>

namespace deep_gemm {

namespace op {

namespace {

constexpr u64 kWorkspaceAlignment = 256;

bool native_fp8(const Device& device) {
    constexpr u32 kFirst = 89;
    return device.properties().compute_major * 10 + device.properties().compute_minor >= kFirst;
}

// Q8_0 with activations that are not quantised yet: all rows, into the stream's workspace. The lease lasts
// until the product is launched.
WorkspaceLease quantize_into_workspace(LinearCall& call) {
    GemvParams& p = call.params;
    const u64 columns = align_up(p.k, kQ8Block), blocks = columns / kQ8Block;
    const u64 value_bytes = align_up(p.m * columns, kWorkspaceAlignment), scale_bytes = p.m * blocks * 4;
    WorkspaceLease lease = workspace(*call.device, call.stream, value_bytes + scale_bytes);
    const Quantized out{lease.address, lease.address + value_bytes, columns, blocks};
    launch_quantize(*call.device, {reinterpret_cast<u64>(p.x), p.m, p.k, p.x_stride}, call.quantize_x, call.x,
                    out, call.stream);
    p.x = reinterpret_cast<const u8*>(out.values);
    p.x_stride = columns;
    p.x_scale = reinterpret_cast<const float*>(out.scales);
    p.x_scale_stride = blocks;
    call.memory.push_back({out.values, p.m * columns, false});
    call.memory.push_back({out.scales, scale_bytes, false});
    return lease;
}

// Q8_0 is counted by the rows that share a pass, one to four or up to eight.
u32 counted_tokens(const LinearCall& call, const plan::GemvPlan& plan) {
    constexpr u32 kCountedApart = 4;
    const u32 rows = std::min(call.params.m, plan.tokens_per_block);
    return call.x == Activation::q8 && rows <= kCountedApart ? rows : plan.spec.tokens;
}

void skip_rows(GemvParams& p, u32 rows, u32 y_bytes) {
    p.x += rows * p.x_stride;
    if (p.x_scale) p.x_scale += rows * p.x_scale_stride;
    for (GemvMatrix& w : std::span(p.w).first(p.num_matrices)) {
        w.y = static_cast<u8*>(w.y) + rows * w.y_stride * y_bytes;
        if (w.residual) w.residual = static_cast<const u8*>(w.residual) + rows * w.residual_stride * y_bytes;
    }
    p.m -= rows;
}

void run_small(LinearCall& call, const plan::GemvProblem& problem) {
    const plan::GemvPlan plan = plan::plan_gemv(problem);
    WorkspaceLease lease;
    if (call.quantize_x != Format::none) lease = quantize_into_workspace(call);
    const driver::Kernel& kernel = kernel_for<GemvParams>(*call.device, kernel_of(plan.spec), plan.spec);
    GemvParams params = call.params;
    params.tokens_per_block = plan.tokens_per_block;
    params.deal = plan.deal;
    constexpr u32 kMaxGridY = 65535;  // more rows than so many blocks take are launches one after another
    const u32 most = kMaxGridY * plan.tokens_per_block;
    while (true) {
        GemvParams part = params;
        part.m = std::min(params.m, most);
        const u32 grid_y = ceil_div(part.m, plan.tokens_per_block);
        call.device->launch(kernel,
                            launch_config(*call.device, {plan.grid_x, grid_y, 1}, threads_of(plan.spec),
                                          plan.smem_bytes, call.stream),
                            std::as_bytes(std::span(&part, 1)), call.memory);
        count_small(call.w, call.x, counted_tokens(call, plan), call.strict);
        if (part.m == params.m) return;
        skip_rows(params, part.m, bytes_of(call.y));
    }
}

// Of `count` matrices from `first`, as a plan sees them.
plan::LinearProblem problem_of(const LinearCall& call, u32 first, u32 count) {
    const driver::DeviceProperties& properties = call.device->properties();
    plan::LinearProblem problem{.small = {.w = call.w,
                                          .x = call.x,
                                          .y = call.y,
                                          .epilogue = call.epilogue,
                                          .m = call.params.m,
                                          .k = call.params.k,
                                          .n = std::span(call.n).subspan(first, count),
                                          .aligned = call.x_vectors,
                                          .scale_pairs = call.scale_pairs,
                                          .scale_alignment = call.scale_alignment,
                                          .row_alignment = call.row_alignment,
                                          .bulk = call.bulk,
                                          .strict = call.strict,
                                          .dependent_launch = dependent_launch(*call.device),
                                          .native_fp8 = native_fp8(*call.device),
                                          .num_sms = properties.num_sms,
                                          .smem_bytes = properties.max_smem_per_block,
                                          .tuning = call.tuning},
                                .arch = properties.arch,
                                .invariant = call.invariant,
                                .rows_apart = call.rows_apart};
    for (const FormFacts& facts : std::span(call.form).subspan(first, count)) {
        problem.small.aligned = problem.small.aligned && facts.vectors;
        problem.whole_scales = problem.whole_scales && facts.whole_scales;
        problem.plain_y = problem.plain_y && facts.plain_y;
    }
    return problem;
}

// Leaves the matrices that are not large.
void keep_small(LinearCall& call, const std::array<bool, kMaxGemvMatrices>& large) {
    u32 kept = 0;
    for (u32 i = 0; i < call.params.num_matrices; ++i) {
        if (large[i]) continue;
        call.params.w[kept] = call.params.w[i];
        call.form[kept] = call.form[i];
        call.n[kept++] = call.n[i];
    }
    call.params.num_matrices = kept;
    call.n.resize(kept);
}

// Matrices that share x take the form that each takes alone, so that company changes no bit. All forms, and
// with them every check, come before the first launch.
void run(LinearCall& call) {
    if (call.empty) return;
    const u32 num = call.params.num_matrices, step = call.epilogue == GemvEpilogue::swiglu ? num : 1;
    std::array<bool, kMaxGemvMatrices> large{};
    for (u32 i = 0; i < num; i += step)
        large[i] = call.n[i] != 0 && is_large(call, problem_of(call, i, step));
    for (u32 i = 0; i < num; i += step)
        if (large[i]) run_large(call, i, problem_of(call, i, step));
    if (step > 1 && large[0]) return;
    if (std::ranges::find(large, true) != large.end()) keep_small(call, large);
    const bool rows_left = std::ranges::any_of(call.n, [](u32 n) { return n != 0; });
    if (rows_left) run_small(call, problem_of(call, 0, call.params.num_matrices).small);
}

}  // namespace

}  // namespace op

void linear(const LinearArguments& arguments) {
    op::LinearCall call = op::check_linear(arguments);
    op::run(call);
}

}  // namespace deep_gemm
