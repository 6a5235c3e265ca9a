#include "runtime/block.h"

#include "op/quantize.h"

#include <cmath>

namespace deep_gemm::runtime {

namespace {

constexpr u32 kRingPage = 64, kIndexedPage = 64, kPooledPage = 2;  // rows of an FP8 page

i64 pages_of(u64 rows, u32 page_rows) {
    return static_cast<i64>((rows + page_rows - 1) / page_rows);
}

DeviceTensor make_rows(const Engine& engine, u64 rows, u32 page_rows) {
    if (engine.numerics().fp8_cache)
        return {engine.device(),
                Format::int8,
                {1, pages_of(rows, page_rows), static_cast<i64>(op::latent_page_bytes(page_rows))}};
    return {engine.device(),
            engine.numerics().activations,
            {1, static_cast<i64>(rows), engine.config().head_dim}};
}

// [a, b, k] as [a b, k], for packed views.
TensorView flattened(TensorView view) {
    if (view.rank != 3) return view;
    view.shape[0] *= view.shape[1];
    view.shape[1] = view.shape[2], view.strides[0] = view.strides[1], view.strides[1] = view.strides[2];
    view.rank = 2;
    return view;
}

// Rows to FP8 in groups of 128 columns with power-of-two scales, as the model was released to run.
void quantize_rows(const TensorView& x, const TensorView& x8, const TensorView& scale, void* stream) {
    QuantizeArguments arguments{.recipe = Recipe::fp8_128, .rule = ScaleRule::up};
    arguments.x = flattened(x), arguments.codes = flattened(x8), arguments.scales = flattened(scale);
    arguments.stream = stream;
    quantize(arguments);
}

// What a linear layer's input looks like: itself, or its FP8 form.
struct Input {
    TensorView x, scale;
};

class BlockPass {
  public:
    BlockPass(const Engine& engine, const BlockWeights& weights, LayerState& state, Workspace& workspace,
              const Pass& pass)
        : engine_(engine), c_(engine.config()), w_(weights), state_(state), s_(workspace), pass_(pass) {}

    void run(const TensorView& x) {
        hc_in(x, w_.attention_hc, w_.attention_norm);
        attention();
        hc_out(x);
        hc_in(x, w_.ffn_hc, w_.ffn_norm);
        experts();
        hc_out(x);
    }

  private:
    [[nodiscard]] TensorView rows(const DeviceTensor& tensor) const { return tensor.rows(0, pass_.t); }
    [[nodiscard]] TensorView frequencies() const { return engine_.frequencies(w_.layer.compressed()); }

    void hc_in(const TensorView& x, const HcWeights& hc, const DeviceTensor& norm) {
        op::hc_pre({.x = x,
                    .fn = hc.fn.view(),
                    .base = hc.base.view(),
                    .scale = hc.scale.view(),
                    .weight = norm.view(),
                    .y = rows(s_.input),
                    .post = rows(s_.post),
                    .comb = rows(s_.comb),
                    .sinkhorn_iterations = c_.sinkhorn_iterations,
                    .hc_eps = c_.hc_epsilon,
                    .rms_eps = c_.rms_epsilon,
                    .stream = pass_.stream});
    }
    void hc_out(const TensorView& x) {
        op::hc_post({.x = x,
                     .y = rows(s_.output),
                     .post = rows(s_.post),
                     .comb = rows(s_.comb),
                     .out = x,
                     .stream = pass_.stream});
    }

    Input quantized(const TensorView& x, const DeviceTensor& fp8, const DeviceTensor& scale) {
        if (!engine_.numerics().fp8_activations) return {x, {}};
        quantize_rows(x, rows(fp8), rows(scale), pass_.stream);
        return {rows(fp8), rows(scale)};
    }
    // `low`: the same input in FP8, for matrices that take it.
    void linear(const Linear& w, const TensorView& x, const Input& low, const TensorView& y) {
        const Input in = w.low_precision() ? low : Input{x, {}};
        op::project({.x = in.x,
                     .x_scale = in.scale,
                     .w = w.data.view(),
                     .w_scale = w.scale.view(),
                     .y = y,
                     .add = {},
                     .stream = pass_.stream});
    }

