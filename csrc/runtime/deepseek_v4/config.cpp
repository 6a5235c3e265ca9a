#include "runtime/deepseek_v4/config.h"

#include "base/error.h"
#include "op/sample.h"

#include <algorithm>

namespace deep_gemm::runtime::deepseek_v4 {

namespace {

void read_layers(Config& config, const ConfigKeys& keys) {
    const u32 num_layers = keys.count("num_hidden_layers", 1, 1024);
    const u32 num_hash = keys.count("num_hash_layers", 0, num_layers);
    const Json::Array& ratios = keys.get("compress_ratios").as_array(keys.what("compress_ratios"));
    config.num_mtp = keys.has("num_nextn_predict_layers") ? keys.count("num_nextn_predict_layers", 0, 1) : 0;
    DG_CHECK(
        ratios.size() == num_layers || ratios.size() == num_layers + config.num_mtp, value,
        "{}: got {} entries, expected one for each of {} layers and {} MTP blocks; correct the configuration",
        keys.what("compress_ratios"), ratios.size(), num_layers, config.num_mtp);
    for (u32 i = 0; i < ratios.size(); ++i) {
        const u64 ratio = ratios[i].as_unsigned(keys.what("compress_ratios"));
        DG_CHECK(ratio == 0 || (ratio >= 4 && ratio <= 1024 && i < num_layers), value,
                 "{}: got {} at {}, expected 0, 4, or up to 1024 (MTP blocks: 0)",
                 keys.what("compress_ratios"), ratio, i);
        if (i < num_layers)
            config.layers.push_back({.compress_ratio = static_cast<u32>(ratio), .hash_routed = i < num_hash});
    }
    if (!keys.has("mlp_layer_types")) return;  // transformers' way to say which layers are hash-routed
    const Json::Array& types = keys.get("mlp_layer_types").as_array(keys.what("mlp_layer_types"));
    DG_CHECK(types.size() == num_layers, value, "{}: got {} entries, expected {}; correct the configuration",
             keys.what("mlp_layer_types"), types.size(), num_layers);
    for (u32 i = 0; i < num_layers; ++i)
        config.layers[i].hash_routed = types[i].as_string(keys.what("mlp_layer_types")) == "hash_moe";
}

}  // namespace

Config read_config(const ConfigKeys& keys) {
    keys.expect_text("scoring_func", "sqrtsoftplus");
    keys.expect_text("hidden_act", "silu");
    keys.expect_flag("norm_topk_prob", true);
    Config config;
    config.vocab = keys.count("vocab_size", 2, op::kMaxVocabulary);
    config.hidden = keys.count("hidden_size", 32, 1u << 16);
    config.num_heads = keys.count("num_attention_heads", 1, 1024);
    config.head_dim = keys.count("head_dim", 32, 512);
    config.rope_dim = keys.count("qk_rope_head_dim", 2, config.head_dim);
    config.q_rank = keys.count("q_lora_rank", 32, 1u << 16);
    config.o_groups = keys.count("o_groups", 1, config.num_heads);
    config.o_rank = keys.count("o_lora_rank", 32, 1u << 16);
    config.window = keys.count("sliding_window", 1, 1u << 16);
    config.num_experts = keys.count("n_routed_experts", 1, kMaxExperts);
    config.top_k = keys.count("num_experts_per_tok", 1, std::min(config.num_experts, 32u));
    config.expert_width = keys.count("moe_intermediate_size", 32, 1u << 16);
    config.num_shared = keys.count("n_shared_experts", 1, 1);
    config.routed_scale = keys.real("routed_scaling_factor");
    config.swiglu_limit = keys.real("swiglu_limit");
    config.streams = keys.count("hc_mult", 2, 4);
    config.sinkhorn_iterations = keys.count("hc_sinkhorn_iters", 1, 100);
    config.hc_epsilon = keys.real("hc_eps");
    config.rms_epsilon = keys.real("rms_norm_eps");
    config.max_positions = keys.count("max_position_embeddings", 1, 1u << 24);
    config.bos = keys.count("bos_token_id", 0, config.vocab - 1);
    config.eos = keys.first_count("eos_token_id", 0, config.vocab - 1);
    config.rope.theta = keys.wide_real("rope_theta");
    read_layers(config, keys);
    const auto any = [&](auto&& test) {
        return std::any_of(config.layers.begin(), config.layers.end(), test);
    };
    if (any([](const LayerConfig& layer) { return layer.compressed(); })) {
        const ConfigKeys yarn = keys.object("rope_scaling");
        config.compress_rope = {.theta = keys.wide_real("compress_rope_theta"),
                                .yarn_factor = yarn.wide_real("factor"),
                                .yarn_original = yarn.wide_real("original_max_position_embeddings"),
                                .beta_fast = yarn.wide_real("beta_fast"),
                                .beta_slow = yarn.wide_real("beta_slow")};
    }
    if (any([](const LayerConfig& layer) { return layer.indexed(); })) {
        config.index_heads = keys.count("index_n_heads", 1, 1024);
        config.index_dim = keys.count("index_head_dim", config.rope_dim, 512);
        config.index_topk = keys.count("index_topk", 1, 4096);
        DG_CHECK(config.index_dim == 32 || config.index_dim == 64 || config.index_dim == 128, value,
                 "{}: got {}, expected 32, 64 or 128; there is no kernel for others",
                 keys.what("index_head_dim"), config.index_dim);
    }
    DG_CHECK(config.streams != 3, value, "{}: got 3, expected 2 or 4; there is no kernel for others",
             keys.what("hc_mult"));
    DG_CHECK(
        config.num_heads % config.o_groups == 0 && config.rope_dim % 2 == 0, value,
        "{}: {} heads in {} o_groups with {} rotary channels, expected whole groups and pairs; correct the "
        "configuration",
        keys.source(), config.num_heads, config.o_groups, config.rope_dim);
    return config;
}

}  // namespace deep_gemm::runtime::deepseek_v4
