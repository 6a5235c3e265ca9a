#include "op/linear.h"

#include "base/error.h"
#include "op/gemv_kernel.h"
#include "op/kernel_table.h"
#include "op/linear_check.h"
#include "op/linear_counts.h"
#include "op/weight_gemm.h"
#include "op/workspace.h"

#include <algorithm>

namespace deep_gemm {

namespace op {

namespace {

constexpr u64 kWorkspaceAlignment = 256;

bool dependent_launch(const Device& device) {
    constexpr u32 kFirst = 9;
    return device.properties().compute_major >= kFirst;
}

bool native_fp8(const Device& device) {
    constexpr u32 kFirst = 89;
    return device.properties().compute_major * 10 + device.properties().compute_minor >= kFirst;
}

driver::LaunchConfig launch_config(const Device& device, driver::Dim3 grid, u32 threads, u32 smem,
                                   driver::Stream stream) {
    return {.grid = grid,
            .cluster = {1, 1, 1},
            .block = {threads, 1, 1},
            .dynamic_smem_bytes = smem,
            .stream = stream,
            .programmatic_launch = settings().pdl && dependent_launch(device)};
}

struct Quantized {
    u64 values, scales;
    u64 values_stride, scales_stride;  // in elements
};

void launch_quantize(Device& device, const RowsView& x, Format format, Activation to, const Quantized& out,
                     driver::Stream stream) {
    const GemvQuantizeSpec spec{.x = format, .to = to, .dependent_launch = dependent_launch(device)};
    const u32 blocks = ceil_div(x.k, block_k_of(to));
    GemvQuantizeParams params{.x = reinterpret_cast<const u8*>(x.address),
                              .values = reinterpret_cast<u8*>(out.values),
                              .scales = reinterpret_cast<float*>(out.scales),
                              .x_stride = x.stride_bytes,
                              .values_stride = out.values_stride,
                              .scales_stride = out.scales_stride,
                              .m = x.m,
                              .k = x.k};
    const driver::MemoryRange memory[] = {range_of(x, bytes_of(format), false),
                                          {out.values, u64{x.m} * out.values_stride, true},
                                          {out.scales, u64{x.m} * out.scales_stride * 4, true}};
    const auto grid = static_cast<u32>(ceil_div(u64{x.m} * blocks, u64{kGemvQuantizeThreads / 32}));
    const driver::Kernel& kernel =
        kernel_for<GemvQuantizeParams>(device, {"gemv_quantize", "deep_gemm/kernel/gemv_quantize.cuh"}, spec);
    device.launch(kernel, launch_config(device, {grid, 1, 1}, kGemvQuantizeThreads, 0, stream),
                  std::as_bytes(std::span(&params, 1)), memory);
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

void run_small(LinearCall& call, const plan::GemvProblem& problem) {
    const plan::GemvPlan plan = plan::plan_gemv(problem);
    WorkspaceLease lease;
    if (call.quantize_x != Format::none) lease = quantize_into_workspace(call);
    const driver::Kernel& kernel = kernel_for<GemvParams>(*call.device, kernel_of(plan.spec), plan.spec);
    constexpr u32 kMaxGridY = 65535;
    GemvParams params = call.params;
    params.tokens_per_block = plan.tokens_per_block;
    params.deal = plan.deal;
    DG_CHECK(plan.grid_y <= kMaxGridY, value,
             "linear: got {} rows of x, expected at most {} in one call{}; split the rows over calls",
             params.m, u64{kMaxGridY} * plan.tokens_per_block, call.strict ? " of strict mode" : "");
    call.device->launch(kernel,
                        launch_config(*call.device, {plan.grid_x, plan.grid_y, 1}, threads_of(plan.spec),
                                      plan.smem_bytes, call.stream),
                        std::as_bytes(std::span(&params, 1)), call.memory);
    count_small(call.w, call.x, counted_tokens(call, plan), call.strict);
}

void run(LinearCall& call) {
    if (call.empty) return;
    const driver::DeviceProperties& properties = call.device->properties();
    const plan::LinearProblem problem{.small = {.w = call.w,
                                                .x = call.x,
                                                .y = call.y,
                                                .epilogue = call.epilogue,
                                                .m = call.params.m,
                                                .k = call.params.k,
                                                .n = call.n,
                                                .aligned = call.aligned,
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
                                      .whole_scales = call.whole_scales,
                                      .plain_y = has_plain_y(call)};
    if (is_large(call, problem))
        run_large(call, problem);
    else
        run_small(call, problem.small);
}

}  // namespace

}  // namespace op

void linear(const LinearArguments& arguments) {
    op::LinearCall call = op::check_linear(arguments);
    op::run(call);
}

void quantize_activations(const TensorView& x, Activation to, const TensorView& values,
                          const TensorView& scales, void* stream) {
    const op::RowsView rows = op::rows_of(x, "x"), out = op::rows_of(values, "values"),
                       out_scales = op::rows_of(scales, "scales");
    const u32 block = block_k_of(to);
    DG_CHECK(block != 0, value,
             "quantize_activations: got {}, expected q8, fp8_128 or fp8_32; bf16 and fp16 activations are "
             "passed as they are",
             name_of(to));
    const bool known = x.format == Format::bf16 || x.format == Format::fp16 || x.format == Format::fp32;
    DG_CHECK(known, type, "quantize_activations: x is {}, expected bf16, fp16 or fp32; cast it",
             name_of(x.format));
    const u32 columns = to == Activation::q8 ? align_up(rows.k, kQ8Block) : rows.k;
    DG_CHECK(
        bytes_of(values.format) == 1 && scales.format == Format::fp32, type,
        "quantize_activations: values are {} and scales {}, expected {} (or int8) and fp32; allocate them so",
        name_of(values.format), name_of(scales.format), name_of(element_of(to)));
    DG_CHECK(out.m == rows.m && out.k == columns && out_scales.m == rows.m &&
                 out_scales.k == ceil_div(rows.k, block),
             value,
             "quantize_activations: got values [{}, {}] and scales [{}, {}], expected [{}, {}] and [{}, {}]; "
             "allocate them so",
             out.m, out.k, out_scales.m, out_scales.k, rows.m, columns, rows.m, ceil_div(rows.k, block));
    DG_CHECK(values.device == x.device && scales.device == x.device, value,
             "quantize_activations: values and scales are on another device than x; move them");
    DG_CHECK((rows.m <= 1 || out.stride_bytes >= columns) && out_scales.address % 4 == 0, value,
             "quantize_activations: rows of values overlap or scales are unaligned; pass packed tensors");
    if (rows.m == 0 || rows.k == 0) return;
    const u32 width = bytes_of(x.format);
    DG_CHECK(
        !op::share_bytes(rows, width, out, 1) && !op::share_bytes(rows, width, out_scales, 4) &&
            !op::share_bytes(out, 1, out_scales, 4),
        value,
        "quantize_activations: x, values and scales share memory; expected tensors of their own: pass others");
    op::launch_quantize(*x.device, rows, x.format, to,
                        {out.address, out_scales.address, out.stride_bytes, out_scales.stride_bytes / 4},
                        static_cast<driver::Stream>(stream));
}

}  // namespace deep_gemm