    void attention() {
        const TensorView x = rows(s_.input), low_rank = rows(s_.low_rank), query = rows(s_.query);
        const Input low = quantized(x, s_.input_fp8, s_.input_scale);
        linear(w_.wq_a, x, low, low_rank);
        op::rms_norm({.x = low_rank,
                      .weight = w_.q_norm.view(),
                      .y = low_rank,
                      .eps = c_.rms_epsilon,
                      .stream = pass_.stream});
        const Input low_rank_low = quantized(low_rank, s_.low_rank_fp8, s_.low_rank_scale);
        linear(w_.wq_b, low_rank, low_rank_low, flat(s_.query));
        op::rope({.x = query,
                  .weight = {},
                  .frequencies = frequencies(),
                  .positions = pass_.positions,
                  .y = query,
                  .norm = true,
                  .eps = c_.rms_epsilon,
                  .stream = pass_.stream});
        linear(w_.wkv, x, low, rows(s_.key_value));
        op::latent_write({.x = rows(s_.key_value),
                          .weight = w_.kv_norm.view(),
                          .frequencies = frequencies(),
                          .positions = pass_.positions,
                          .sequences = {},
                          .rows = state_.ring_rows(),
                          .eps = c_.rms_epsilon,
                          .stream = pass_.stream});
        if (w_.compressor)
            compress(*w_.compressor, c_.head_dim, state_.frontier, state_.frontier_journal,
                     state_.compressed_rows(), RowFinish::none);
        if (w_.index_compressor) select(low_rank, low_rank_low);
        op::latent_attention({.q = query,
                              .ring = state_.ring_rows(),
                              .compressed = w_.compressor ? state_.compressed_rows() : op::LatentRows{},
                              .picks = w_.index_compressor ? rows(s_.picks) : TensorView{},
                              .sinks = w_.sinks.view(),
                              .frequencies = frequencies(),
                              .positions = pass_.positions,
                              .sequences = {},
                              .out = query,
                              .window = c_.window,
                              .ratio = w_.layer.compress_ratio,
                              .stream = pass_.stream});
        const i64 group_width = i64{c_.num_heads} / c_.o_groups * c_.head_dim;
        op::project({.x = s_.query.as({pass_.t, c_.o_groups, group_width}),
                     .x_scale = {},
                     .w = w_.wo_a.data.view(),
                     .w_scale = w_.wo_a.scale.view(),
                     .y = rows(s_.grouped),
                     .add = {},
                     .stream = pass_.stream});
        const TensorView grouped = flat(s_.grouped);
        linear(w_.wo_b, grouped, quantized(grouped, s_.grouped_fp8, s_.grouped_scale), rows(s_.output));
    }

    // [t, r, d] of a workspace tensor as [t, r d].
    [[nodiscard]] TensorView flat(const DeviceTensor& tensor) const {
        return tensor.as({pass_.t, tensor.extent(1) * tensor.extent(2)});
    }

    void compress(const CompressorWeights& w, i64 dim, const DeviceTensor& frontier,
                  const DeviceTensor& journal, const op::LatentRows& target, RowFinish finish) {
        const i64 width = w_.layer.overlap() * dim;
        const TensorView values = s_.pool_values.as({pass_.t, width}),
                         gates = s_.pool_gates.as({pass_.t, width});
        const TensorView x = rows(s_.input);
        linear(w.wkv, x, {x, {}}, values);
        linear(w.wgate, x, {x, {}}, gates);
        op::compressor_update({.kv = values,
                               .gate = gates,
                               .ape = w.ape.view(),
                               .weight = w.norm.view(),
                               .frequencies = frequencies(),
                               .positions = pass_.positions,
                               .sequences = {},
                               .state = frontier.view(),
                               .journal = pass_.journal ? rows(journal) : TensorView{},
                               .rows = target,
                               .ratio = w_.layer.compress_ratio,
                               .overlap = w_.layer.indexed(),
                               .finish = finish,
                               .eps = c_.rms_epsilon,
                               .stream = pass_.stream});
    }

