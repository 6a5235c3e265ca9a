#include "op/weight_gemm.h"

#include "base/error.h"
#include "base/log.h"
#include "op/kernel_table.h"
#include "op/linear_counts.h"
#include "op/tensor_maps.h"

#include <algorithm>
#include <optional>

namespace deep_gemm::op {

namespace {

constexpr jit::KernelId kKernel{"sm90_weight_gemm", "deep_gemm/kernel/sm90_weight_gemm.cuh"};
constexpr jit::KernelId kStoredKernel{"sm90_stored_gemm", "deep_gemm/kernel/sm90_stored_gemm.cuh"};

jit::KernelId kernel_of(const WeightGemmSpec& spec) {
    return multiplies_stored(spec) ? kStoredKernel : kKernel;
}

// What a thread has planned lately: a plan costs some microseconds, a look-up does not.
struct PlannedWeight {
    Device* device = nullptr;
    plan::WeightProblem problem;
    plan::WeightPlan plan;
};
constexpr size_t kSlots = 64;

constexpr u32 kGemmCounted = 0;  // DispatchCount::tokens

plan::DeviceModel model_of(const Device& device) {
    return plan::device_model(device.properties().arch, device.properties().num_sms);
}

const plan::WeightPlan& planned(Device& device, const plan::WeightProblem& p) {
    thread_local std::vector<PlannedWeight> slots(kSlots);
    const u64 mixed = ((u64{p.m} << 32 ^ p.n) * 31 + p.k + static_cast<u64>(p.w) * 16 +
                       static_cast<u64>(p.x) * 2 + static_cast<u64>(p.epilogue)) *
                      0x9e3779b97f4a7c15ull;
    PlannedWeight& slot = slots[mixed >> 58];
    static_assert(kSlots == 64, "six bits choose a slot");
    if (slot.device != &device || !(slot.problem == p)) {
        slot = {&device, p, plan::plan_weight_gemm(p, model_of(device))};
        log(LogLevel::info, "linear w={} m={} n={} k={}: {}", name_of(p.w), p.m, p.n, p.k,
            plan::to_string(slot.plan.spec));
    }
    return slot.plan;
}

WeightGemmParams params_of(const LinearCall& call, u32 first, const WeightGemmSpec& spec) {
    const GemvParams& p = call.params;
    const GemvMatrix& w = p.w[first];
    const Operand tokens{.address = reinterpret_cast<u64>(p.x),
                         .rows = p.m,
                         .columns = p.k,
                         .stride_row = p.x_stride / bytes_of(element_of(spec.x))};
    const u64 y_bytes = bytes_of(spec.y);
    const bool vector_y = reinterpret_cast<u64>(w.y) % 16 == 0 && w.y_stride * y_bytes % 16 == 0;
    WeightGemmParams params{
        .w = {},
        .x = matrix_map(*call.device, tokens, element_of(spec.x), spec.block_m / spec.cluster),
        .matrix = {},
        .x_scale = p.x_scale,
        .y = w.y,
        .bias = w.bias,
        .residual = w.residual,
        .x_scale_stride = p.x_scale_stride,
        .y_stride = w.y_stride,
        .residual_stride = w.residual_stride,
        .m = p.m,
        .n = w.n,
        .k = p.k,
        .swiglu_limit = p.swiglu_limit,
        .vector_y = vector_y ? 1u : 0u};
    for (u32 i = 0; i < num_matrices_of(spec); ++i) {
        const GemvMatrix& matrix = p.w[first + i];
        const Operand weights{.address = reinterpret_cast<u64>(matrix.data),
                              .rows = matrix.n,
                              .columns = row_bytes_of(call.w, p.k),
                              .stride_row = matrix.row_stride};
        params.w[i] = matrix_map(*call.device, weights, Format::int8, matrix_rows_of(spec));
        params.matrix[i] = {matrix.scales, matrix.zeros, matrix.global_scale};
    }
    return params;
}

// x and W as gemm() takes them.
void run_fp8_gemm(const LinearCall& call, const GemvMatrix& w) {
    const GemvParams& p = call.params;
    const auto view = [&](const void* data, Format format, u64 rows, u64 columns, u64 stride) {
        return TensorView{.data = const_cast<void*>(data),
                          .format = format,
                          .rank = 2,
                          .shape = {static_cast<i64>(rows), static_cast<i64>(columns)},
                          .strides = {static_cast<i64>(stride), 1},
                          .device = call.device};
    };
    const u64 blocks = scale_columns_of(call.w, p.k);
    GemmArguments gemm_call;
    gemm_call.a = view(p.x, Format::fp8_e4m3, p.m, p.k, p.x_stride);
    gemm_call.scale_a = view(p.x_scale, Format::fp32, p.m, blocks, p.x_scale_stride);
    gemm_call.b = view(w.data, Format::fp8_e4m3, w.n, p.k, w.row_stride);
    gemm_call.scale_b =
        view(w.scales, Format::fp32, ceil_div(w.n, row_of(call.w).block_rows), blocks, blocks);
    gemm_call.d = view(w.y, call.y, p.m, w.n, w.y_stride);
    if (w.residual) gemm_call.c = view(w.residual, call.y, p.m, w.n, w.y_stride);
    gemm_call.stream = call.stream;
    gemm(gemm_call);
    count_large(call.w, call.x, kGemmCounted);
}

}  // namespace

bool is_large(const LinearCall& call, const plan::LinearProblem& problem) {
    if (call.x == Activation::int8_row) {
        const char* reason = plan::why_no_large_batch(problem);
        DG_CHECK(
            !reason, value,
            "linear: int8 tokens are for the large-batch form alone: {}, expected what that reads; pad k "
            "with zeros, copy x, or pass bf16 tokens",
            reason);
        return true;
    }
    if (call.spec) {
        plan::LinearProblem larger = problem;  // any number of rows will do
        larger.small.m = std::max(problem.small.m, kMaxGemvTokens + 1);
        const char* reason = plan::why_small_batch(larger);
        DG_CHECK(!reason, value,
                 "linear: a large-batch kernel was asked for, which does not serve this call: {}", reason);
        if (!plan::multiplies_fp8(problem))
            static_cast<void>(
                plan::plan_for_spec(plan::weight_problem_of(problem, 0), *call.spec, model_of(*call.device)));
        return true;
    }
    if (plan::why_small_batch(problem)) return false;
    if (plan::multiplies_fp8(problem)) return true;
    const plan::WeightPlan& plan = planned(*call.device, plan::weight_problem_of(problem, 0));
    return plan.cost.total_us < plan::small_batch_us(problem, model_of(*call.device));
}

void run_large(const LinearCall& call, u32 first, const plan::LinearProblem& problem) {
    if (plan::multiplies_fp8(problem)) return run_fp8_gemm(call, call.params.w[first]);
    const plan::WeightProblem one = plan::weight_problem_of(problem, 0);
    std::optional<plan::WeightPlan> forced;
    if (call.spec) forced = plan::plan_for_spec(one, *call.spec, model_of(*call.device));
    const plan::WeightPlan& plan = forced ? *forced : planned(*call.device, one);
    const WeightGemmSpec& spec = plan.spec;
    const driver::Kernel& kernel = kernel_for<WeightGemmParams>(*call.device, kernel_of(spec), spec);
    const WeightGemmParams params = params_of(call, first, spec);
    const driver::LaunchConfig config{.grid = {plan.grid_blocks, 1, 1},
                                      .cluster = {spec.cluster, 1, 1},
                                      .block = {threads_of(spec), 1, 1},
                                      .dynamic_smem_bytes = plan_smem(spec).bytes,
                                      .stream = call.stream,
                                      .programmatic_launch = settings().pdl};
    call.device->launch(kernel, config, std::as_bytes(std::span(&params, 1)), call.memory);
    count_large(call.w, call.x, spec.block_m);
}

jit::KernelSource source_of(const WeightGemmSpec& spec) {
    const char* reason = why_illegal(spec);
    DG_CHECK(!reason, value, "linear: [{}] is not a legal kernel: {}", plan::to_string(spec), reason);
    return jit::source_for<WeightGemmParams>(kernel_of(spec), spec);
}

}  // namespace deep_gemm::op
