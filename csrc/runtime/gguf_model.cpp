#include "runtime/gguf_model.h"

#include "base/error.h"
#include "runtime/config_keys.h"

#include <algorithm>
#include <charconv>
#include <span>

namespace deep_gemm::runtime {

namespace {

// A key of config.json and the metadata key that holds its value, after "<architecture>." where it begins
// with a dot. `optional`: where it is missing, so is the other one.
struct KeyRow {
    const char* config;
    const char* gguf;
    bool optional = false;
};

// Names without the layer's prefix. A '*' is the expert's number: the GGUF tensor is the stack of them.
struct NameRow {
    const char* gguf;
    const char* ours;
};

struct Table {
    std::string_view architecture;
    const char* model_type;
    const char* layer;  // prefix of a layer's tensors; GGUF's is "blk.{}."
    const char* fixed;  // more of config.json, as JSON members
    std::span<const KeyRow> keys;
    std::span<const NameRow> model, blocks;
};

// clang-format off
constexpr KeyRow kQwenKeys[] = {
    {"hidden_size", ".embedding_length"}, {"num_hidden_layers", ".block_count"},
    {"num_attention_heads", ".attention.head_count"}, {"num_key_value_heads", ".attention.head_count_kv"},
    {"head_dim", ".attention.key_length"}, {"num_experts", ".expert_count"},
    {"num_experts_per_tok", ".expert_used_count"}, {"moe_intermediate_size", ".expert_feed_forward_length"},
    {"rope_theta", ".rope.freq_base"}, {"rms_norm_eps", ".attention.layer_norm_rms_epsilon"},
    {"max_position_embeddings", ".context_length"}, {"eos_token_id", "tokenizer.ggml.eos_token_id"}};
constexpr NameRow kQwenModel[] = {
    {"token_embd.weight", "model.embed_tokens.weight"}, {"output_norm.weight", "model.norm.weight"},
    {"output.weight", "lm_head.weight"}};
constexpr NameRow kQwenBlocks[] = {
    {"attn_norm.weight", "input_layernorm.weight"}, {"ffn_norm.weight", "post_attention_layernorm.weight"},
    {"attn_q.weight", "self_attn.q_proj.weight"}, {"attn_k.weight", "self_attn.k_proj.weight"},
    {"attn_v.weight", "self_attn.v_proj.weight"}, {"attn_output.weight", "self_attn.o_proj.weight"},
    {"attn_q_norm.weight", "self_attn.q_norm.weight"}, {"attn_k_norm.weight", "self_attn.k_norm.weight"},
    {"ffn_gate_inp.weight", "mlp.gate.weight"},
    {"ffn_gate_exps.weight", "mlp.experts.*.gate_proj.weight"},
    {"ffn_up_exps.weight", "mlp.experts.*.up_proj.weight"},
    {"ffn_down_exps.weight", "mlp.experts.*.down_proj.weight"}};

constexpr KeyRow kDeepseekKeys[] = {
    {"hidden_size", ".embedding_length"}, {"num_hidden_layers", ".block_count"},
    {"num_attention_heads", ".attention.head_count"}, {"head_dim", ".attention.key_length"},
    {"qk_rope_head_dim", ".rope.dimension_count"}, {"q_lora_rank", ".attention.q_lora_rank"},
    {"o_groups", ".attention.output_group_count"}, {"o_lora_rank", ".attention.output_lora_rank"},
    {"sliding_window", ".attention.sliding_window"}, {"compress_ratios", ".attention.compress_ratios"},
    {"compress_rope_theta", ".attention.compress_rope_freq_base"},
    {"index_n_heads", ".attention.indexer.head_count", true},
    {"index_head_dim", ".attention.indexer.key_length", true}, {"index_topk", ".attention.indexer.top_k", true},
    {"n_routed_experts", ".expert_count"}, {"num_experts_per_tok", ".expert_used_count"},
    {"moe_intermediate_size", ".expert_feed_forward_length"}, {"n_shared_experts", ".expert_shared_count"},
    {"routed_scaling_factor", ".expert_weights_scale"}, {"num_hash_layers", ".hash_layer_count"},
    {"swiglu_limit", ".swiglu_clamp_exp"}, {"hc_mult", ".hyper_connection.count"},
    {"hc_sinkhorn_iters", ".hyper_connection.sinkhorn_iterations"}, {"hc_eps", ".hyper_connection.epsilon"},
    {"rms_norm_eps", ".attention.layer_norm_rms_epsilon"}, {"max_position_embeddings", ".context_length"},
    {"rope_theta", ".rope.freq_base"}, {"bos_token_id", "tokenizer.ggml.bos_token_id"},
    {"eos_token_id", "tokenizer.ggml.eos_token_id"}};
constexpr KeyRow kYarnKeys[] = {
    {"factor", ".rope.scaling.factor"},
    {"original_max_position_embeddings", ".rope.scaling.original_context_length"},
    {"beta_fast", ".rope.scaling.yarn_beta_fast"}, {"beta_slow", ".rope.scaling.yarn_beta_slow"}};
constexpr NameRow kDeepseekModel[] = {
    {"token_embd.weight", "embed.weight"}, {"output.weight", "head.weight"},
    {"output_norm.weight", "norm.weight"}, {"output_hc_fn.weight", "hc_head_fn"},
    {"output_hc_base.weight", "hc_head_base"}, {"output_hc_scale.weight", "hc_head_scale"}};
constexpr NameRow kDeepseekBlocks[] = {
    {"hc_attn_fn.weight", "hc_attn_fn"}, {"hc_attn_base.weight", "hc_attn_base"},
    {"hc_attn_scale.weight", "hc_attn_scale"}, {"hc_ffn_fn.weight", "hc_ffn_fn"},
    {"hc_ffn_base.weight", "hc_ffn_base"}, {"hc_ffn_scale.weight", "hc_ffn_scale"},
    {"attn_norm.weight", "attn_norm.weight"}, {"ffn_norm.weight", "ffn_norm.weight"},
    {"attn_q_a.weight", "attn.wq_a.weight"}, {"attn_q_a_norm.weight", "attn.q_norm.weight"},
    {"attn_q_b.weight", "attn.wq_b.weight"}, {"attn_kv.weight", "attn.wkv.weight"},
    {"attn_kv_a_norm.weight", "attn.kv_norm.weight"}, {"attn_sinks.weight", "attn.attn_sink"},
    {"attn_output_a.weight", "attn.wo_a.weight"}, {"attn_output_b.weight", "attn.wo_b.weight"},
    {"attn_compressor_kv.weight", "attn.compressor.wkv.weight"},
    {"attn_compressor_gate.weight", "attn.compressor.wgate.weight"},
    {"attn_compressor_ape.weight", "attn.compressor.ape"},
    {"attn_compressor_norm.weight", "attn.compressor.norm.weight"},
    {"indexer.attn_q_b.weight", "attn.indexer.wq_b.weight"},
    {"indexer.proj.weight", "attn.indexer.weights_proj.weight"},
    {"indexer_compressor_kv.weight", "attn.indexer.compressor.wkv.weight"},
    {"indexer_compressor_gate.weight", "attn.indexer.compressor.wgate.weight"},
    {"indexer_compressor_ape.weight", "attn.indexer.compressor.ape"},
    {"indexer_compressor_norm.weight", "attn.indexer.compressor.norm.weight"},
    {"ffn_gate_inp.weight", "ffn.gate.weight"}, {"exp_probs_b.bias", "ffn.gate.bias"},
    {"ffn_gate_tid2eid.weight", "ffn.gate.tid2eid"},
    {"ffn_gate_exps.weight", "ffn.experts.*.w1.weight"}, {"ffn_up_exps.weight", "ffn.experts.*.w3.weight"},
    {"ffn_down_exps.weight", "ffn.experts.*.w2.weight"},
    {"ffn_gate_shexp.weight", "ffn.shared_experts.w1.weight"},
    {"ffn_up_shexp.weight", "ffn.shared_experts.w3.weight"},
    {"ffn_down_shexp.weight", "ffn.shared_experts.w2.weight"}};

// llama.cpp's graph of qwen3moe always normalises the chosen experts' weights; deepseek4 files have no MTP.
constexpr Table kTables[] = {
    {"qwen3moe", "qwen3_moe", "model.layers.{}.", R"("norm_topk_prob": true)", kQwenKeys, kQwenModel, kQwenBlocks},
    {"deepseek4", "deepseek_v4", "layers.{}.", R"("num_nextn_predict_layers": 0)", kDeepseekKeys, kDeepseekModel, kDeepseekBlocks}};
// clang-format on

// Metadata of one file as members of config.json.
class Members {
  public:
    Members(const Table& table, const GgufMetadata& metadata, const std::string& source)
        : table_(table), metadata_(metadata), source_(source) {}