    // The compressed rows that each query attends to, into picks.
    void select(const TensorView& low_rank, const Input& low_rank_low) {
        const RowFinish finish = engine_.numerics().fp8_cache ? RowFinish::hadamard_fp4 : RowFinish::none;
        compress(*w_.index_compressor, c_.index_dim, state_.index_frontier, state_.index_journal,
                 {state_.index_rows.view(), 0}, finish);
        const TensorView query = rows(s_.index_query), x = rows(s_.input);
        linear(w_.index_wq_b, low_rank, low_rank_low, flat(s_.index_query));
        op::index_query({.x = query,
                         .frequencies = frequencies(),
                         .positions = pass_.positions,
                         .y = query,
                         .finish = finish,
                         .stream = pass_.stream});
        linear(w_.index_weights, x, {x, {}}, rows(s_.index_weights));
        const float scale =
            1.0f / std::sqrt(static_cast<float>(c_.index_dim) * static_cast<float>(c_.index_heads));
        op::index_scores({.query = query,
                          .weights = rows(s_.index_weights),
                          .rows = state_.index_rows.view(),
                          .positions = pass_.positions,
                          .sequences = {},
                          .scores = rows(s_.scores),
                          .ratio = w_.layer.compress_ratio,
                          .scale = scale,
                          .stream = pass_.stream});
        op::top_k({.scores = rows(s_.scores),
                   .positions = pass_.positions,
                   .picks = rows(s_.picks),
                   .ratio = w_.layer.compress_ratio,
                   .stream = pass_.stream});
    }

    void experts() {
        const TensorView x = rows(s_.input), y = rows(s_.output);
        op::project({.x = x,
                     .x_scale = {},
                     .w = w_.gate.data.view(),
                     .w_scale = w_.gate.scale.view(),
                     .y = rows(s_.gate_logits),
                     .add = {},
                     .stream = pass_.stream});
        op::route({.logits = rows(s_.gate_logits),
                   .bias = w_.gate_bias.view(),
                   .hash = w_.hash.view(),
                   .tokens = w_.hash.present() ? pass_.tokens : TensorView{},
                   .experts = rows(s_.experts),
                   .weights = rows(s_.expert_weights),
                   .scale = c_.routed_scale,
                   .stream = pass_.stream});
        const Input low = quantized(x, s_.input_fp8, s_.input_scale);
        const TensorView chosen = rows(s_.experts), none = {};
        expert(w_.shared, x, low, none, none, s_.shared_mid, s_.shared_fp8, s_.shared_scale, y, none);
        expert(w_.experts, x, low, chosen, rows(s_.expert_weights), s_.mid, s_.mid_fp8, s_.mid_scale, y, y);
    }

    void expert(const ExpertWeights& w, const TensorView& x, const Input& low, const TensorView& chosen,
                const TensorView& weights, const DeviceTensor& mid_buffer, const DeviceTensor& fp8,
                const DeviceTensor& scale, const TensorView& y, const TensorView& add) {
        const Input in = w.w1.low_precision() ? low : Input{x, {}};
        op::expert_up({.x = in.x,
                       .x_scale = in.scale,
                       .w1 = w.w1.data.view(),
                       .w1_scale = w.w1.scale.view(),
                       .w3 = w.w3.data.view(),
                       .w3_scale = w.w3.scale.view(),
                       .experts = chosen,
                       .weights = weights,
                       .mid = rows(mid_buffer),
                       .limit = c_.swiglu_limit,
                       .stream = pass_.stream});
        const Input mid =
            w.w2.low_precision() ? quantized(rows(mid_buffer), fp8, scale) : Input{rows(mid_buffer), {}};
        op::expert_down({.mid = mid.x,
                         .mid_scale = mid.scale,
                         .w2 = w.w2.data.view(),
                         .w2_scale = w.w2.scale.view(),
                         .experts = chosen,
                         .weights = {},
                         .y = y,
                         .add = add,
                         .stream = pass_.stream});
    }

