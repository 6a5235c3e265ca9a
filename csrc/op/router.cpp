// route(): which experts a token goes to, and their weights.
#include "op/moe_parts.h"

namespace deep_gemm::op {

namespace {

constexpr jit::KernelId kRoute{"route", "deep_gemm/kernel/router.cuh"};

}  // namespace

Prepared<RouterSpec, RouterParams> prepare_route(ModelChecks& checks, const RouterArguments& a) {
    checks.array("logits", a.logits, {Format::fp32}, {-1, -1});
    const i64 rows = a.logits.shape[0], experts = a.logits.shape[1];
    checks.vector("experts", a.experts, {Format::int32}, {rows, -1});
    const i64 choices = a.experts.shape[1];
    DG_CHECK(experts >= 1 && experts <= kRouterMaxExperts, value,
             "route: got {} experts, expected 1 to {}; there is no kernel for more", experts,
             kRouterMaxExperts);
    DG_CHECK(choices >= 1 && choices <= kRouterMaxChoices && choices <= experts, value,
             "route: experts has {} columns, expected 1 to {} and no more than the {} experts; choose fewer",
             choices, kRouterMaxChoices, experts);
    checks.vector("weights", a.weights, {Format::fp32}, {rows, choices});
    checks.optional_vector("bias", a.bias, {Format::fp32}, {experts});
    DG_CHECK(a.hash.present() == a.tokens.present(), value,
             "route: got one of hash and tokens, expected both; pass the other too, or none");
    DG_CHECK(!a.hash.present() || !a.bias.present(), value,
             "route: got hash and bias, expected one or none; leave the other out");
    checks.optional_vector("hash", a.hash, {Format::int32}, {-1, choices});
    checks.optional_vector("tokens", a.tokens, {Format::int32}, {rows});
    checks.outputs({{"experts"}, {"weights"}});
    const RouterSpec spec{
        .score = a.score, .normalize = a.normalize, .hash = a.hash.present(), .bias = a.bias.present()};
    const RouterParams params{.logits = pointer_of<const float>(a.logits),
                              .logits_stride = stride_of(a.logits, 0),
                              .bias = pointer_of<const float>(a.bias),
                              .table = pointer_of<const i32>(a.hash),
                              .tokens = pointer_of<const i32>(a.tokens),
                              .experts = pointer_of<i32>(a.experts),
                              .weights = pointer_of<float>(a.weights),
                              .num_experts = as_u32(experts),
                              .choices = as_u32(choices),
                              .vocabulary = a.hash.present() ? as_u32(a.hash.shape[0]) : 0,
                              .scale = a.scale};
    return {spec,
            params,
            as_u32(rows),
            {reads(a.logits), reads(a.bias), reads(a.hash), reads(a.tokens), writes(a.experts),
             writes(a.weights)}};
}

void route(const RouterArguments& a) {
    ModelChecks checks("route");
    launch(checks.device(), kRoute, kRouterThreads, a.stream, prepare_route(checks, a));
}

}  // namespace deep_gemm::op
