// One transformer block of DeepSeek-V4 as a list of operations, and the memory it works in.
#pragma once

#include "op/model_ops.h"
#include "runtime/engine.h"

namespace deep_gemm::runtime {

// What a layer remembers of a sequence.
struct LayerState {
    DeviceTensor ring, compressed;            // latent rows: [1, rows, d], or FP8 pages
    DeviceTensor frontier, frontier_journal;  // of the compressor
    DeviceTensor index_rows;                  // [1, rows, index_dim]
    DeviceTensor index_frontier, index_journal;
    u32 ring_page_rows = 0, compressed_page_rows = 0;  // FP8 only

    [[nodiscard]] op::LatentRows ring_rows() const { return {ring.view(), ring_page_rows}; }
    [[nodiscard]] op::LatentRows compressed_rows() const { return {compressed.view(), compressed_page_rows}; }
    // Bytes of `compressed` and `index_rows` that hold the rows of a sequence of `length` tokens.
    [[nodiscard]] u64 compressed_bytes(u32 length, u32 ratio) const;
    [[nodiscard]] u64 index_bytes(u32 length, u32 ratio) const;
};

constexpr u32 kMaxWindow = 8;  // rows of a speculative window: one token and its drafts

[[nodiscard]] LayerState make_layer_state(const Engine& engine, const LayerConfig& layer);

// Activations of up to `rows` rows. One for each session: forward passes of different sessions may overlap.
struct Workspace {
    Workspace(const Engine& engine, u32 rows);

    DeviceTensor input, low_rank, query, key_value, output;  // [rows, ..]
    DeviceTensor post, comb;
    DeviceTensor pool_values, pool_gates;  // fp32
    DeviceTensor index_query, index_weights, scores, picks;
    DeviceTensor grouped;  // [rows, o_groups, o_rank]
    DeviceTensor gate_logits, experts, expert_weights;
    DeviceTensor mid, shared_mid;  // [rows, top_k, i], [rows, 1, i]
    DeviceTensor input_fp8, input_scale, low_rank_fp8, low_rank_scale, grouped_fp8, grouped_scale;
    DeviceTensor mid_fp8, mid_scale, shared_fp8, shared_scale;
};

// The rows of one forward pass; all views have t rows.
struct Pass {
    i64 t = 0;
    TensorView tokens, positions;  // int32 [t]
    bool journal = false;          // keep each row's compressor state; t <= kMaxWindow
    void* stream = nullptr;
};

// x [t, streams, hidden] through attention and experts, in place; pushes the rows into `state`.
void run_block(const Engine& engine, const BlockWeights& weights, LayerState& state, Workspace& workspace,
               const TensorView& x, const Pass& pass);

// y = x w^T; x is quantised into x8 and scale first where the numerics and w's format ask for it.
void run_linear(const Engine& engine, const Linear& w, const TensorView& x, const TensorView& y,
                const TensorView& x8, const TensorView& scale, void* stream);

// Takes the compressors of a block back to the state after row row[0] of the last pass with a journal.
void restore_block(LayerState& state, const TensorView& row, void* stream);

}  // namespace deep_gemm::runtime
