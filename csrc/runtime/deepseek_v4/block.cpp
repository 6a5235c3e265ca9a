// One transformer block of DeepSeek-V4 as a list of operations.
#include "op/moe_joined.h"
#include "op/query_index.h"
#include "op/query_rows.h"
#include "runtime/deepseek_v4/state.h"

#include <cmath>

namespace deep_gemm::runtime::deepseek_v4 {

namespace {

class BlockPass {
  public:
    BlockPass(const Loaded& model, const BlockWeights& weights, LayerState& state, Workspace& workspace,
              const Pass& pass)
        : model_(model), c_(model.config), w_(weights), state_(state), s_(workspace), pass_(pass) {}

    void run(const TensorView& x, bool first) {
        hc_in(x, w_.attention_hc, w_.attention_norm, first ? TensorView{} : rows(s_.output));
        attention();
        hc_in(x, w_.ffn_hc, w_.ffn_norm, rows(s_.output));
        experts();
    }

  private:
    [[nodiscard]] TensorView rows(const DeviceTensor& tensor) const { return tensor.rows(0, pass_.t); }
    [[nodiscard]] TensorView frequencies() const { return model_.frequencies(w_.layer.compressed()); }

    // Whether hc_pre leaves the FP8 form as well.
    [[nodiscard]] bool rounds_input() const { return s_.input_fp8.present() && c_.hidden % kHcFp8Step == 0; }

    // The input of a sublayer, after the streams have taken in `add`, the output of the one before. `next`:
    // what the sublayer starts with.
    void hc_in(const TensorView& x, const HcWeights& hc, const DeviceTensor& norm, const TensorView& add) {
        op::hc_pre({.x = x,
                    .fn = hc.fn.view(),
                    .base = hc.base.view(),
                    .scale = hc.scale.view(),
                    .weight = norm.view(),
                    .y = rows(s_.input),
                    .post = rows(s_.post),
                    .comb = rows(s_.comb),
                    .add = add,
                    .narrow = rounds_input() ? fp8_copy_of(s_.input_fp8, pass_.t) : op::NarrowCopy{},
                    .sinkhorn_iterations = c_.sinkhorn_iterations,
                    .hc_eps = c_.hc_epsilon,
                    .rms_eps = c_.rms_epsilon,
                    .stream = pass_.stream});
    }

    // Scales are powers of two, as the model was released to run.
    Input low(const TensorView& x, const Fp8Rows& into) {
        return to_fp8(x, into, ScaleRule::up, pass_.stream);
    }
    Input low_input() {
        const TensorView x = rows(s_.input);
        return rounds_input() ? input_of(x, s_.input_fp8) : low(x, s_.input_fp8);
    }
    void linear(const Linear& w, const TensorView& x, const Input& low_x, const TensorView& y) {
        project(w, x, low_x, y, pass_.stream);
    }

    void attention() {
        const TensorView x = rows(s_.input), low_rank = rows(s_.low_rank), query = rows(s_.query);
        project_input(x, low_input());
        const bool selected = queries(low_rank);
        op::LatentAttentionArguments latent{
            .q = query,
            .ring = state_.ring_rows(),
            .compressed = w_.compressor ? state_.compressed_rows() : op::LatentRows{},
            .picks = w_.index_compressor ? rows(s_.picks) : TensorView{},
            .sinks = w_.sinks.view(),
            .frequencies = frequencies(),
            .positions = pass_.positions,
            .sequences = pass_.sequences,
            .out = query,
            .records = pass_.t <= kRecordRows ? records() : TensorView{},
            .window = c_.window,
            .ratio = w_.layer.compress_ratio,
            .eps = c_.rms_epsilon,
            .stream = pass_.stream};
        latent.raw_queries = op::latent_takes_raw_queries(latent);
        const bool selects = w_.index_compressor && !selected;
        const op::IndexSelectArguments selection = selects ? index_select() : op::IndexSelectArguments{};
        const bool few_rows = selects && op::index_select_takes(selection);
        attention_heads(query, !latent.raw_queries, selects && !few_rows);
        if (few_rows)
            op::index_select(selection);
        else if (selects)
            select();
        op::latent_attention(latent);
        const i64 group_width = i64{c_.num_heads} / c_.o_groups * c_.head_dim;
        op::project({.x = s_.query.as({pass_.t, c_.o_groups, group_width}),
                     .x_scale = {},
                     .w = w_.wo_a.data.view(),
                     .w_scale = w_.wo_a.scale.view(),
                     .y = rows(s_.grouped),
                     .add = {},
                     .stream = pass_.stream});
        const TensorView grouped = flat(s_.grouped);
        if (s_.grouped_fp8.present() && w_.wo_b.low_precision() && pass_.t <= op::project_rounds_up_to())
            return op::project({.x = grouped,
                                .x_scale = {},
                                .w = w_.wo_b.data.view(),
                                .w_scale = w_.wo_b.scale.view(),
                                .y = rows(s_.output),
                                .add = {},
                                .round_x = true,
                                .stream = pass_.stream});
        linear(w_.wo_b, grouped, low(grouped, s_.grouped_fp8), rows(s_.output));
    }

