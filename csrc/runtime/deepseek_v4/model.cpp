// DeepSeek-V4 as the runtime's three interfaces: embedding, blocks, head, and the MTP block.
#include "runtime/deepseek_v4/state.h"
#include "runtime/loaded_model.h"

namespace deep_gemm::runtime::deepseek_v4 {

namespace {

DeviceTensor upload_frequencies(Device& device, const RopeConfig& rope, u32 dims) {
    const std::vector<float> values =
        op::rope_frequencies({.dims = dims,
                              .theta = rope.theta,
                              .yarn_factor = rope.yarn_factor == 1 ? 0 : rope.yarn_factor,
                              .yarn_original_context = rope.yarn_original,
                              .yarn_beta_fast = rope.beta_fast,
                              .yarn_beta_slow = rope.beta_slow});
    return upload(device, values, {static_cast<i64>(dims / 2), 2});
}

// What the MTP block works in.
struct DraftSpace {
    LayerState layer;
    DeviceTensor normed, embedded;  // [rows, streams, hidden], [rows, hidden]
    Fp8Rows fp8;                    // every stream is a row
};

class State final : public ModelState {
  public:
    State(const Loaded& model, PagePool& pool, const StateSizes& sizes)
        : ModelState(pool, sizes), model_(model), workspace_(model, sizes) {
        const Config& c = model.config;
        const i64 rows = sizes.max_rows;
        const Format act = activations_of(model.numerics);
        size_t cache = 0;
        for (const LayerConfig& layer : c.layers)
            layers_.push_back(make_layer_state(model, layer, pages(), cache, sizes));
        head_input_ = {model.device, act, {rows, c.hidden}};
        if (!sizes.drafts) return;
        draft_.emplace();
        draft_->layer = make_layer_state(model, LayerConfig{}, pages(), cache, sizes);
        draft_->normed = {model.device, act, {rows, c.streams, c.hidden}};
        draft_->embedded = {model.device, act, {rows, c.hidden}};
        if (model.numerics == Numerics::released)
            draft_->fp8 = Fp8Rows(model.device, {rows * c.streams, c.hidden});
    }

    void forward(const TensorView& x, const Pass& pass) override {
        op::embed({.tokens = pass.tokens,
                   .table = model_.weights.embed.data.view(),
                   .x = x,
                   .stream = pass.stream});
        for (size_t i = 0; i < layers_.size(); ++i) {
            run_block(model_, model_.weights.layers[i], layers_[i], workspace_, x, pass, i == 0);
            if (!pass.observer) continue;
            const std::string at = fmt::format("layers.{}.", i);
            if (model_.config.layers[i].indexed())
                (*pass.observer)(at + "picks", workspace_.picks.rows(0, pass.t));
            (*pass.observer)(at + "experts", workspace_.experts.rows(0, pass.t));
        }
        finish_blocks(workspace_, x, pass);
    }
    void head(const TensorView& x, const TensorView& logits, void* stream) override {
        run_head(model_.weights.output, x, logits, stream);
    }
    void restore(const TensorView& row, void* stream) override {
        for (LayerState& layer : layers_) layer.restore(row, stream);
    }

    // x = e_proj norm(embedding of the token) + h_proj norm(streams), then the block.
    void draft(const TensorView& hidden, const TensorView& x, const Pass& pass) override {
        const MtpWeights& w = *model_.weights.mtp;
        const Config& c = model_.config;
        const i64 t = pass.t, streams = c.streams, width = c.hidden;
        const TensorView embedded = draft_->embedded.rows(0, t), value = workspace_.output.rows(0, t);
        op::embed({.tokens = pass.tokens,
                   .table = model_.weights.embed.data.view(),
                   .x = embedded,
                   .stream = pass.stream});
        norm(embedded, w.e_norm, embedded, pass.stream);
        project(w.e_proj, embedded, low(w.e_proj, embedded, pass.stream), value, pass.stream);
        norm(hidden, w.h_norm, draft_->normed.rows(0, t), pass.stream);
        const TensorView normed = draft_->normed.as({t * streams, width});
        TensorView flat_x = x;  // every stream is a row
        flat_x.rank = 2;
        flat_x.shape[0] = t * streams, flat_x.shape[1] = width;
        flat_x.strides[0] = width, flat_x.strides[1] = 1;
        project(w.h_proj, normed, low(w.h_proj, normed, pass.stream), flat_x, pass.stream);
        op::expand_streams({.value = value, .x = x, .accumulate = true, .stream = pass.stream});
        run_block(model_, w.block, draft_->layer, workspace_, x, pass, true);
        if (pass.observer) (*pass.observer)("mtp.0.experts", workspace_.experts.rows(0, t));
        finish_blocks(workspace_, x, pass);
    }
    void draft_head(const TensorView& x, const TensorView& logits, void* stream) override {
        run_head(model_.weights.mtp->head, x, logits, stream);
    }

