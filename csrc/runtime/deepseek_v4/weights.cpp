#include "runtime/deepseek_v4/weights.h"

namespace deep_gemm::runtime::deepseek_v4 {

namespace {

HcWeights load_hc(Loader& loader, const std::string& at) {
    return {loader.plain(at + "_fn"), loader.plain(at + "_base"), loader.plain(at + "_scale")};
}

HeadWeights load_head(Loader& loader, const std::string& at) {
    return {load_hc(loader, at + "hc_head"), loader.plain(at + "norm.weight")};
}

CompressorWeights load_compressor(Loader& loader, const std::string& at) {
    return {loader.linear(at + "wkv"), loader.linear(at + "wgate"), loader.plain(at + "ape"),
            loader.plain(at + "norm.weight")};
}

BlockWeights load_block(Loader& loader, const Config& c, const LayerConfig& layer, const std::string& at) {
    BlockWeights w;
    const std::string attn = at + "attn.", ffn = at + "ffn.";
    w.layer = layer;
    w.attention_hc = load_hc(loader, at + "hc_attn");
    w.ffn_hc = load_hc(loader, at + "hc_ffn");
    w.attention_norm = loader.plain(at + "attn_norm.weight");
    w.ffn_norm = loader.plain(at + "ffn_norm.weight");
    w.q_norm = loader.plain(attn + "q_norm.weight");
    w.kv_norm = loader.plain(attn + "kv_norm.weight");
    w.sinks = loader.plain(attn + "attn_sink");
    w.wq_a = loader.linear(attn + "wq_a");
    w.wq_b = loader.linear(attn + "wq_b");
    w.wkv = loader.linear(attn + "wkv");
    w.wo_a = loader.linear({attn + "wo_a"}, c.o_groups);
    w.wo_b = loader.linear(attn + "wo_b");
    if (layer.compressed()) w.compressor = load_compressor(loader, attn + "compressor.");
    if (layer.indexed()) {
        w.index_compressor = load_compressor(loader, attn + "indexer.compressor.");
        w.index_wq_b = loader.linear(attn + "indexer.wq_b");
        w.index_weights = loader.linear(attn + "indexer.weights_proj");
    }
    w.gate = loader.linear(ffn + "gate");
    if (layer.hash_routed)
        w.hash = loader.ids(ffn + "gate.tid2eid", c.num_experts);
    else
        w.gate_bias = loader.plain(ffn + "gate.bias");
    const std::string routed = ffn + "experts.";
    const auto experts = [&](const char* name) { return loader.experts(routed, c.num_experts, name); };
    if (loader.should_pack(routed, {"w1", "w2"}, c.num_experts, c.hidden, c.expert_width, c.top_k))
        w.packed = {loader.packed_experts(routed, c.num_experts, {"w1", "w3"}),
                    loader.packed_experts(routed, c.num_experts, {"w2"})};
    else
        w.experts = {experts("w1"), experts("w2"), experts("w3")};
    const std::string shared = ffn + "shared_experts.";
    w.shared = {loader.linear({shared + "w1"}, 1), loader.linear({shared + "w2"}, 1),
                loader.linear({shared + "w3"}, 1)};
    return w;
}

MtpWeights load_mtp(Loader& loader, const Config& c, const std::string& at) {
    MtpWeights w;
    w.block = load_block(loader, c, LayerConfig{}, at);
    w.head = load_head(loader, at);
    w.e_proj = loader.linear(at + "e_proj");
    w.h_proj = loader.linear(at + "h_proj");
    w.e_norm = loader.plain(at + "enorm.weight");
    w.h_norm = loader.plain(at + "hnorm.weight");
    return w;
}

}  // namespace

Weights load_weights(Loader& loader, const Config& config) {
    Weights weights;
    weights.embed = loader.linear("embed");
    weights.head = loader.linear("head");
    weights.output = load_head(loader, "");
    for (size_t i = 0; i < config.layers.size(); ++i)
        weights.layers.push_back(load_block(loader, config, config.layers[i], fmt::format("layers.{}.", i)));
    if (config.num_mtp) weights.mtp = load_mtp(loader, config, "mtp.0.");
    return weights;
}

}  // namespace deep_gemm::runtime::deepseek_v4
