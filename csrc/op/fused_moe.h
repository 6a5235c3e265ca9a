// A whole mixture of experts: group -> quantise -> gate and up -> SwiGLU and requantise -> down -> sum.
// Nothing is allocated or synchronised; every intermediate, a wide FP4 plan's copy of the activations too,
// lives in the caller's workspace, and all of it may
// be captured in a CUDA graph (run once before, so that kernels are compiled).
#pragma once

#include "op/api.h"
#include "op/fp4_gemm.h"
#include "op/moe.h"

#include <variant>

namespace deep_gemm {

struct MoeShape {
    u32 tokens = 0, top_k = 1, experts = 1;
    u32 hidden = 0;        // columns of x
    u32 intermediate = 0;  // channels of an expert
    bool fp4 = false;      // FP4 weights: the products gather rows themselves, without gaps between experts
    bool bf16 = false;     // bf16 activations, FP4 weights: nothing is quantised
};

// Weights of all experts: fp8_e4m3 with an fp32 scale for 128 x 128.
struct MoeFp8Weights {
    TensorView w13 = {}, w13_scale = {};  // [experts, 2 * intermediate, hidden]: gate rows, then up rows
    TensorView w2 = {}, w2_scale = {};    // [experts, hidden, intermediate]
};

// FP4 weights, packed: w13 [experts, 2 * intermediate, hidden], w2 [experts, hidden, intermediate]; hidden and
// intermediate are multiples of 32, with NVFP4 of 16.
struct MoeFp4Weights {
    op::Fp4WeightViews w13, w2;
};

[[nodiscard]] u64 moe_workspace_bytes(const MoeShape& shape);

struct FusedMoeArguments {
    TensorView x = {};             // bf16 or fp32 [T, hidden], rows 16-byte aligned
    TensorView topk_ids = {};      // int32 [T, top_k]; pairs of experts that are not here are skipped
    TensorView topk_weights = {};  // fp32 [T, top_k]
    std::variant<MoeFp8Weights, MoeFp4Weights> weights;
    TensorView shared = {};     // bf16 [T, hidden] or absent: output of a shared expert, added last
    TensorView out = {};        // bf16 or fp32 [T, hidden]
    TensorView workspace = {};  // int8, at least moe_workspace_bytes(), 128-byte aligned
    i64 first_expert = 0;
    std::optional<float> swiglu_limit;
    // DeepSeek-V4 multiplies the activation by the routing weight, before it is quantised; others the output.
    bool weight_before_down = true;
    // Row t has the same bits in any batch: kernels are chosen without looking at the batch.
    bool invariant = false;
    // With `invariant`: whether pairs are grouped by expert (six launches), or read their expert's weights
    // one by one (two, for few pairs: op/moe_few.h). The same bits; absent: as is faster.
    std::optional<bool> grouped;
    // x and the activation are multiplied as bf16, not quantised to FP8: x is bf16, weights are FP4, not
    // nv_single.
    bool bf16_activations = false;
    // With bf16_activations: no two E4M3 terms, see Fp4GemmArguments.
    bool bf16_products = false;
    // One FP8 scale for each token, and for each of its activations, not one for 128 channels: FP4 weights.
    bool per_token = false;
    void* stream = nullptr;
};

void fused_moe(const FusedMoeArguments& arguments);

}  // namespace deep_gemm
