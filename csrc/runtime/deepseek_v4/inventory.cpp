// Which tensors a DeepSeek-V4 checkpoint holds, and how they are loaded.
#include "base/error.h"
#include "runtime/deepseek_v4/config.h"

namespace deep_gemm::runtime::deepseek_v4 {

namespace {

void add_compressor(Inventory& list, const Config& c, const LayerConfig& layer, const std::string& at,
                    u64 dim) {
    const u64 width = layer.overlap() * dim;
    list.linear(at + "wkv", width, c.hidden);
    list.linear(at + "wgate", width, c.hidden);
    list.plain(at + "ape", {layer.compress_ratio, width});
    list.plain(at + "norm.weight", {dim});
}

void add_attention(Inventory& list, const Config& c, const LayerConfig& layer, const std::string& at) {
    const u64 heads = c.num_heads;
    list.linear(at + "wq_a", c.q_rank, c.hidden);
    list.plain(at + "q_norm.weight", {c.q_rank});
    list.linear(at + "wq_b", heads * c.head_dim, c.q_rank);
    list.linear(at + "wkv", c.head_dim, c.hidden);
    list.plain(at + "kv_norm.weight", {c.head_dim});
    list.plain(at + "attn_sink", {heads});
    list.linear(at + "wo_a", u64{c.o_groups} * c.o_rank, heads / c.o_groups * c.head_dim);
    list.linear(at + "wo_b", c.hidden, u64{c.o_groups} * c.o_rank);
    if (layer.compressed()) add_compressor(list, c, layer, at + "compressor.", c.head_dim);
    if (!layer.indexed()) return;
    list.linear(at + "indexer.wq_b", u64{c.index_heads} * c.index_dim, c.q_rank);
    list.linear(at + "indexer.weights_proj", c.index_heads, c.hidden);
    add_compressor(list, c, layer, at + "indexer.compressor.", c.index_dim);
}

// `like`: another expert, whose matrices lie beside these in memory.
void add_expert(Inventory& list, const Config& c, const std::string& at, const std::string& like) {
    list.linear(at + "w1", c.expert_width, c.hidden, like + "w1");
    list.linear(at + "w2", c.hidden, c.expert_width, like + "w2");
    list.linear(at + "w3", c.expert_width, c.hidden, like + "w1");
}

void add_block(Inventory& list, const Config& c, const LayerConfig& layer, const std::string& at) {
    for (const char* site : {"hc_attn", "hc_ffn"}) {
        list.plain(at + site + "_fn", {c.mixes(), u64{c.streams} * c.hidden});
        list.plain(at + site + "_base", {c.mixes()});
        list.plain(at + site + "_scale", {3});
    }
    list.plain(at + "attn_norm.weight", {c.hidden});
    list.plain(at + "ffn_norm.weight", {c.hidden});
    add_attention(list, c, layer, at + "attn.");
    list.linear(at + "ffn.gate", c.num_experts, c.hidden);
    if (layer.hash_routed)
        list.ids(at + "ffn.gate.tid2eid", {c.vocab, c.top_k});
    else
        list.plain(at + "ffn.gate.bias", {c.num_experts});
    const std::string routed = at + "ffn.experts.", shared = at + "ffn.shared_experts.";
    for (u32 e = 0; e < c.num_experts; ++e)
        add_expert(list, c, fmt::format("{}{}.", routed, e), routed + "0.");
    add_expert(list, c, shared, shared);
}

void add_head(Inventory& list, const Config& c, const std::string& at) {
    list.plain(at + "hc_head_fn", {c.streams, u64{c.streams} * c.hidden});
    list.plain(at + "hc_head_base", {c.streams});
    list.plain(at + "hc_head_scale", {1});
    list.plain(at + "norm.weight", {c.hidden});
}

}  // namespace

std::vector<Expected> expected_tensors(const Config& c) {
    Inventory list;
    list.table("embed", c.vocab, c.hidden);
    list.linear("head", c.vocab, c.hidden);
    add_head(list, c, "");
    for (size_t i = 0; i < c.layers.size(); ++i)
        add_block(list, c, c.layers[i], fmt::format("layers.{}.", i));
    for (u32 i = 0; i < c.num_mtp; ++i) {
        const std::string at = fmt::format("mtp.{}.", i);
        add_block(list, c, LayerConfig{}, at);
        add_head(list, c, at);
        list.linear(at + "e_proj", c.hidden, c.hidden);
        list.linear(at + "h_proj", c.hidden, c.hidden);
        list.plain(at + "enorm.weight", {c.hidden});
        list.plain(at + "hnorm.weight", {c.hidden});
    }
    return std::move(list.entries);
}

}  // namespace deep_gemm::runtime::deepseek_v4