    // Memory of attention for the few rows of a decoding pass.
    [[nodiscard]] TensorView records() const {
        return s_.attention_records.present() ? s_.attention_records.rows(0, pass_.t) : TensorView{};
    }
    // [t, r, d] of a workspace tensor as [t, r d].
    [[nodiscard]] TensorView flat(const DeviceTensor& tensor) const {
        return tensor.as({pass_.t, tensor.extent(1) * tensor.extent(2)});
    }

    // What a compressor pools: its projections of the input.
    struct Pooled {
        TensorView values, gates;
    };
    [[nodiscard]] Pooled pooled(i64 dim, const DeviceTensor& values, const DeviceTensor& gates) const {
        const i64 width = w_.layer.overlap() * dim;
        return {values.as({pass_.t, width}), gates.as({pass_.t, width})};
    }
    // Everything that is projected of the block's input.
    void project_input(const TensorView& x, const Input& x_low) {
        const Projection query{&w_.wq_a, rows(s_.low_rank)}, key_value{&w_.wkv, rows(s_.key_value)};
        if (!w_.compressor) return project_many({query, key_value}, x, x_low, pass_.stream);
        const Pooled main = pooled(c_.head_dim, s_.pool_values, s_.pool_gates);
        const Projection values{&w_.compressor->wkv, main.values}, gates{&w_.compressor->wgate, main.gates};
        if (!w_.index_compressor)
            return project_many({query, key_value, values, gates}, x, x_low, pass_.stream);
        const Pooled index = pooled(c_.index_dim, s_.index_pool_values, s_.index_pool_gates);
        project_many({query,
                      key_value,
                      values,
                      gates,
                      {&w_.index_compressor->wkv, index.values},
                      {&w_.index_compressor->wgate, index.gates},
                      {&w_.index_weights, rows(s_.index_weights)}},
                     x, x_low, pass_.stream);
    }

    [[nodiscard]] op::CompressorArguments compress(const CompressorWeights& w, const Pooled& input,
                                                   const DeviceTensor& frontier, const DeviceTensor& journal,
                                                   const op::LatentRows& target, RowFinish finish) const {
        return {.kv = input.values,
                .gate = input.gates,
                .ape = w.ape.view(),
                .weight = w.norm.view(),
                .frequencies = frequencies(),
                .positions = pass_.positions,
                .sequences = pass_.sequences,
                .state = frontier.view(),
                .journal = pass_.journal ? journal.rows(pass_.journal_row, pass_.t) : TensorView{},
                .rows = target,
                .ratio = w_.layer.compress_ratio,
                .overlap = w_.layer.indexed(),
                .finish = finish,
                .eps = c_.rms_epsilon};
    }
    [[nodiscard]] RowFinish index_finish() const {
        return model_.fp8_cache() ? RowFinish::hadamard_fp4 : RowFinish::none;
    }

