#include "op/moe_few.h"

#include "op/moe_parts.h"

namespace deep_gemm::op {

namespace {

constexpr const char* kFewHeader = "deep_gemm/kernel/sm90_moe_few.cuh";
constexpr jit::KernelId kUp{"sm90_moe_few_up", kFewHeader}, kDown{"sm90_moe_few_down", kFewHeader};

// One of the two matrices of all experts, [experts, n, k].
struct Matrix {
    MoeFewWeightSpec spec;
    MoeFewWeights params;
    u32 experts, n, k;
    bool one_run = true;
    std::vector<driver::MemoryRange> memory;
};

Matrix matrix_of(const TensorView& w, const TensorView& scales) {
    return {.spec = {},
            .params = {.data = pointer_of<const u8>(w),
                       .scales = pointer_of<const float>(scales),
                       .stride_expert = stride_of(w, 0),
                       .stride_row = stride_of(w, 1),
                       .scale_stride_expert = stride_of(scales, 0),
                       .scale_stride_row = stride_of(scales, 1),
                       .scale_stride_chunk = stride_of(scales, 2)},
            .experts = as_u32(w.shape[0]),
            .n = as_u32(w.shape[1]),
            .k = as_u32(w.shape[2]),
            .memory = {reads(w), reads(scales)}};
}
Matrix matrix_of(const Fp4WeightViews& w) {
    const u64 row_blocks = fp4_row_blocks(w.shape.n);
    const u64 block_bytes = u64{fp4_k_blocks(w.shape.k)} * fp4_blob_bytes_of(w.form);
    return {.spec = {.fp4 = true, .form = w.form},
            .params = {.data = pointer_of<const u8>(w.blobs),
                       .scales = pointer_of<const float>(w.row_scales),
                       .stride_expert = row_blocks * block_bytes,
                       .stride_row = block_bytes,
                       .scale_stride_expert = row_blocks * kFp4BlockRows,
                       .scale_stride_row = 0,
                       .scale_stride_chunk = 0},
            .experts = w.shape.experts,
            .n = w.shape.n,
            .k = w.shape.k,
            .one_run = !w.runs.present(),
            .memory = {reads(w.blobs), reads(w.row_scales)}};
}

struct Matrices {
    Matrix w13, w2;
};
Matrices matrices_of(const std::variant<MoeFp8Weights, MoeFp4Weights>& weights) {
    if (const auto* fp4 = std::get_if<MoeFp4Weights>(&weights))
        return {matrix_of(fp4->w13), matrix_of(fp4->w2)};
    const auto& fp8 = std::get<MoeFp8Weights>(weights);
    return {matrix_of(fp8.w13, fp8.w13_scale), matrix_of(fp8.w2, fp8.w2_scale)};
}

}  // namespace

bool serves_few(const driver::Device& device, const std::variant<MoeFp8Weights, MoeFp4Weights>& weights,
                i64 top_k) {
    if (device.properties().arch != "90a" || top_k > kMaxTopK) return false;
    const auto [w13, w2] = matrices_of(weights);
    const auto fits = [](const Matrix& m, i64 times) {
        return m.k % kFewChunk == 0 && m.k / kFewChunk * times <= kMaxFewChunks && m.one_run &&
               why_illegal(m.spec) == nullptr;
    };
    return fits(w13, 1) && fits(w2, top_k) && w2.n % kFewChunk == 0;
}

Prepared<MoeFewUpSpec, MoeFewUpParams> prepare_few_up(const MoeFewArguments& a) {
    const auto [w13, w2] = matrices_of(a.weights);
    const i64 tokens = a.topk_ids.shape[0], top_k = a.topk_ids.shape[1];
    const MoeFewUpSpec spec{.w = w13.spec,
                            .x = a.x.format,
                            .rule = a.rule,
                            .chunks = w13.k / kFewChunk,
                            .limited = a.swiglu_limit.has_value(),
                            .weighted = a.weight_before_down};
    const MoeFewUpParams params{.x = a.x.data,
                                .x_scales = pointer_of<const float>(a.x_scale),
                                .w = w13.params,
                                .topk_ids = pointer_of<const i32>(a.topk_ids),
                                .weights = pointer_of<const float>(a.topk_weights),
                                .mid = a.mid.data,
                                .x_stride = stride_of(a.x, 0),
                                .x_scale_stride = a.x_scale.present() ? stride_of(a.x_scale, 0) : 0,
                                .top_k = as_u32(top_k),
                                .first_expert = a.first_expert,
                                .experts = w13.experts,
                                .n = w2.k,
                                .limit = a.swiglu_limit.value_or(0)};
    const u64 blocks = static_cast<u64>(tokens * top_k) * (w2.k / kFewUpChannels);
    auto memory = w13.memory;
    for (const TensorView& t : {a.x, a.x_scale, a.topk_ids, a.topk_weights}) memory.push_back(reads(t));
    memory.push_back(writes(a.mid));
    return {spec, params, grid_of("moe_few", blocks), std::move(memory)};
}

void moe_few_up(const MoeFewArguments& a) {
    launch(*a.out.device, kUp, kFewUpThreads, a.stream, prepare_few_up(a));
}

void moe_few_down(const MoeFewArguments& a) {
    const Matrix w2 = matrices_of(a.weights).w2;
    const i64 tokens = a.topk_ids.shape[0], top_k = a.topk_ids.shape[1];
    const u64 blocks = static_cast<u64>(tokens) * (w2.n / kFewRows);
    const MoeFewDownSpec spec{.w = w2.spec,
                              .rule = a.rule,
                              .chunks = w2.k / kFewChunk,
                              .ctas = few_down_ctas(w2.spec, blocks, a.out.device->properties().num_sms),
                              .combine = {.d = a.out.format,
                                          .top_k = as_u32(top_k),
                                          .combine_weighted = !a.weight_before_down,
                                          .shared = a.shared.present()}};
    const MoeFewDownParams params{.mid = a.mid.data,
                                  .w = w2.params,
                                  .topk_ids = pointer_of<const i32>(a.topk_ids),
                                  .weights = pointer_of<const float>(a.topk_weights),
                                  .shared = a.shared.data,
                                  .d = a.out.data,
                                  .shared_stride = a.shared.present() ? stride_of(a.shared, 0) : 0,
                                  .d_stride = stride_of(a.out, 0),
                                  .first_expert = a.first_expert,
                                  .experts = w2.experts,
                                  .n = w2.n};
    // Whoever wrote the experts has finished before moe_few_up() lets this launch start.
    auto memory = w2.memory;
    for (driver::MemoryRange& range : memory) range.constant = true;
    for (const TensorView& t : {a.topk_ids, a.topk_weights}) memory.push_back(reads_constant(t));
    for (const TensorView& t : {a.mid, a.shared}) memory.push_back(reads(t));
    memory.push_back(writes(a.out));
    launch(*a.out.device, kDown, spec, {grid_of("moe_few", blocks), kFewDownThreads}, a.stream, params,
           std::span<const driver::MemoryRange>(memory));
}

}  // namespace deep_gemm::op