    const Engine& engine_;
    const DeepseekV4Config& c_;
    const BlockWeights& w_;
    LayerState& state_;
    Workspace& s_;
    const Pass& pass_;
};

}  // namespace

u64 LayerState::compressed_bytes(u32 length, u32 ratio) const {
    if (!compressed.present() || ratio == 0) return 0;
    const u64 rows = length / ratio;
    if (compressed_page_rows != 0)  // whole pages: their scales come after the rows
        return (rows + compressed_page_rows - 1) / compressed_page_rows *
               op::latent_page_bytes(compressed_page_rows);
    return rows * (compressed.bytes() / static_cast<u64>(compressed.extent(1)));
}

u64 LayerState::index_bytes(u32 length, u32 ratio) const {
    if (!index_rows.present()) return 0;
    return length / ratio * (index_rows.bytes() / static_cast<u64>(index_rows.extent(1)));
}

LayerState make_layer_state(const Engine& engine, const LayerConfig& layer) {
    const DeepseekV4Config& c = engine.config();
    const bool fp8 = engine.numerics().fp8_cache;
    LayerState state;
    state.ring_page_rows = fp8 ? kRingPage : 0;
    // A pass of t rows may write over rows that its first query does not see any more, and nothing else.
    const u64 ring_rows = c.window + engine.max_rows() - 1;
    state.ring = make_rows(engine, ring_rows, kRingPage);
    if (!layer.compressed()) return state;
    const u32 page = layer.indexed() ? kIndexedPage : kPooledPage;
    const u64 rows = std::max<u64>(1, engine.context() / layer.compress_ratio);
    state.compressed_page_rows = fp8 ? page : 0;
    state.compressed = make_rows(engine, rows, page);
    const i64 triples = layer.indexed() ? 9 : 3;
    const auto fp32 = [&](i64 first, i64 dim) {
        return DeviceTensor(engine.device(), Format::fp32, {first, triples, dim});
    };
    state.frontier = fp32(1, c.head_dim);
    state.frontier_journal = fp32(kMaxWindow, c.head_dim);
    if (!layer.indexed()) return state;
    state.index_rows = {
        engine.device(), engine.numerics().activations, {1, static_cast<i64>(rows), c.index_dim}};
    state.index_frontier = fp32(1, c.index_dim);
    state.index_journal = fp32(kMaxWindow, c.index_dim);
    return state;
}

Workspace::Workspace(const Engine& engine, u32 max_rows) {
    const DeepseekV4Config& c = engine.config();
    const i64 rows = max_rows, streams = c.streams;
    const auto make = [&](Format format, std::vector<i64> shape) {
        shape.insert(shape.begin(), rows);
        return DeviceTensor(engine.device(), format, std::move(shape));
    };
    const Format act = engine.numerics().activations;
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
        scores = fp32({std::max<i64>(1, engine.context() / 4)});
        picks = make(Format::int32, {c.index_topk});
    }
    if (!engine.numerics().fp8_activations) return;
    const auto fp8 = [&](DeviceTensor& data, DeviceTensor& scale, std::vector<i64> shape) {
        data = make(Format::fp8_e4m3, shape);
        shape.back() /= 128;
        scale = fp32(std::move(shape));
    };
    fp8(input_fp8, input_scale, {c.hidden});
    fp8(low_rank_fp8, low_rank_scale, {c.q_rank});
    fp8(grouped_fp8, grouped_scale, {i64{c.o_groups} * c.o_rank});
    fp8(mid_fp8, mid_scale, {c.top_k, c.expert_width});
    fp8(shared_fp8, shared_scale, {1, c.expert_width});
}

void run_block(const Engine& engine, const BlockWeights& weights, LayerState& state, Workspace& workspace,
               const TensorView& x, const Pass& pass) {
    BlockPass(engine, weights, state, workspace, pass).run(x);
}

void run_linear(const Engine& engine, const Linear& w, const TensorView& x, const TensorView& y,
                const TensorView& x8, const TensorView& scale, void* stream) {
    const bool low = engine.numerics().fp8_activations && w.low_precision();
    if (low) quantize_rows(x, x8, scale, stream);
    op::project({.x = low ? x8 : x,
                 .x_scale = low ? scale : TensorView{},
                 .w = w.data.view(),
                 .w_scale = w.scale.view(),
                 .y = y,
                 .add = {},
                 .stream = stream});
}

void restore_block(LayerState& state, const TensorView& row, void* stream) {
    if (state.frontier.present())
        op::compressor_restore({.journal = state.frontier_journal.view(),
                                .row = row,
                                .state = state.frontier.view(),
                                .stream = stream});
    if (state.index_frontier.present())
        op::compressor_restore({.journal = state.index_journal.view(),
                                .row = row,
                                .state = state.index_frontier.view(),
                                .stream = stream});
}

}  // namespace deep_gemm::runtime
