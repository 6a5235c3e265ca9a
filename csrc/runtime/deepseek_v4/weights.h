// The weights of a DeepSeek-V4 model on a device, as its operations take them. Immutable after loading.
#pragma once

#include "runtime/deepseek_v4/config.h"
#include "runtime/weight_loader.h"

#include <optional>

namespace deep_gemm::runtime::deepseek_v4 {

struct HcWeights {
    DeviceTensor fn, base, scale;
};

struct CompressorWeights {
    Linear wkv, wgate;
    DeviceTensor ape, norm;
};

struct BlockWeights {
    LayerConfig layer;
    HcWeights attention_hc, ffn_hc;
    DeviceTensor attention_norm, ffn_norm, q_norm, kv_norm, sinks;
    Linear wq_a, wq_b, wkv, wo_a, wo_b;  // wo_a [o_groups, o_rank, k]
    std::optional<CompressorWeights> compressor, index_compressor;
    Linear index_wq_b, index_weights;
    Linear gate;
    DeviceTensor gate_bias, hash;   // one of them: fp32 [experts], int32 [vocab, top_k]
    ExpertWeights experts, shared;  // experts: absent where they are packed
    std::optional<PackedExperts> packed;
};

struct HeadWeights {
    HcWeights hc;
    DeviceTensor norm;
};

struct MtpWeights {
    BlockWeights block;
    HeadWeights head;
    Linear e_proj, h_proj;
    DeviceTensor e_norm, h_norm;
};

struct Weights {
    Linear embed, head;
    HeadWeights output;
    std::vector<BlockWeights> layers;
    std::optional<MtpWeights> mtp;
};

[[nodiscard]] Weights load_weights(Loader& loader, const Config& config);

}  // namespace deep_gemm::runtime::deepseek_v4
