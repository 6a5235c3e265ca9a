#include "runtime/qwen3_moe/config.h"

#include "base/error.h"
#include "op/sample.h"

#include <algorithm>

namespace deep_gemm::runtime::qwen3_moe {

namespace {

// rope_theta, or what transformers 5 writes: rope_parameters {rope_type, rope_theta}.
double read_rope(const ConfigKeys& keys) {
    for (const char* key : {"rope_scaling", "rope_parameters"}) {
        if (!keys.has(key)) continue;
        const ConfigKeys rope = keys.object(key);
        rope.expect_text("rope_type", "default");
        rope.expect_text("type", "default");
        if (rope.has("rope_theta")) return rope.wide_real("rope_theta");
    }
    return keys.wide_real("rope_theta");
}

// Every layer a mixture of experts, causal attention over everything, no biases.
void refuse_variants(const ConfigKeys& keys) {
    keys.expect_text("hidden_act", "silu");
    keys.expect_flag("attention_bias", false);
    keys.expect_flag("use_sliding_window", false);
    if (keys.has("decoder_sparse_step")) (void)keys.count("decoder_sparse_step", 1, 1);
    if (!keys.has("mlp_only_layers")) return;
    const Json::Array& dense = keys.get("mlp_only_layers").as_array(keys.what("mlp_only_layers"));
    DG_CHECK(dense.empty(), value,
             "{}: got {} layers without experts, expected none; there is no kernel for them",
             keys.what("mlp_only_layers"), dense.size());
}

}  // namespace

Config read_config(const ConfigKeys& keys) {
    refuse_variants(keys);
    Config config;
    config.vocab = keys.count("vocab_size", 2, op::kMaxVocabulary);
    config.hidden = keys.count("hidden_size", 32, 1u << 16);
    config.num_layers = keys.count("num_hidden_layers", 1, 1024);
    config.num_heads = keys.count("num_attention_heads", 1, 1024);
    config.num_kv_heads = keys.count("num_key_value_heads", 1, config.num_heads);
    config.head_dim = keys.count("head_dim", 32, 128);
    config.num_experts = keys.count("num_experts", 1, kMaxExperts);
    config.top_k = keys.count("num_experts_per_tok", 1, std::min(config.num_experts, 32u));
    config.expert_width = keys.count("moe_intermediate_size", 32, 1u << 16);
    config.normalize_top_k = keys.flag("norm_topk_prob", false);
    config.tied_head = keys.flag("tie_word_embeddings", false);
    config.rope_theta = read_rope(keys);
    config.rms_epsilon = keys.real("rms_norm_eps");
    config.max_positions = keys.count("max_position_embeddings", 1, 1u << 24);
    config.eos = keys.first_count("eos_token_id", 0, config.vocab - 1);
    DG_CHECK(config.num_heads % config.num_kv_heads == 0, value,
             "{}: {} heads over {} key-value heads, expected a multiple; correct the configuration",
             keys.source(), config.num_heads, config.num_kv_heads);
    DG_CHECK(config.head_dim == 32 || config.head_dim == 64 || config.head_dim == 128, value,
             "{}: got {}, expected 32, 64 or 128; there is no kernel for others", keys.what("head_dim"),
             config.head_dim);
    return config;
}

std::vector<Expected> expected_tensors(const Config& c) {
    Inventory list;
    list.table("model.embed_tokens", c.vocab, c.hidden);
    list.plain("model.norm.weight", {c.hidden});
    if (!c.tied_head) list.linear("lm_head", c.vocab, c.hidden);
    const u64 query = u64{c.num_heads} * c.head_dim, key = u64{c.num_kv_heads} * c.head_dim;
    for (u32 i = 0; i < c.num_layers; ++i) {
        const std::string at = fmt::format("model.layers.{}.", i), attn = at + "self_attn.";
        list.plain(at + "input_layernorm.weight", {c.hidden});
        list.plain(at + "post_attention_layernorm.weight", {c.hidden});
        list.linear(attn + "q_proj", query, c.hidden);
        list.linear(attn + "k_proj", key, c.hidden);
        list.linear(attn + "v_proj", key, c.hidden);
        list.linear(attn + "o_proj", c.hidden, query);
        list.plain(attn + "q_norm.weight", {c.head_dim});
        list.plain(attn + "k_norm.weight", {c.head_dim});
        list.linear(at + "mlp.gate", c.num_experts, c.hidden);
        const std::string first = at + "mlp.experts.0.";  // the others' matrices lie beside its
        for (u32 e = 0; e < c.num_experts; ++e) {
            const std::string expert = fmt::format("{}mlp.experts.{}.", at, e);
            list.linear(expert + "gate_proj", c.expert_width, c.hidden, first + "gate_proj");
            list.linear(expert + "up_proj", c.expert_width, c.hidden, first + "gate_proj");
            list.linear(expert + "down_proj", c.hidden, c.expert_width, first + "down_proj");
        }
    }
    return std::move(list.entries);
}

}  // namespace deep_gemm::runtime::qwen3_moe
