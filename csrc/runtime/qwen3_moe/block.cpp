#include "runtime/qwen3_moe/block.h"

#include "op/model_ops.h"

#include <deep_gemm/spec/gqa.h>

#include <algorithm>

namespace deep_gemm::runtime::qwen3_moe {

namespace {

BlockWeights load_block(Loader& loader, const Config& c, const std::string& at) {
    BlockWeights w;
    const std::string attn = at + "self_attn.";
    w.input_norm = loader.plain(at + "input_layernorm.weight");
    w.post_norm = loader.plain(at + "post_attention_layernorm.weight");
    w.q_norm = loader.plain(attn + "q_norm.weight");
    w.k_norm = loader.plain(attn + "k_norm.weight");
    w.q = loader.linear(attn + "q_proj");
    w.k = loader.linear(attn + "k_proj");
    w.v = loader.linear(attn + "v_proj");
    w.o = loader.linear(attn + "o_proj");
    w.gate = loader.linear(at + "mlp.gate");
    const auto experts = [&](const char* name) {
        return loader.experts(at + "mlp.experts.", c.num_experts, name);
    };
    const std::string routed = at + "mlp.experts.";
    const std::vector<std::string> kinds{"gate_proj", "down_proj"};
    if (loader.should_pack(routed, kinds, c.num_experts, c.hidden, c.expert_width, c.top_k))
        w.packed = {loader.packed_experts(routed, c.num_experts, {"gate_proj", "up_proj"}),
                    loader.packed_experts(routed, c.num_experts, {"down_proj"})};
    else if (loader.should_group(routed, kinds, c.num_experts, c.hidden, c.expert_width, c.top_k))
        w.grouped = {loader.grouped_experts(routed, c.num_experts, {"gate_proj", "up_proj"}),
                     loader.grouped_experts(routed, c.num_experts, {"down_proj"})};
    else
        w.experts = {.w1 = experts("gate_proj"), .w2 = experts("down_proj"), .w3 = experts("up_proj")};
    return w;
}

// Of attention: for all rows of a pass, or of a long context for as many as kRecordBytes hold, whose launches
// fill a device; at least a window's.
std::vector<i64> records_shape(const Config& c, const StateSizes& sizes) {
    constexpr i64 kRecordBytes = i64{256} << 20;
    const i64 context = i64{pages_for(sizes.context)} * kPageTokens, rows = sizes.max_rows;
    std::vector<i64> shape = op::gqa_records_shape(1, c.num_heads, context, c.head_dim);
    const i64 row_bytes = shape[1] * shape[2] * shape[3] * i64{sizeof(float)};
    shape[0] = std::min(rows, std::max<i64>(kRecordBytes / row_bytes, kMaxWindow));
    return shape;
}

class BlockPass {
  public:
    BlockPass(const Loaded& model, const BlockWeights& weights, const LayerState& state,
              const TensorView& table, Workspace& workspace, const Pass& pass)
        : model_(model),
          c_(model.config),
          w_(weights),
          state_(state),
          table_(table),
          s_(workspace),
          pass_(pass) {}

    void attention(const TensorView& x) {
        const Input low = norm(x, w_.input_norm);
        const TensorView input = rows(s_.input), query = rows(s_.query), key = rows(s_.key),
                         value = rows(s_.value);
        // The FP8 form of heads of as many channels as share a scale.
        const bool low_output = s_.query_fp8.present() && c_.head_dim == kGqaFp8Channels;
        project_many({{&w_.q, flat(s_.query)}, {&w_.k, flat(s_.key)}, {&w_.v, flat(s_.value)}}, input, low,
                     pass_.stream);
        op::gqa_rows({.query = rotated(query, w_.q_norm),
                      .key = rotated(key, w_.k_norm),
                      .keys = remembered(key, state_.keys),
                      .values = remembered(value, state_.values),
                      .stream = pass_.stream});
        for (i64 first = 0; first < pass_.t; first += s_.records.extent(0))
            attend(first, std::min(pass_.t - first, s_.records.extent(0)), low_output);
        const TensorView mixed = flat(s_.query);
        const Input low_mixed = low_output ? input_of(mixed, s_.query_fp8)
                                           : to_fp8(mixed, s_.query_fp8, ScaleRule::exact, pass_.stream);
        project(w_.o, mixed, low_mixed, x, pass_.stream, x);
    }

