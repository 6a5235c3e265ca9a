// project() of model_ops.h: y = x w^T whose rows have the same bits at any batch size.
#include "op/model_ops.h"
#include "op/weight_check.h"

namespace deep_gemm::op {

namespace {

constexpr jit::KernelId kProject{"project", "deep_gemm/kernel/project.cuh"};

// Rows of x that share a load of w. Any value gives the same bits.
constexpr u32 kRowsOfMany = 4;

}  // namespace

void project(const ProjectArguments& a) {
    ModelChecks checks("project");
    const TensorView x = with_inner(a.x), x_scale = with_inner(a.x_scale), y = with_inner(a.y),
                     add = with_inner(a.add);
    const CheckedWeight w = check_weight(checks, "w", a.w, "w_scale", a.w_scale);
    check_activation(checks, "x", x, "x_scale", x_scale, w);
    DG_CHECK(x.shape[1] == w.count, value, "project: x has {} groups and w {}, expected as many", x.shape[1],
             w.count);
    checks.array("y", y, kReal, {x.shape[0], w.count, w.n});
    if (add.present()) checks.array("add", add, kReal, {x.shape[0], w.count, w.n});
    const u32 rows = as_u32(x.shape[0]);
    if (rows == 0 || w.n == 0) return;
    const ProjectSpec spec{.x = x.format,
                           .w = w.format,
                           .w_scale = w.scale_format,
                           .y = y.format,
                           .add = add.format,
                           .rows = rows == 1 ? 1 : kRowsOfMany};
    const ProjectParams params{.x = view_of(x),
                               .y = view_of(y),
                               .add = view_of(add),
                               .x_scale = view_of(x_scale),
                               .w = w.view,
                               .rows = rows,
                               .groups = w.count,
                               .n = w.n,
                               .k = w.k};
    const u64 blocks = u64{ceil_div(w.n, kProjectWarps)} * ceil_div(rows, spec.rows) * w.count;
    launch(checks.device(), kProject, spec, {grid_of("project", blocks), kProjectThreads}, a.stream, params,
           {reads(a.x), reads(a.x_scale), reads(a.w), reads(a.w_scale), reads(a.add), writes(a.y)});
}

}  // namespace deep_gemm::op
