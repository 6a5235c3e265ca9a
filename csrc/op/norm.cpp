// rms_norm().
#include "op/attention_parts.h"

namespace deep_gemm::op {

namespace {

constexpr jit::KernelId kRmsNorm{"rms_norm", "deep_gemm/kernel/norm.cuh"};

}  // namespace

Prepared<NormSpec, NormParams> prepare_norm(ModelChecks& checks, const RmsNormArguments& a) {
    const TensorView x = with_inner(a.x), y = with_inner(a.y);
    checks.array("x", x, kReal, {-1, -1, -1}, 4);
    const i64 d = x.shape[2];
    DG_CHECK(d % 4 == 0 && d > 0, value,
             "rms_norm: x has {} columns, expected a positive multiple of 4; there is no kernel for others",
             d);
    checks.array("y", y, kReal, {x.shape[0], x.shape[1], d}, 4);
    checks.optional_vector("weight", a.weight, kReal, {d}, 4);
    checks.narrow_copy(a.narrow, y);
    checks.outputs({{"y", "x"}, {"codes"}, {"scales"}, {"global_scale"}});
    const NormSpec spec{.x = x.format,
                        .y = y.format,
                        .weight = a.weight.format,
                        .narrow = a.narrow.present(),
                        .recipe = a.narrow.recipe,
                        .rule = a.narrow.recipe == Recipe::nvfp4 ? ScaleRule::exact : a.narrow.rule};
    const NormParams params{.x = view_of(x),
                            .y = view_of(y),
                            .weight = a.weight.data,
                            .codes = pointer_of<u8>(a.narrow.codes),
                            .scales = a.narrow.scales.data,
                            .global = pointer_of<float>(a.narrow.global_scale),
                            .inner = as_u32(x.shape[1]),
                            .d = as_u32(d),
                            .eps = a.eps};
    const u32 grid = grid_of("rms_norm", static_cast<u64>(x.shape[0] * x.shape[1]));
    return {spec,
            params,
            grid,
            {reads(a.x), reads(a.weight), writes(a.y), writes(a.narrow.codes), writes(a.narrow.scales),
             writes(a.narrow.global_scale)}};
}

void rms_norm(const RmsNormArguments& a) {
    ModelChecks checks("rms_norm");
    const auto prepared = prepare_norm(checks, a);
    launch(checks.device(), kRmsNorm, kNormThreads, a.stream, prepared);
}

}  // namespace deep_gemm::op
