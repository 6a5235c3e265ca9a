// One transformer block of Qwen3-MoE: its weights, what it remembers, and the operations.
#pragma once

#include "runtime/pages.h"
#include "runtime/qwen3_moe/config.h"
#include "runtime/weight_loader.h"

namespace deep_gemm::runtime::qwen3_moe {

struct BlockWeights {
    DeviceTensor input_norm, post_norm, q_norm, k_norm;
    Linear q, k, v, o, gate;
    // One of three: FP4 and FP8 for tensor cores, or as they are stored.
    std::optional<PackedExperts> packed;
    std::optional<Fp8Experts> grouped;
    ExpertWeights experts;
};

struct Weights {
    Linear embed, head;  // head absent: tied to embed
    DeviceTensor norm;
    std::vector<BlockWeights> layers;
};
[[nodiscard]] Weights load_weights(Loader& loader, const Config& config);

// A loaded model as its states see it.
struct Loaded {
    Device& device;
    Config config;
    Numerics numerics;
    Weights weights;
    DeviceTensor frequencies;  // fp32 [head_dim / 2, 2]
};

// Keys and values of every token, in the engine's pages [pages, kPageTokens, kv heads, head_dim]: they only
// grow.
struct LayerState {
    const DeviceTensor &keys, &values;
};
[[nodiscard]] std::vector<PageShape> page_shapes_of(const Config& config,
                                                    Numerics numerics);  // of each layer, in that order

// Activations of up to `max_rows` rows.
struct Workspace {
    Workspace(const Loaded& model, const StateSizes& sizes);

    DeviceTensor input, query, key, value;  // [rows, hidden], [rows, heads, head_dim]
    DeviceTensor records;                   // of attention, for as many rows at once
    DeviceTensor gate_logits, experts, expert_weights, mid;
    ExpertsSpace packed_experts;
    DeviceTensor grouped_experts;
    Fp8Rows input_fp8, query_fp8, mid_fp8;
};

// x [t, hidden] through attention and experts, in place; pushes the rows into `state`.
void run_block(const Loaded& model, const BlockWeights& weights, const LayerState& state,
               const TensorView& table, Workspace& workspace, const TensorView& x, const Pass& pass);

}  // namespace deep_gemm::runtime::qwen3_moe
