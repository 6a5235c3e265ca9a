#include "op/moe_few.h"

#include "op/launch.h"
#include "op/model_check.h"

#include <deep_gemm/spec/moe_few.h>

namespace deep_gemm::op {

namespace {

constexpr const char* kFewHeader = "deep_gemm/kernel/sm90_moe_few.cuh";
constexpr jit::KernelId kUp{"sm90_moe_few_up", kFewHeader}, kDown{"sm90_moe_few_down", kFewHeader};

MoeFewUpSpec up_spec(const MoeShape& shape, const FusedMoeArguments& a) {
    return {.x = a.x.format,
            .chunks = shape.hidden / kFewChunk,
            .limited = a.swiglu_limit.has_value(),
            .weighted = a.weight_before_down};
}

MoeFewDownSpec down_spec(const MoeShape& shape, const FusedMoeArguments& a) {
    return {.chunks = shape.intermediate / kFewChunk,
            .combine = {.d = a.out.format,
                        .top_k = shape.top_k,
                        .combine_weighted = !a.weight_before_down,
                        .shared = a.shared.present()}};
}

MoeFewWeights weights_of(const TensorView& w, const TensorView& scales) {
    return {.data = static_cast<const u8*>(w.data),
            .scales = static_cast<const float*>(scales.data),
            .stride_expert = stride_of(w, 0),
            .stride_row = stride_of(w, 1),
            .scale_stride_expert = stride_of(scales, 0),
            .scale_stride_row = stride_of(scales, 1),
            .scale_stride_chunk = stride_of(scales, 2)};
}

}  // namespace

bool serves_few(const driver::Device& device, const MoeShape& shape) {
    return device.properties().arch == "90a" && !shape.fp4 && shape.hidden % kFewChunk == 0 &&
           shape.intermediate % kFewChunk == 0 && shape.hidden / kFewChunk <= kMaxFewChunks &&
           shape.intermediate / kFewChunk * shape.top_k <= kMaxFewChunks;
}

void run_moe_few(Device& device, const FusedMoeArguments& a, const MoeShape& shape, const TensorView& mid) {
    const auto& w = std::get<MoeFp8Weights>(a.weights);
    const u32 pairs = shape.tokens * shape.top_k;
    const MoeFewUpParams up{.x = a.x.data,
                            .w = weights_of(w.w13, w.w13_scale),
                            .topk_ids = pointer_of<const i32>(a.topk_ids),
                            .weights = pointer_of<const float>(a.topk_weights),
                            .mid = mid.data,
                            .x_stride = stride_of(a.x, 0),
                            .top_k = shape.top_k,
                            .first_expert = a.first_expert,
                            .experts = shape.experts,
                            .n = shape.intermediate,
                            .limit = a.swiglu_limit.value_or(0)};
    constexpr u32 kChannels = kFewUpThreads / 128 * kFewUpChannels;
    const u64 up_blocks = u64{pairs} * (shape.intermediate / kChannels);
    launch(device, kUp, up_spec(shape, a), {grid_of("fused_moe", up_blocks), kFewUpThreads}, a.stream, up,
           {reads(a.x), reads(w.w13), reads(w.w13_scale), reads(a.topk_ids), reads(a.topk_weights),
            writes(mid)});
    const MoeFewDownParams down{.mid = mid.data,
                                .w = weights_of(w.w2, w.w2_scale),
                                .topk_ids = pointer_of<const i32>(a.topk_ids),
                                .weights = pointer_of<const float>(a.topk_weights),
                                .shared = a.shared.data,
                                .d = a.out.data,
                                .shared_stride = a.shared.present() ? stride_of(a.shared, 0) : 0,
                                .d_stride = stride_of(a.out, 0),
                                .first_expert = a.first_expert,
                                .experts = shape.experts,
                                .n = shape.hidden};
    const u64 down_blocks = u64{shape.tokens} * (shape.hidden / kFewDownRows);
    launch(device, kDown, down_spec(shape, a), {grid_of("fused_moe", down_blocks), kFewDownThreads}, a.stream,
           down,
           {reads(mid), reads(w.w2), reads(w.w2_scale), reads(a.topk_ids), reads(a.topk_weights),
            reads(a.shared), writes(a.out)});
}

}  // namespace deep_gemm::op
