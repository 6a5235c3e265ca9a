#include "runtime/fp8_experts.h"

#include "op/fused_moe.h"

namespace deep_gemm::runtime {

bool can_group_experts(const Device& device, i64 experts, i64 hidden, i64 width, i64 top_k) {
    constexpr i64 kScaled = 128;  // rows and columns of a scale: w1 and w3 may not share one
    return device.properties().arch == "90a" && experts <= kMaxExperts && top_k <= kMaxTopK &&
           hidden % kScaled == 0 && width % kScaled == 0;
}

DeviceTensor make_fp8_experts_space(Device& device, const Fp8Experts& experts, i64 rows, i64 top_k) {
    const DeviceTensor& w2 = experts.w2.data;
    const u64 bytes = moe_workspace_bytes({.tokens = static_cast<u32>(rows),
                                           .top_k = static_cast<u32>(top_k),
                                           .experts = static_cast<u32>(w2.extent(0)),
                                           .hidden = static_cast<u32>(w2.extent(1)),
                                           .intermediate = static_cast<u32>(w2.extent(2))});
    return {device, Format::int8, {static_cast<i64>(bytes)}};
}

void run_fp8_experts(const Fp8ExpertsCall& c) {
    // The two matrices of an expert as one.
    const auto joined = [](const DeviceTensor& t) {
        return t.as({t.extent(0) / 2, 2 * t.extent(1), t.extent(2)});
    };
    fused_moe({.x = c.x,
               .topk_ids = c.chosen,
               .topk_weights = c.weights,
               .weights = MoeFp8Weights{.w13 = joined(c.w.w13.data),
                                        .w13_scale = joined(c.w.w13.scale),
                                        .w2 = c.w.w2.data.view(),
                                        .w2_scale = c.w.w2.scale.view()},
               .shared = c.add,
               .out = c.y,
               .workspace = c.space.view(),
               .swiglu_limit = {},
               .weight_before_down = false,
               .invariant = true,
               .grouped = {},
               .stream = c.stream});
}

}  // namespace deep_gemm::runtime
