#include "runtime/linear.h"

#include "op/quantize.h"

namespace deep_gemm::runtime {

namespace {

constexpr i64 kGroup = 128;  // columns that share a scale

// [a, b, k] as [a b, k], for packed views.
TensorView flattened(TensorView view) {
    if (view.rank != 3) return view;
    view.shape[0] *= view.shape[1];
    view.shape[1] = view.shape[2], view.strides[0] = view.strides[1], view.strides[1] = view.strides[2];
    view.rank = 2;
    return view;
}

std::vector<i64> scales_of(std::vector<i64> shape) {
    DG_CHECK(shape.back() % kGroup == 0, internal, "engine: rows of {} columns in FP8 groups of {}",
             shape.back(), kGroup);
    shape.back() /= kGroup;
    return shape;
}

}  // namespace

Fp8Rows::Fp8Rows(Device& device, std::vector<i64> shape)
    : codes(device, Format::fp8_e4m3, shape), scales(device, Format::fp32, scales_of(shape)) {}

op::NarrowCopy fp8_copy_of(const Fp8Rows& rows, i64 t, ScaleRule rule) {
    if (!rows.present()) return {};
    return {rows.codes.rows(0, t), rows.scales.rows(0, t), rule};
}

Input input_of(const TensorView& x, const Fp8Rows& rows) {
    if (!rows.present()) return {x, {}};
    return {rows.codes.rows(0, x.shape[0]), rows.scales.rows(0, x.shape[0])};
}

Input to_fp8(const TensorView& x, const Fp8Rows& into, ScaleRule rule, void* stream) {
    if (!into.present()) return {x, {}};
    // x may be one row of several of the memory's: [t r, k] for [t, r, k].
    const i64 t = x.rank == 2 ? x.shape[0] : x.shape[0] * x.shape[1];
    const auto packed = [&](const DeviceTensor& tensor) {
        return tensor.as({t, x.shape[x.rank - 1] / (tensor.format() == Format::fp32 ? kGroup : 1)});
    };
    QuantizeArguments arguments{.recipe = Recipe::fp8_128, .rule = rule};
    arguments.x = flattened(x), arguments.codes = packed(into.codes), arguments.scales = packed(into.scales);
    arguments.stream = stream;
    quantize(arguments);
    if (x.rank == 2) return {arguments.codes, arguments.scales};
    const auto inner = [&](const DeviceTensor& tensor, i64 columns) {
        return tensor.as({x.shape[0], x.shape[1], columns});
    };
    return {inner(into.codes, x.shape[2]), inner(into.scales, x.shape[2] / kGroup)};
}

void project(const Linear& w, const TensorView& x, const Input& low, const TensorView& y, void* stream,
             const TensorView& add) {
    const Input in = w.low_precision() ? low : Input{x, {}};
    op::project({.x = in.x,
                 .x_scale = in.scale,
                 .w = w.data.view(),
                 .w_scale = w.scale.view(),
                 .y = y,
                 .add = add,
                 .stream = stream});
}

op::ProjectMatrix matrix_of(const Projection& p) {
    return {p.w->data.view(), p.w->scale.view(), p.y};
}

void project_many(std::initializer_list<Projection> projections, const TensorView& x, const Input& low,
                  void* stream) {
    std::vector<op::ProjectMatrix> matrices;
    for (const bool narrow : {true, false})
        for (const Projection& p : projections)
            if (p.w->low_precision() == narrow) matrices.push_back(matrix_of(p));
    op::project_many({.x = low.x, .x_scale = low.scale, .wide_x = x, .matrices = matrices, .stream = stream});
}

void run_experts(const ExpertsCall& c) {
    const i64 t = c.x.shape[0];
    const Input in = c.w.w1.low_precision() ? c.low : Input{c.x, {}};
    const TensorView mid = c.mid.rows(0, t), none = {};
    const bool before = c.weigh == WeighExperts::before_down;
    op::expert_up({.x = in.x,
                   .x_scale = in.scale,
                   .w1 = c.w.w1.data.view(),
                   .w1_scale = c.w.w1.scale.view(),
                   .w3 = c.w.w3.data.view(),
                   .w3_scale = c.w.w3.scale.view(),
                   .experts = c.chosen,
                   .weights = before ? c.weights : none,
                   .mid = mid,
                   .limit = c.limit,
                   .stream = c.stream});
    const Input down = c.w.w2.low_precision() ? to_fp8(mid, c.mid_fp8, c.rule, c.stream) : Input{mid, {}};
    op::expert_down({.mid = down.x,
                     .mid_scale = down.scale,
                     .w2 = c.w.w2.data.view(),
                     .w2_scale = c.w.w2.scale.view(),
                     .experts = c.chosen,
                     .weights = before ? none : c.weights,
                     .y = c.y,
                     .add = c.add,
                     .stream = c.stream});
}

}  // namespace deep_gemm::runtime
