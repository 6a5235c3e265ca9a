#include "runtime/deepseek_v4/state.h"

#include <algorithm>

namespace deep_gemm::runtime::deepseek_v4 {

namespace {

constexpr u32 kRingPage = 64, kIndexedPage = 64, kPooledPage = 2;  // rows of an FP8 page
constexpr u64 kLatentRowBytes = 576, kLatentScaleBytes = 8;        // in a page

i64 pages_of(u64 rows, u32 page_rows) {
    return static_cast<i64>((rows + page_rows - 1) / page_rows);
}

// Of one entry of the second dimension: a row, or an FP8 page.
u64 entry_bytes(const DeviceTensor& rows) {
    return rows.row_bytes() / static_cast<u64>(rows.extent(1));
}

// Rows [first, end) of the first sequence, which are those of a ring if there are fewer.
void visit_rows(std::string_view name, const DeviceTensor& rows, u32 page_rows, u64 first, u64 end,
                const ModelState::NamedVisit& visit) {
    const u64 count = static_cast<u64>(rows.extent(1)) * std::max(page_rows, 1u);
    for (u64 index = first; index < end; ++index) {
        const u64 row = index % count;
        if (page_rows == 0) {
            visit(name, rows.address() + row * entry_bytes(rows), entry_bytes(rows));
            continue;
        }
        const u64 page = rows.address() + row / page_rows * op::latent_page_bytes(page_rows),
                  slot = row % page_rows;
        visit(name, page + slot * kLatentRowBytes, kLatentRowBytes);
        visit(name, page + page_rows * kLatentRowBytes + slot * kLatentScaleBytes, kLatentScaleBytes);
    }
}

}  // namespace

void LayerState::visit_grown(u32 length, u32 ratio, const ModelState::Visit& visit) const {
    if (!compressed.present()) return;
    const u64 rows = length / ratio;
    // Of FP8 rows whole pages: their scales come after the rows.
    const u64 entries = compressed_page_rows ? static_cast<u64>(pages_of(rows, compressed_page_rows)) : rows;
    if (entries) visit(compressed.address(), entries * entry_bytes(compressed));
    if (rows && index_rows.present()) visit(index_rows.address(), rows * entry_bytes(index_rows));
}

void LayerState::visit_visible(const std::string& at, u32 length, u32 window, u32 ratio,
                               const ModelState::NamedVisit& visit) const {
    visit_rows(at + "ring", ring, ring_page_rows, length - std::min(length, window), length, visit);
    if (!compressed.present()) return;
    visit_rows(at + "compressed", compressed, compressed_page_rows, 0, length / ratio, visit);
    visit(at + "frontier", frontier.address(), frontier.row_bytes());
    if (!index_rows.present()) return;
    visit_rows(at + "index_rows", index_rows, 0, 0, length / ratio, visit);
    visit(at + "index_frontier", index_frontier.address(), index_frontier.row_bytes());
}

void LayerState::restore(const TensorView& row, void* stream) {
    if (frontier.present())
        op::compressor_restore(
            {.journal = frontier_journal.view(), .row = row, .state = frontier.view(), .stream = stream});
    if (index_frontier.present())
        op::compressor_restore(
            {.journal = index_journal.view(), .row = row, .state = index_frontier.view(), .stream = stream});
}

LayerState make_layer_state(const Loaded& model, const LayerConfig& layer, const StateSizes& sizes) {
    const Config& c = model.config;
    const i64 sequences = sizes.sequences;
    const Format act = activations_of(model.numerics);
    const auto make_rows = [&](u64 rows, u32 page_rows) {
        if (model.fp8_cache())
            return DeviceTensor(
                model.device, Format::int8,
                {sequences, pages_of(rows, page_rows), static_cast<i64>(op::latent_page_bytes(page_rows))});
        return DeviceTensor(model.device, act, {sequences, static_cast<i64>(rows), c.head_dim});
    };
    LayerState state;
    state.ring_page_rows = model.fp8_cache() ? kRingPage : 0;
    // A pass of t rows may write over rows that its first query does not see any more, and nothing else.
    state.ring = make_rows(u64{c.window} + sizes.max_rows - 1, kRingPage);
    if (!layer.compressed()) return state;
    const u32 page = layer.indexed() ? kIndexedPage : kPooledPage;
    const u64 rows = std::max<u64>(1, sizes.context / layer.compress_ratio);
    state.compressed_page_rows = model.fp8_cache() ? page : 0;
    state.compressed = make_rows(rows, page);
    const i64 triples = layer.indexed() ? 9 : 3;
    const auto fp32 = [&](i64 first, i64 dim) {
        return DeviceTensor(model.device, Format::fp32, {first, triples, dim});
    };
    const i64 journal = std::max<i64>(kMaxWindow, sizes.sequences);
    state.frontier = fp32(sequences, c.head_dim);
    state.frontier_journal = fp32(journal, c.head_dim);
    if (!layer.indexed()) return state;
    state.index_rows = {model.device, act, {sequences, static_cast<i64>(rows), c.index_dim}};
    state.index_frontier = fp32(sequences, c.index_dim);
    state.index_journal = fp32(journal, c.index_dim);
    return state;
}

Workspace::Workspace(const Loaded& model, const StateSizes& sizes) {
    const Config& c = model.config;
    const i64 rows = sizes.max_rows, streams = c.streams;
    const auto make = [&](Format format, std::vector<i64> shape) {
        shape.insert(shape.begin(), rows);
        return DeviceTensor(model.device, format, std::move(shape));
    };
    const Format act = activations_of(model.numerics);
    const auto real = [&](std::vector<i64> shape) { return make(act, std::move(shape)); };
    const auto fp32 = [&](std::vector<i64> shape) { return make(Format::fp32, std::move(shape)); };
    input = real({c.hidden});
    low_rank = real({c.q_rank});
    query = real({c.num_heads, c.head_dim});
    key_value = real({c.head_dim});
    output = real({c.hidden});
    post = fp32({streams});
    comb = fp32({streams, streams});
    pool_values = fp32({2 * c.head_dim});
    pool_gates = fp32({2 * c.head_dim});
    grouped = real({c.o_groups, c.o_rank});
    gate_logits = fp32({c.num_experts});
    experts = make(Format::int32, {c.top_k});
    expert_weights = fp32({c.top_k});
    mid = real({c.top_k, c.expert_width});
    shared_mid = real({1, c.expert_width});
    if (c.index_heads != 0) {
        index_query = real({c.index_heads, c.index_dim});
        index_weights = fp32({c.index_heads});
        index_pool_values = fp32({2 * c.index_dim});
        index_pool_gates = fp32({2 * c.index_dim});
        scores = fp32({std::max<i64>(1, sizes.context / 4)});
        picks = make(Format::int32, {c.index_topk});
    }
    if (model.numerics != Numerics::released) return;
    const auto fp8 = [&](std::vector<i64> shape) {
        shape.insert(shape.begin(), rows);
        return Fp8Rows(model.device, std::move(shape));
    };
    input_fp8 = fp8({c.hidden});
    low_rank_fp8 = fp8({c.q_rank});
    u64 seen = c.window;  // rows that a query sees at most; whole pages of them
    for (const LayerConfig& layer : c.layers)
        if (layer.compressed())
            seen = std::max<u64>(
                seen,
                u64{c.window} + (layer.indexed() ? c.index_topk : sizes.context / layer.compress_ratio));
    attention_records = {model.device, Format::fp32,
                         op::latent_records_shape(std::min<i64>(rows, kRecordRows), c.num_heads,
                                                  static_cast<i64>(seen + kIndexedPage))};
    grouped_fp8 = fp8({i64{c.o_groups} * c.o_rank});
    mid_fp8 = fp8({c.top_k, c.expert_width});
    const auto prepare = [&](const BlockWeights& block) {
        if (block.shared.w1.low_precision() && !shared_expert.present())
            shared_expert = SharedSpace(model.device, rows, c.expert_width);
        if (block.packed && !packed_experts.present())
            packed_experts = ExpertsSpace(model.device, *block.packed, rows, c.top_k);
    };
    for (const BlockWeights& block : model.weights.layers) prepare(block);
    if (model.weights.mtp) prepare(model.weights.mtp->block);
    shared_fp8 = fp8({1, c.expert_width});
}

}  // namespace deep_gemm::runtime::deepseek_v4