    // What follows the projections of the block's input: the token's cache rows, and the queries. Returns whether the
    // indexer has chosen, too: beside the queries, which stream their weights meanwhile.
    [[nodiscard]] bool queries(const TensorView& low_rank) {
        op::CompressorArguments main, index;
        if (w_.compressor)
            main =
                compress(*w_.compressor, pooled(c_.head_dim, s_.pool_values, s_.pool_gates), state_.frontier,
                         state_.frontier_journal, state_.compressed_rows(), RowFinish::none);
        if (w_.index_compressor)
            index = compress(
                *w_.index_compressor, pooled(c_.index_dim, s_.index_pool_values, s_.index_pool_gates),
                state_.index_frontier, state_.index_journal, state_.indexed_rows(), index_finish());
        const op::AttentionRowsArguments cache_rows{.norm = {.x = low_rank,
                                                             .weight = w_.q_norm.view(),
                                                             .y = low_rank,
                                                             .eps = c_.rms_epsilon,
                                                             .narrow = fp8_copy_of(s_.low_rank_fp8, pass_.t),
                                                             .stream = pass_.stream},
                                                    .write = {.x = rows(s_.key_value),
                                                              .weight = w_.kv_norm.view(),
                                                              .frequencies = frequencies(),
                                                              .positions = pass_.positions,
                                                              .sequences = pass_.sequences,
                                                              .rows = state_.ring_rows(),
                                                              .eps = c_.rms_epsilon},
                                                    .main = w_.compressor ? &main : nullptr,
                                                    .index = w_.index_compressor ? &index : nullptr,
                                                    .stream = pass_.stream};
        std::vector<op::ProjectMatrix> matrices{matrix_of({&w_.wq_b, flat(s_.query)})};
        if (w_.index_compressor) {
            matrices.push_back(matrix_of({&w_.index_wq_b, flat(s_.index_query)}));
            const op::QueryIndexArguments beside{
                .norm = cache_rows.norm, .matrix = matrices.front(), .selection = index_select()};
            if (op::query_index_takes(beside) &&
                op::query_rows({.rows = cache_rows, .matrices = std::span(matrices).last(1)})) {
                op::query_index(beside);
                return true;
            }
        }
        if (op::query_rows({.rows = cache_rows, .matrices = matrices})) return false;
        op::attention_rows(cache_rows);
        const Input low = input_of(low_rank, s_.low_rank_fp8);
        op::project_many({.x = low.x,
                          .x_scale = low.scale,
                          .wide_x = low_rank,
                          .matrices = matrices,
                          .stream = pass_.stream});
        return false;
    }
    [[nodiscard]] op::IndexQueryArguments index_query() const {
        const TensorView of_index = rows(s_.index_query);
        return {.x = of_index,
                .frequencies = frequencies(),
                .positions = pass_.positions,
                .y = of_index,
                .finish = index_finish(),
                .stream = pass_.stream};
    }
    // What follows the projections to queries, where nothing later does it on the way.
    void attention_heads(const TensorView& query, bool of_attention, bool of_index) {
        const op::IndexQueryArguments index = of_index ? index_query() : op::IndexQueryArguments{};
        if (!of_attention && of_index) op::index_query(index);
        if (!of_attention) return;
        op::attention_heads({.query = {.x = query,
                                       .weight = {},
                                       .frequencies = frequencies(),
                                       .positions = pass_.positions,
                                       .y = query,
                                       .norm = true,
                                       .eps = c_.rms_epsilon},
                             .index = of_index ? &index : nullptr,
                             .stream = pass_.stream});
    }
    [[nodiscard]] float index_scale() const {
        return 1.0f / std::sqrt(static_cast<float>(c_.index_dim) * static_cast<float>(c_.index_heads));
    }
    // The compressed rows that each query attends to, into picks: in one launch of few tokens, or in two.
    [[nodiscard]] op::IndexSelectArguments index_select() const {
        return {.query = rows(s_.index_query),
                .frequencies = frequencies(),
                .weights = rows(s_.index_weights),
                .rows = state_.indexed_rows(),
                .positions = pass_.positions,
                .sequences = pass_.sequences,
                .picks = rows(s_.picks),
                .finish = index_finish(),
                .ratio = w_.layer.compress_ratio,
                .scale = index_scale(),
                .stream = pass_.stream};
    }
    void select() {
        const TensorView query = rows(s_.index_query);
        op::IndexScoreArguments scores{.query = query,
                                       .weights = rows(s_.index_weights),
                                       .rows = state_.indexed_rows(),
                                       .positions = pass_.positions,
                                       .sequences = pass_.sequences,
                                       .scores = rows(s_.scores),
                                       .ratio = w_.layer.compress_ratio,
                                       .only_above = c_.index_topk,
                                       .scale = index_scale(),
                                       .stream = pass_.stream};
        if (op::index_leaves_peaks(scores)) scores.peaks = rows(s_.peaks);
        op::index_scores(scores);
        op::top_k({.scores = rows(s_.scores),
                   .positions = pass_.positions,
                   .picks = rows(s_.picks),
                   .peaks = scores.peaks,
                   .ratio = w_.layer.compress_ratio,
                   .stream = pass_.stream});
    }

