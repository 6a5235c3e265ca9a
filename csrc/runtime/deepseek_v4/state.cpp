#include "runtime/deepseek_v4/state.h"

#include <deep_gemm/spec/top_k.h>

#include <algorithm>

namespace deep_gemm::runtime::deepseek_v4 {

namespace {

constexpr u32 kRingPage = 64;  // rows of an FP8 page
// In a page: rows of so many bytes, and after all of them their scales.
struct RowBytes {
    u64 values = 0, scales = 0;
};
constexpr RowBytes kLatentBytes{576, 8}, kIndexBytes{64, 4};

// Rows [first, first + count) of a page.
void visit_page(std::string_view name, u64 page, u32 page_rows, const RowBytes& bytes, u64 first, u64 count,
                const ModelState::NamedVisit& visit) {
    visit(name, page + first * bytes.values, count * bytes.values);
    if (bytes.scales != 0)
        visit(name, page + page_rows * bytes.values + first * bytes.scales, count * bytes.scales);
}

// Rows of positions [first, end) in the ring of the first sequence, one by one: a ring of another length has
// them elsewhere.
void visit_ring(std::string_view name, const DeviceTensor& ring, u32 page_rows, u64 first, u64 end,
                const ModelState::NamedVisit& visit) {
    const u64 entry = ring.row_bytes() / static_cast<u64>(ring.extent(1));
    const u32 in_entry = std::max(page_rows, 1u);
    const u64 rows = static_cast<u64>(ring.extent(1)) * in_entry;
    for (u64 position = first; position < end; ++position) {
        const u64 row = position % rows;
        visit_page(name, ring.address() + row / in_entry * entry, page_rows,
                   page_rows != 0 ? kLatentBytes : RowBytes{entry}, row % in_entry, 1, visit);
    }
}

// The first `rows` rows of the pages.
void visit_pages(std::string_view name, const DeviceTensor& pool, std::span<const i32> pages, u32 page_rows,
                 const RowBytes& narrow, u64 rows, const ModelState::NamedVisit& visit) {
    const RowBytes bytes =
        pool.format() == Format::int8 ? narrow : RowBytes{pool.row_bytes() / static_cast<u64>(page_rows)};
    for (size_t i = 0; i * page_rows < rows; ++i)
        visit_page(name, pool.address() + static_cast<u64>(pages[i]) * pool.row_bytes(), page_rows, bytes, 0,
                   std::min<u64>(page_rows, rows - i * page_rows), visit);
}

}  // namespace

void LayerState::visit_grown(u32 length, u32 ratio, const ModelState::Visit& visit) const {
    const auto unnamed = [&](std::string_view, u64 address, u64 bytes) { visit(address, bytes); };
    if (compressed)
        visit_pages("", *compressed, pages->pages(0), page_rows, kLatentBytes, length / ratio, unnamed);
    if (index_rows)
        visit_pages("", *index_rows, pages->pages(0), page_rows, kIndexBytes, length / ratio, unnamed);
}

void LayerState::visit_visible(const std::string& at, u32 length, u32 window, u32 ratio,
                               const ModelState::NamedVisit& visit) const {
    visit_ring(at + "ring", ring, ring_page_rows, length - std::min(length, window), length, visit);
    const auto add = [&](const char* name, const DeviceTensor* rows, const RowBytes& narrow,
                         const char* open_name, const DeviceTensor& open) {
        if (!rows) return;
        visit_pages(at + name, *rows, pages->pages(0), page_rows, narrow, length / ratio, visit);
        visit(at + open_name, open.address(), open.row_bytes());
    };
    add("compressed", compressed, kLatentBytes, "frontier", frontier);
    add("index_rows", index_rows, kIndexBytes, "index_frontier", index_frontier);
}

void LayerState::restore(const TensorView& row, void* stream) {
    if (frontier.present())
        op::compressor_restore(
            {.journal = frontier_journal.view(), .row = row, .state = frontier.view(), .stream = stream});
    if (index_frontier.present())
        op::compressor_restore(
            {.journal = index_journal.view(), .row = row, .state = index_frontier.view(), .stream = stream});
}

std::vector<PageShape> page_shapes_of(const Config& c, Numerics numerics) {
    const Format act = activations_of(numerics);
    std::vector<PageShape> shapes;
    for (const LayerConfig& layer : c.layers) {
        if (!layer.compressed()) continue;
        const u32 rows = page_rows_for(layer.compress_ratio);
        if (has_fp8_cache(numerics))
            shapes.push_back({Format::int8, {static_cast<i64>(op::latent_page_bytes(rows))}});
        else
            shapes.push_back({act, {rows, c.head_dim}});
        if (!layer.indexed()) continue;
        if (has_fp4_index(c, numerics))
            shapes.push_back({Format::int8, {static_cast<i64>(op::index_page_bytes(rows))}});
        else
            shapes.push_back({act, {rows, c.index_dim}});
    }
    return shapes;
}

LayerState make_layer_state(const Loaded& model, const LayerConfig& layer, const PageTable& pages,
                            size_t& next_cache, const StateSizes& sizes) {
    const Config& c = model.config;
    const i64 sequences = sizes.sequences;
    LayerState state;
    // A pass of t rows may write over rows that its first query does not see any more, and nothing else.
    const u32 ring_rows = c.window + sizes.max_rows - 1;
    if (model.fp8_cache()) {
        state.ring_page_rows = kRingPage;
        state.ring = {
            model.device,
            Format::int8,
            {sequences, ceil_div(ring_rows, kRingPage), static_cast<i64>(op::latent_page_bytes(kRingPage))}};
    } else {
        state.ring = {model.device, activations_of(model.numerics), {sequences, ring_rows, c.head_dim}};
    }
    if (!layer.compressed()) return state;
    state.pages = &pages;
    state.page_rows = page_rows_for(layer.compress_ratio);
    state.compressed = &pages.pool().memory(next_cache++);
    const i64 triples = layer.indexed() ? 9 : 3;
    const auto fp32 = [&](i64 first, i64 dim) {
        return DeviceTensor(model.device, Format::fp32, {first, triples, dim});
    };
    const i64 journal = std::max<i64>(kMaxWindow, sizes.sequences);
    state.frontier = fp32(sequences, c.head_dim);
    state.frontier_journal = fp32(journal, c.head_dim);
    if (!layer.indexed()) return state;
    state.index_rows = &pages.pool().memory(next_cache++);
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
        const i64 columns = i64{pages_for(sizes.context)} * page_rows_for(4);
        scores = fp32({columns});
        peaks = make(Format::int32, {(columns + kScoresOfPeak - 1) / kScoresOfPeak});
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
                                                  static_cast<i64>(seen + page_rows_for(4)))};
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