    void add(const KeyRow& row) {
        const std::string key =
            row.gguf[0] == '.' ? fmt::format("{}{}", table_.architecture, row.gguf) : row.gguf;
        const auto found = metadata_.find(key);
        if (found == metadata_.end() && row.optional) return;
        DG_CHECK(found != metadata_.end(), value,
                 "{}: no metadata '{}'; expected a {} model: convert it anew, with that key", source_, key,
                 table_.architecture);
        add(row.config, found->second);
    }
    void add(std::string_view key, std::string_view json) {
        text += fmt::format("{}\"{}\": {}", text.empty() ? "" : ", ", key, json);
    }

    std::string text;

  private:
    const Table& table_;
    const GgufMetadata& metadata_;
    const std::string& source_;
};

const Tensor* find(const std::vector<Tensor>& tensors, std::string_view name) {
    const auto found =
        std::find_if(tensors.begin(), tensors.end(), [&](const Tensor& t) { return t.name == name; });
    return found == tensors.end() ? nullptr : &*found;
}

// Of a list of numbers the first, or the first `count` of them.
std::string first_of(const std::string& json, u32 count, bool as_list) {
    if (json.empty() || json.front() != '[') return json;
    size_t end = 1;
    for (u32 i = 0; i < count && end < json.size(); ++i) {
        const size_t comma = json.find(',', end);
        end = comma == std::string::npos ? json.size() : comma + 1;
    }
    const std::string list = end > 1 ? json.substr(1, end - 2) : "";
    return as_list ? fmt::format("[{}]", list) : list;
}

std::string config_of(const Table& table, GgufMetadata metadata, const std::vector<Tensor>& tensors,
                      const std::string& source) {
    const std::string prefix = std::string(table.architecture);
    // A list with a value for each layer where config.json has one number, or one for each layer and MTP
    // block.
    if (auto clamp = metadata.find(prefix + ".swiglu_clamp_exp"); clamp != metadata.end())
        clamp->second = first_of(clamp->second, 1, false);
    const auto ratios = metadata.find(prefix + ".attention.compress_ratios");
    const auto layers = metadata.find(prefix + ".block_count");
    if (ratios != metadata.end() && layers != metadata.end()) {
        u32 count = 0;
        std::from_chars(layers->second.data(), layers->second.data() + layers->second.size(), count);
        ratios->second = first_of(ratios->second, count, true);
    }
    Members members(table, metadata, source);
    members.add("model_type", fmt::format("\"{}\"", table.model_type));
    for (const KeyRow& row : table.keys) members.add(row);
    if (const Tensor* embedding = find(tensors, "token_embd.weight"); embedding && !embedding->shape.empty())
        members.add("vocab_size", fmt::format("{}", embedding->shape[0]));
    if (!find(tensors, "output.weight")) members.add("tie_word_embeddings", "true");
    if (metadata.contains(prefix + ".rope.scaling.factor") && ratios != metadata.end()) {
        Members yarn(table, metadata, source);
        for (const KeyRow& row : kYarnKeys) yarn.add(row);
        members.add("rope_scaling", fmt::format("{{{}}}", yarn.text));
    }
    return fmt::format("{{{}, {}}}", members.text, table.fixed);
}

// The number in "blk.12." and what follows it.
bool split_layer(std::string_view name, u32& layer, std::string_view& rest) {
    if (!name.starts_with("blk.")) return false;
    const char *begin = name.data() + 4, *end = name.data() + name.size();
    const auto [stop, error] = std::from_chars(begin, end, layer);
    if (error != std::errc{} || stop == end || *stop != '.') return false;
    rest = {stop + 1, static_cast<size_t>(end - stop - 1)};
    return true;
}

const char* renamed(std::span<const NameRow> rows, std::string_view name) {
    for (const NameRow& row : rows)
        if (row.gguf == name) return row.ours;
    return nullptr;
}

// [experts, n, k] as a tensor for each expert.
void split_experts(const Tensor& stack, const std::string& name, std::vector<Tensor>& out,
                   const std::string& source) {
    DG_CHECK(stack.shape.size() == 3 && stack.shape[0] <= kMaxExperts, io,
             "{}: tensor '{}' has shape {}, expected a stack of at most {} experts' matrices; convert the "
             "model anew",
             source, stack.name, text_of(stack.shape), kMaxExperts);
    const size_t star = name.find('*'), bytes = stack.bytes.size() / stack.shape[0];
    for (u64 e = 0; e < stack.shape[0]; ++e) {
        Tensor part = stack;
        part.name = fmt::format("{}{}{}", name.substr(0, star), e, name.substr(star + 1));
        part.shape.erase(part.shape.begin());
        part.bytes = stack.bytes.subspan(e * bytes, bytes);
        out.push_back(std::move(part));
    }
}

}  // namespace

std::string translate_gguf(const GgufMetadata& metadata, std::vector<Tensor>& tensors,
                           const std::string& source) {
    const auto named = metadata.find("general.architecture");
    if (named == metadata.end()) return {};
    const auto table = std::find_if(std::begin(kTables), std::end(kTables), [&](const Table& t) {
        return named->second == fmt::format("\"{}\"", t.architecture);
    });
    if (table == std::end(kTables)) return fmt::format("{{\"model_type\": {}}}", named->second);
    const std::string config = config_of(*table, metadata, tensors, source);
    std::vector<Tensor> out;
    for (Tensor& tensor : tensors) {
        u32 layer = 0;
        std::string_view rest;
        const bool in_layer = split_layer(tensor.name, layer, rest);
        const char* known = in_layer ? renamed(table->blocks, rest) : renamed(table->model, tensor.name);
        if (known) {
            const std::string name = (in_layer ? fmt::format(fmt::runtime(table->layer), layer) : "") + known;
            if (name.find('*') != std::string::npos) {
                split_experts(tensor, name, out, source);
                continue;
            }
            tensor.name = name;
        }
        out.push_back(std::move(tensor));
    }
    tensors = std::move(out);
    return config;
}

std::string_view gguf_architecture_of(std::string_view model_type) {
    for (const Table& table : kTables)
        if (table.model_type == model_type) return table.architecture;
    return {};
}

}  // namespace deep_gemm::runtime