    void experts() {
        const TensorView x = rows(s_.input), y = rows(s_.output), none = {};
        const Input x_low = low_input();
        const Projection gate{&w_.gate, rows(s_.gate_logits)};
        const bool shared_low =
            s_.shared_expert.present() && w_.shared.w1.low_precision() && w_.shared.w2.low_precision();
        const SharedExpertCall shared{.w = w_.shared,
                                      .space = s_.shared_expert,
                                      .low = x_low,
                                      .y = y,
                                      .limit = c_.swiglu_limit,
                                      .rule = ScaleRule::up,
                                      .stream = pass_.stream};
        if (shared_low)
            shared_expert_up(shared, gate, x);
        else
            linear(w_.gate, x, {x, {}}, gate.y);
        const op::RouterArguments route{.logits = gate.y,
                                        .bias = w_.gate_bias.view(),
                                        .hash = w_.hash.view(),
                                        .tokens = w_.hash.present() ? pass_.tokens : none,
                                        .experts = rows(s_.experts),
                                        .weights = rows(s_.expert_weights),
                                        .scale = c_.routed_scale,
                                        .stream = pass_.stream};
        if (shared_low)
            op::route_activate(route, shared_activation(shared));
        else
            op::route(route);
        const auto run = [&](const ExpertWeights& w, const TensorView& chosen, const TensorView& weights,
                             const DeviceTensor& mid, const Fp8Rows& mid_fp8, const TensorView& add) {
            run_experts({.w = w,
                         .x = x,
                         .low = x_low,
                         .chosen = chosen,
                         .weights = weights,
                         .mid = mid,
                         .mid_fp8 = mid_fp8,
                         .y = y,
                         .add = add,
                         .limit = c_.swiglu_limit,
                         .rule = ScaleRule::up,
                         .stream = pass_.stream});
        };
        if (!shared_low) run(w_.shared, none, none, s_.shared_mid, s_.shared_fp8, none);
        if (!w_.packed) {
            if (shared_low) op::project(shared_expert_down(shared));
            return run(w_.experts, rows(s_.experts), rows(s_.expert_weights), s_.mid, s_.mid_fp8, y);
        }
        const PackedExpertsCall packed{.w = *w_.packed,
                                       .space = s_.packed_experts,
                                       .low = x_low,
                                       .chosen = rows(s_.experts),
                                       .weights = rows(s_.expert_weights),
                                       .y = y,
                                       .add = y,
                                       .limit = c_.swiglu_limit,
                                       .rule = ScaleRule::up,
                                       .stream = pass_.stream};
        if (are_few(packed)) {
            const op::MoeFewArguments few = few_of(packed);
            if (shared_low)
                op::few_up_project(few, shared_expert_down(shared));
            else
                op::moe_few_up(few);
            return op::moe_few_down(few);
        }
        if (shared_low)
            op::group_project(grouping_of(packed), shared_expert_down(shared));
        else
            moe_group(grouping_of(packed));
        run_packed_experts(packed);
    }

    const Loaded& model_;
    const Config& c_;
    const BlockWeights& w_;
    LayerState& state_;
    Workspace& s_;
    const Pass& pass_;
};

}  // namespace

void run_block(const Loaded& model, const BlockWeights& weights, LayerState& state, Workspace& workspace,
               const TensorView& x, const Pass& pass, bool first) {
    BlockPass(model, weights, state, workspace, pass).run(x, first);
}

void finish_blocks(const Workspace& workspace, const TensorView& x, const Pass& pass) {
    op::hc_post({.x = x,
                 .y = workspace.output.rows(0, pass.t),
                 .post = workspace.post.rows(0, pass.t),
                 .comb = workspace.comb.rows(0, pass.t),
                 .out = x,
                 .stream = pass.stream});
}

}  // namespace deep_gemm::runtime::deepseek_v4