    bool only_grows() const override { return false; }
    std::vector<TensorView> fixed_state() const override {
        std::vector<TensorView> pieces;
        const auto add = [&](const DeviceTensor& tensor) {
            if (tensor.present()) pieces.push_back(tensor.view());
        };
        for (const LayerState& layer : layers_)
            add(layer.ring), add(layer.frontier), add(layer.index_frontier);
        if (draft_) add(draft_->layer.ring);
        return pieces;
    }
    std::vector<TensorView> caches() const override {
        std::vector<TensorView> all = fixed_state();
        for (const LayerState& layer : layers_)
            for (const DeviceTensor* rows : {layer.compressed, layer.index_rows})
                if (rows) all.push_back(rows->view());
        return all;
    }
    void visit_grown(u32 length, const Visit& visit) const override {
        for (size_t i = 0; i < layers_.size(); ++i)
            layers_[i].visit_grown(length, model_.config.layers[i].compress_ratio, visit);
    }
    void visit_visible(u32 length, const NamedVisit& visit) const override {
        for (size_t i = 0; i < layers_.size(); ++i)
            layers_[i].visit_visible(fmt::format("layers.{}.", i), length, model_.config.window,
                                     model_.config.layers[i].compress_ratio, visit);
    }

  private:
    void norm(const TensorView& x, const DeviceTensor& weight, const TensorView& y, void* stream) {
        op::rms_norm(
            {.x = x, .weight = weight.view(), .y = y, .eps = model_.config.rms_epsilon, .stream = stream});
    }
    Input low(const Linear& w, const TensorView& x, void* stream) {
        return w.low_precision() ? to_fp8(x, draft_->fp8, ScaleRule::up, stream) : Input{x, {}};
    }
    void run_head(const HeadWeights& head, const TensorView& x, const TensorView& logits, void* stream) {
        const TensorView input = head_input_.rows(0, x.shape[0]);
        op::hc_head({.x = x,
                     .fn = head.hc.fn.view(),
                     .base = head.hc.base.view(),
                     .scale = head.hc.scale.view(),
                     .weight = head.norm.view(),
                     .y = input,
                     .hc_eps = model_.config.hc_epsilon,
                     .rms_eps = model_.config.rms_epsilon,
                     .stream = stream});
        project(model_.weights.head, input, {input, {}}, logits, stream);
    }

    const Loaded& model_;
    std::vector<LayerState> layers_;
    Workspace workspace_;
    DeviceTensor head_input_;
    std::optional<DraftSpace> draft_;
};

class V4Config final : public ModelConfig {
  public:
    explicit V4Config(Config config)
        : config_(std::move(config)),
          facts_{.architecture = "DeepSeek-V4",
                 .vocab = config_.vocab,
                 .num_layers = static_cast<u32>(config_.layers.size()),
                 .max_positions = config_.max_positions,
                 .bos = config_.bos,
                 .eos = config_.eos,
                 .row_shape = {config_.streams, config_.hidden},
                 .drafts = config_.num_mtp > 0} {}

    const ModelFacts& facts() const override { return facts_; }
    std::vector<Expected> expected_tensors() const override { return deepseek_v4::expected_tensors(config_); }
    std::vector<PageShape> page_shapes(Numerics numerics) const override {
        return page_shapes_of(config_, numerics);
    }
    std::unique_ptr<const Model> load(Loader& loader, Numerics numerics) const override {
        check_numerics(numerics);
        Device& device = loader.device();
        Loaded loaded{
            .device = device,
            .config = config_,
            .numerics = numerics,
            .weights = load_weights(loader, config_),
            .window_frequencies = upload_frequencies(device, config_.rope, config_.rope_dim),
            .compress_frequencies = upload_frequencies(device, config_.compress_rope, config_.rope_dim)};
        const u64 bytes = loader.device_bytes();
        return std::make_unique<LoadedModel<Loaded, State>>(facts_, std::move(loaded), bytes);
    }

  private:
    // What the released formats are made for.
    void check_numerics(Numerics numerics) const {
        DG_CHECK(!has_fp8_cache(numerics) || (config_.head_dim == 512 && config_.rope_dim == 64), value,
                 "engine: FP8 cache rows have 448 + 64 channels, this model's {} + {}; expected numerics "
                 "'exact': pass it",
                 config_.head_dim - config_.rope_dim, config_.rope_dim);
        constexpr u32 kGroup = 128;
        for (const auto& [name, extent] :
             {std::pair("hidden_size", config_.hidden), std::pair("q_lora_rank", config_.q_rank),
              std::pair("o_groups o_lora_rank", config_.o_groups * config_.o_rank),
              std::pair("moe_intermediate_size", config_.expert_width)})
            DG_CHECK(numerics != Numerics::released || extent % kGroup == 0, value,
                     "engine: {} is {}, but FP8 activations have groups of {}; expected numerics 'exact' or "
                     "'fp8_cache': pass one of them",
                     name, extent, kGroup);
    }

    Config config_;
    ModelFacts facts_;
};

}  // namespace

std::unique_ptr<const ModelConfig> parse(const ConfigKeys& keys) {
    return std::make_unique<V4Config>(read_config(keys));
}

}  // namespace deep_gemm::runtime::deepseek_v4
