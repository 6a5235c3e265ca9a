// What a session of DeepSeek-V4 keeps: latent rows and compressor frontiers of each layer, and activations.
#pragma once

#include "op/model_ops.h"
#include "runtime/deepseek_v4/weights.h"

namespace deep_gemm::runtime::deepseek_v4 {

[[nodiscard]] constexpr bool has_fp8_cache(Numerics numerics) {
    return numerics != Numerics::exact;
}

// Whether the indexer's rows lie in FP4; narrower indexers than the released ones only round to it.
[[nodiscard]] constexpr bool has_fp4_index(const Config& config, Numerics numerics) {
    return has_fp8_cache(numerics) && config.index_dim == 128;
}

// A loaded model as its states see it.
struct Loaded {
    Device& device;
    Config config;
    Numerics numerics;
    Weights weights;
    DeviceTensor window_frequencies, compress_frequencies;  // fp32 [rope_dim / 2, 2]

    [[nodiscard]] bool fp8_cache() const { return has_fp8_cache(numerics); }
    [[nodiscard]] TensorView frequencies(bool compressed) const {
        return (compressed ? compress_frequencies : window_frequencies).view();
    }
};

// What a layer remembers of sequences; s of them.
struct LayerState {
    DeviceTensor ring;                        // latent rows: [s, rows, d], or FP8 pages
    DeviceTensor frontier, frontier_journal;  // of the compressor
    DeviceTensor index_frontier, index_journal;
    u32 ring_page_rows = 0;  // FP8 only

    // The engine's pages: of latent rows [pages, page_rows, d] or FP8 rows, and [pages, page_rows, index_dim]
    // or FP4 rows.
    const DeviceTensor *compressed = nullptr, *index_rows = nullptr;
    u32 page_rows = 0;
    const PageTable* pages = nullptr;

    [[nodiscard]] op::LatentRows ring_rows() const { return {ring.view(), ring_page_rows}; }
    [[nodiscard]] op::LatentRows compressed_rows() const { return paged(compressed); }
    [[nodiscard]] op::LatentRows indexed_rows() const { return paged(index_rows); }
    // Of the first sequence, what `length` tokens see: compressed rows, or everything.
    void visit_grown(u32 length, u32 ratio, const ModelState::Visit& visit) const;
    void visit_visible(const std::string& at, u32 length, u32 window, u32 ratio,
                       const ModelState::NamedVisit& visit) const;
    void restore(const TensorView& row, void* stream);

  private:
    [[nodiscard]] op::LatentRows paged(const DeviceTensor* rows) const {
        return rows ? op::LatentRows{rows->view(), page_rows, pages->view()} : op::LatentRows{};
    }
};

// The caches of the layers that have any: compressed rows, then the indexer's.
[[nodiscard]] std::vector<PageShape> page_shapes_of(const Config& config, Numerics numerics);
// `next_cache`: of the pool, which the layer's are counted from.
[[nodiscard]] LayerState make_layer_state(const Loaded& model, const LayerConfig& layer,
                                          const PageTable& pages, size_t& next_cache,
                                          const StateSizes& sizes);

constexpr i64 kRecordRows = 24;   // of a pass, up to which attention gets memory between two kernels
constexpr i64 kHcFp8Step = 1024;  // channels of which hc_pre makes FP8 rows

// Activations of up to `max_rows` rows.
struct Workspace {
    Workspace(const Loaded& model, const StateSizes& sizes);

    DeviceTensor input, low_rank, query, key_value, output;  // [rows, ..]
    DeviceTensor post, comb;
    DeviceTensor attention_records;                    // fp32, for up to kRecordRows rows
    DeviceTensor pool_values, pool_gates;              // fp32
    DeviceTensor index_pool_values, index_pool_gates;  // fp32
    DeviceTensor index_query, index_weights, scores, peaks, picks;
    DeviceTensor grouped;  // [rows, o_groups, o_rank]
    DeviceTensor gate_logits, experts, expert_weights;
    DeviceTensor mid, shared_mid;  // [rows, top_k, i], [rows, 1, i]
    ExpertsSpace packed_experts;
    SharedSpace shared_expert;
    Fp8Rows input_fp8, low_rank_fp8, grouped_fp8, mid_fp8, shared_fp8;
};

// x [t, streams, hidden] through attention and experts, in place; pushes the rows into `state`. The output of
// the experts stays in the workspace: the next block (not the `first`), or finish_blocks(), adds it to x.
void run_block(const Loaded& model, const BlockWeights& weights, LayerState& state, Workspace& workspace,
               const TensorView& x, const Pass& pass, bool first);
void finish_blocks(const Workspace& workspace, const TensorView& x, const Pass& pass);

}  // namespace deep_gemm::runtime::deepseek_v4
