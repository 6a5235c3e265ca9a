// Qwen3-MoE as the runtime's three interfaces: embedding, blocks, head.
#include "op/model_ops.h"
#include "runtime/loaded_model.h"
#include "runtime/qwen3_moe/block.h"

namespace deep_gemm::runtime::qwen3_moe {

namespace {

class State final : public ModelState {
  public:
    State(const Loaded& model, PagePool& pool, const StateSizes& sizes)
        : ModelState(pool, sizes), model_(model), workspace_(model, sizes) {
        for (u32 i = 0; i < model.config.num_layers; ++i)
            layers_.push_back({pool.memory(2 * i), pool.memory(2 * i + 1)});
        head_input_ = {model.device, activations_of(model.numerics), {sizes.max_rows, model.config.hidden}};
    }

    void forward(const TensorView& x, const Pass& pass) override {
        op::embed({.tokens = pass.tokens,
                   .table = model_.weights.embed.data.view(),
                   .x = x,
                   .stream = pass.stream});
        for (size_t i = 0; i < layers_.size(); ++i) {
            run_block(model_, model_.weights.layers[i], layers_[i], pages().view(), workspace_, x, pass);
            if (pass.observer)
                (*pass.observer)(fmt::format("layers.{}.experts", i), workspace_.experts.rows(0, pass.t));
        }
    }
    void head(const TensorView& x, const TensorView& logits, void* stream) override {
        const TensorView input = head_input_.rows(0, x.shape[0]);
        op::rms_norm({.x = x,
                      .weight = model_.weights.norm.view(),
                      .y = input,
                      .eps = model_.config.rms_epsilon,
                      .stream = stream});
        const Weights& w = model_.weights;
        project(model_.config.tied_head ? w.embed : w.head, input, {input, {}}, logits, stream);
    }
    // Rows of rejected tokens lie beyond the length, where nobody looks until they are written again.
    void restore(const TensorView&, void*) override {}

    bool only_grows() const override { return true; }
    std::vector<TensorView> fixed_state() const override { return {}; }
    std::vector<TensorView> caches() const override {
        std::vector<TensorView> all;
        for (const LayerState& layer : layers_)
            all.push_back(layer.keys.view()), all.push_back(layer.values.view());
        return all;
    }
    void visit_grown(u32 length, const Visit& visit) const override {
        visit_visible(length, [&](std::string_view, u64 address, u64 bytes) { visit(address, bytes); });
    }
    void visit_visible(u32 length, const NamedVisit& visit) const override {
        for (size_t i = 0; i < layers_.size(); ++i) {
            const auto add = [&](const char* name, const DeviceTensor& rows) {
                const u64 row_bytes = rows.row_bytes() / kPageTokens;
                const std::string full = fmt::format("layers.{}.{}", i, name);
                for (u32 first = 0; first < length; first += kPageTokens)
                    visit(full,
                          rows.address() +
                              static_cast<u64>(pages().pages(0)[first / kPageTokens]) * rows.row_bytes(),
                          row_bytes * std::min(kPageTokens, length - first));
            };
            add("keys", layers_[i].keys);
            add("values", layers_[i].values);
        }
    }

  private:
    const Loaded& model_;
    std::vector<LayerState> layers_;
    Workspace workspace_;
    DeviceTensor head_input_;
};

class QwenConfig final : public ModelConfig {
  public:
    explicit QwenConfig(const Config& config)
        : config_(config),
          facts_{.architecture = "Qwen3-MoE",
                 .vocab = config.vocab,
                 .num_layers = config.num_layers,
                 .max_positions = config.max_positions,
                 .bos = std::nullopt,
                 .eos = config.eos,
                 .row_shape = {config.hidden},
                 .drafts = false} {}

    const ModelFacts& facts() const override { return facts_; }
    std::vector<Expected> expected_tensors() const override { return qwen3_moe::expected_tensors(config_); }
    std::vector<PageShape> page_shapes(Numerics numerics) const override {
        return page_shapes_of(config_, numerics);
    }
    std::unique_ptr<const Model> load(Loader& loader, Numerics numerics) const override {
        DG_CHECK(
            numerics != Numerics::fp8_cache, value,
            "engine: got numerics 'fp8_cache', but Qwen3-MoE keeps keys and values as they are; expected "
            "'released' or 'exact': pass one of them");
        const std::vector<float> frequencies =
            op::rope_frequencies({.dims = config_.head_dim, .theta = config_.rope_theta});
        Loaded loaded{.device = loader.device(),
                      .config = config_,
                      .numerics = numerics,
                      .weights = load_weights(loader, config_),
                      .frequencies = upload(loader.device(), frequencies, {config_.head_dim / 2, 2})};
        const u64 bytes = loader.device_bytes();
        return std::make_unique<LoadedModel<Loaded, State>>(facts_, std::move(loaded), bytes);
    }

  private:
    Config config_;
    ModelFacts facts_;
};

}  // namespace

std::unique_ptr<const ModelConfig> parse(const ConfigKeys& keys) {
    return std::make_unique<QwenConfig>(read_config(keys));
}

}  // namespace deep_gemm::runtime::qwen3_moe
