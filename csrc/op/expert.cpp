// expert_up() and expert_down(): the experts of few tokens, by products of vectors.
#include "op/expert.h"
#include "op/weight_check.h"

namespace deep_gemm::op {

namespace {

constexpr const char* kExpertHeader = "deep_gemm/kernel/expert.cuh";
constexpr jit::KernelId kUp{"expert_up", kExpertHeader}, kDown{"expert_down", kExpertHeader};

}  // namespace

void expert_up(const ExpertUpArguments& a) {
    ModelChecks checks("expert_up");
    const TensorView x = with_inner(a.x), x_scale = with_inner(a.x_scale);
    const CheckedWeight w1 = check_weight(checks, "w1", a.w1, "w1_scale", a.w1_scale);
    const CheckedWeight w3 = check_weight(checks, "w3", a.w3, "w3_scale", a.w3_scale);
    DG_CHECK(
        w1.format == w3.format && w1.scale_format == w3.scale_format && w1.count == w3.count &&
            w1.n == w3.n && w1.k == w3.k,
        value,
        "expert_up: w1 is {} {} and w3 {} {}, expected the same shape and formats; pass gate and up of one "
        "layer",
        name_of(w1.format), shape_text(a.w1), name_of(w3.format), shape_text(a.w3));
    check_activation(checks, "x", x, "x_scale", x_scale, w1);
    DG_CHECK(x.shape[1] == 1, value, "expert_up: x has shape {}, expected [t, d]; reshape it",
             shape_text(a.x));
    const i64 rows = x.shape[0];
    checks.array("mid", a.mid, kReal, {rows, -1, w1.n});
    const i64 slots = a.mid.shape[1];
    DG_CHECK(a.experts.present() || slots == 1, value,
             "expert_up: mid has {} slots without experts, expected 1; pass experts, or a mid of one slot",
             slots);
    checks.optional_vector("experts", a.experts, {Format::int32}, {rows, slots});
    checks.optional_vector("weights", a.weights, {Format::fp32}, {rows, slots});
    checks.outputs({{"mid"}});
    if (rows * slots == 0 || w1.n == 0) return;
    const ProjectSpec spec{.x = x.format, .w = w1.format, .w_scale = w1.scale_format, .y = a.mid.format};
    const ExpertUpParams params{.x = view_of(x),
                                .x_scale = view_of(x_scale),
                                .w1 = w1.view,
                                .w3 = w3.view,
                                .experts = pointer_of<const i32>(a.experts),
                                .weights = pointer_of<const float>(a.weights),
                                .mid = view_of(a.mid),
                                .rows = as_u32(rows),
                                .slots = as_u32(slots),
                                .num_experts = w1.count,
                                .n = w1.n,
                                .k = w1.k,
                                .limit = a.limit};
    const u64 blocks = u64{ceil_div(w1.n, kProjectWarps)} * static_cast<u64>(rows * slots);
    launch(checks.device(), kUp, spec, {grid_of("expert_up", blocks), kProjectThreads}, a.stream, params,
           {reads(a.x), reads(a.x_scale), reads(a.w1), reads(a.w1_scale), reads(a.w3), reads(a.w3_scale),
            reads(a.experts), reads(a.weights), writes(a.mid)});
}

void expert_down(const ExpertDownArguments& a) {
    ModelChecks checks("expert_down");
    const CheckedWeight w = check_weight(checks, "w2", a.w2, "w2_scale", a.w2_scale);
    check_activation(checks, "mid", a.mid, "mid_scale", a.mid_scale, w);
    const i64 rows = a.mid.shape[0], slots = a.mid.shape[1];
    DG_CHECK(a.experts.present() || slots == 1, value,
             "expert_down: mid has {} slots without experts, expected 1; pass experts, or a mid of one slot",
             slots);
    checks.optional_vector("experts", a.experts, {Format::int32}, {rows, slots});
    checks.optional_vector("weights", a.weights, {Format::fp32}, {rows, slots});
    checks.array("y", a.y, kReal, {rows, w.n});
    if (a.add.present()) checks.array("add", a.add, kReal, {rows, w.n});
    checks.outputs({{"y", "add"}});
    if (rows == 0 || w.n == 0) return;
    const ProjectSpec spec{
        .x = a.mid.format, .w = w.format, .w_scale = w.scale_format, .y = a.y.format, .add = a.add.format};
    const ExpertDownParams params{.mid = view_of(a.mid),
                                  .mid_scale = view_of(a.mid_scale),
                                  .w = w.view,
                                  .experts = pointer_of<const i32>(a.experts),
                                  .weights = pointer_of<const float>(a.weights),
                                  .y = view_of(a.y),
                                  .add = view_of(a.add),
                                  .rows = as_u32(rows),
                                  .slots = as_u32(slots),
                                  .num_experts = w.count,
                                  .n = w.n,
                                  .k = w.k};
    const u64 blocks = u64{ceil_div(w.n, kProjectWarps)} * static_cast<u64>(rows);
    launch(checks.device(), kDown, spec, {grid_of("expert_down", blocks), kProjectThreads}, a.stream, params,
           {reads(a.mid), reads(a.mid_scale), reads(a.w2), reads(a.w2_scale), reads(a.experts),
            reads(a.weights), reads(a.add), writes(a.y)});
}

}  // namespace deep_gemm::op