    // Rows `first` on, as many as there is memory between the kernels.
    void attend(i64 first, i64 count, bool low_output) {
        const auto part = [&](const TensorView& view) { return rows_of(view, first, count); };
        TensorView codes, scales;
        if (low_output) {
            codes = s_.query_fp8.codes.as({pass_.t, c_.num_heads, c_.head_dim});
            scales = s_.query_fp8.scales.as({pass_.t, c_.num_heads});
        }
        const TensorView query = part(rows(s_.query));
        op::gqa_attention({.q = query,
                           .keys = state_.keys.view(),
                           .values = state_.values.view(),
                           .positions = part(pass_.positions),
                           .sequences = part(pass_.sequences),
                           .records = s_.records.rows(0, count),
                           .out = query,
                           .table = table_,
                           .codes = part(codes),
                           .scales = part(scales),
                           .stream = pass_.stream});
    }

    void experts(const TensorView& x) {
        const Input low = norm(x, w_.post_norm);
        const TensorView input = rows(s_.input);
        project(w_.gate, input, {input, {}}, rows(s_.gate_logits), pass_.stream);
        op::route({.logits = rows(s_.gate_logits),
                   .bias = {},
                   .hash = {},
                   .tokens = {},
                   .experts = rows(s_.experts),
                   .weights = rows(s_.expert_weights),
                   .score = RouterScore::softmax,
                   .normalize = c_.normalize_top_k,
                   .stream = pass_.stream});
        if (w_.grouped)
            return run_fp8_experts({.w = *w_.grouped,
                                    .space = s_.grouped_experts,
                                    .x = input,
                                    .chosen = rows(s_.experts),
                                    .weights = rows(s_.expert_weights),
                                    .y = x,
                                    .add = x,
                                    .stream = pass_.stream});
        if (w_.packed) {
            const PackedExpertsCall packed{.w = *w_.packed,
                                           .space = s_.packed_experts,
                                           .low = low,
                                           .chosen = rows(s_.experts),
                                           .weights = rows(s_.expert_weights),
                                           .y = x,
                                           .add = x,
                                           .weigh = WeighExperts::after_down,
                                           .stream = pass_.stream};
            if (are_few(packed)) {
                op::moe_few_up(few_of(packed));
                return op::moe_few_down(few_of(packed));
            }
            moe_group(grouping_of(packed));
            return run_packed_experts(packed);
        }
        run_experts({.w = w_.experts,
                     .x = input,
                     .low = low,
                     .chosen = rows(s_.experts),
                     .weights = rows(s_.expert_weights),
                     .mid = s_.mid,
                     .mid_fp8 = s_.mid_fp8,
                     .y = x,
                     .add = x,
                     .weigh = WeighExperts::after_down,
                     .stream = pass_.stream});
    }

  private:
    [[nodiscard]] TensorView rows(const DeviceTensor& tensor) const { return tensor.rows(0, pass_.t); }
    // [t, heads, d] as [t, heads d].
    [[nodiscard]] TensorView flat(const DeviceTensor& tensor) const {
        return tensor.as({pass_.t, tensor.extent(1) * tensor.extent(2)});
    }
    // Into s_.input, and its FP8 form where there is memory for it.
    Input norm(const TensorView& x, const DeviceTensor& weight) {
        op::rms_norm({.x = x,
                      .weight = weight.view(),
                      .y = rows(s_.input),
                      .eps = c_.rms_epsilon,
                      .narrow = fp8_copy_of(s_.input_fp8, pass_.t, ScaleRule::exact),
                      .stream = pass_.stream});
        return input_of(rows(s_.input), s_.input_fp8);
    }
    [[nodiscard]] op::RopeArguments rotated(const TensorView& heads, const DeviceTensor& weight) const {
        return {.x = heads,
                .weight = weight.view(),
                .frequencies = model_.frequencies.view(),
                .positions = pass_.positions,
                .y = heads,
                .norm = true,
                .pairs = RopePairs::halves,
                .eps = c_.rms_epsilon};
    }
    [[nodiscard]] op::CacheWriteArguments remembered(const TensorView& heads,
                                                     const DeviceTensor& cache) const {
        return {.x = heads,
                .positions = pass_.positions,
                .sequences = pass_.sequences,
                .rows = cache.view(),
                .table = table_};
    }

    const Loaded& model_;
    const Config& c_;
    const BlockWeights& w_;
    const LayerState& state_;
    const TensorView& table_;
    Workspace& s_;
    const Pass& pass_;
};

}  // namespace

Weights load_weights(Loader& loader, const Config& config) {
    Weights weights;
    weights.embed = loader.linear("model.embed_tokens");
    if (!config.tied_head) weights.head = loader.linear("lm_head");
    weights.norm = loader.plain("model.norm.weight");
    for (u32 i = 0; i < config.num_layers; ++i)
        weights.layers.push_back(load_block(loader, config, fmt::format("model.layers.{}.", i)));
    return weights;
}

std::vector<PageShape> page_shapes_of(const Config& c, Numerics numerics) {
    return {2 * size_t{c.num_layers}, {activations_of(numerics), {kPageTokens, c.num_kv_heads, c.head_dim}}};
}

Workspace::Workspace(const Loaded& model, const StateSizes& sizes) {
    const Config& c = model.config;
    const i64 rows = sizes.max_rows;
    const auto real = [&](std::vector<i64> shape) {
        shape.insert(shape.begin(), rows);
        return DeviceTensor(model.device, activations_of(model.numerics), std::move(shape));
    };
    input = real({c.hidden});
    query = real({c.num_heads, c.head_dim});
    key = real({c.num_kv_heads, c.head_dim});
    value = real({c.num_kv_heads, c.head_dim});
    mid = real({c.top_k, c.expert_width});
    records = {model.device, Format::fp32, records_shape(c, sizes)};
    gate_logits = {model.device, Format::fp32, {rows, c.num_experts}};
    expert_weights = {model.device, Format::fp32, {rows, c.top_k}};
    experts = {model.device, Format::int32, {rows, c.top_k}};
    // Only where a matrix takes them: a bf16 checkpoint of any width needs none.
    const auto fp8 = [&](const Linear& w, std::vector<i64> shape) {
        if (model.numerics != Numerics::released || !w.low_precision()) return Fp8Rows();
        shape.insert(shape.begin(), rows);
        return Fp8Rows(model.device, std::move(shape));
    };
    const BlockWeights& w = model.weights.layers.front();
    if (w.grouped) grouped_experts = make_fp8_experts_space(model.device, *w.grouped, rows, c.top_k);
    if (w.packed) packed_experts = ExpertsSpace(model.device, *w.packed, rows, c.top_k);
    if (model.numerics == Numerics::released &&
        (w.packed || w.q.low_precision() || w.experts.w1.low_precision()))
        input_fp8 = Fp8Rows(model.device, {rows, c.hidden});
    query_fp8 = fp8(w.o, {i64{c.num_heads} * c.head_dim});
    mid_fp8 = fp8(w.experts.w2, {c.top_k, c.expert_width});
}

void run_block(const Loaded& model, const BlockWeights& weights, const LayerState& state,
               const TensorView& table, Workspace& workspace, const TensorView& x, const Pass& pass) {
    BlockPass block(model, weights, state, table, workspace, pass);
    block.attention(x);
    block.experts(x);
}

}  // namespace deep_gemm::runtime::qwen3_moe
