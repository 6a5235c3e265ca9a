// The weights of a DeepSeek-V4 model on a device, as its operations take them. Matrices stay in the format
// they are stored in; experts of a layer are stacked; everything small is fp32. Immutable after loading.
#pragma once

#include "runtime/checkpoint.h"
#include "runtime/config.h"
#include "runtime/device_tensor.h"

#include <functional>
#include <optional>

namespace deep_gemm::runtime {

struct Linear {
    DeviceTensor data;   // [n, k] or [groups, n, k]; FP4 as int8 [.., k / 2]
    DeviceTensor scale;  // absent for fp32 and bf16

    [[nodiscard]] bool low_precision() const { return scale.present(); }  // takes FP8 activations
};

struct HcWeights {
    DeviceTensor fn, base, scale;
};

struct CompressorWeights {
    Linear wkv, wgate;
    DeviceTensor ape, norm;
};

struct ExpertWeights {
    Linear w1, w2, w3;  // [experts, n, k]
};

struct BlockWeights {
    LayerConfig layer;
    HcWeights attention_hc, ffn_hc;
    DeviceTensor attention_norm, ffn_norm, q_norm, kv_norm, sinks;
    Linear wq_a, wq_b, wkv, wo_a, wo_b;  // wo_a [o_groups, o_rank, k]
    std::optional<CompressorWeights> compressor, index_compressor;
    Linear index_wq_b, index_weights;
    Linear gate;
    DeviceTensor gate_bias, hash;  // one of them: fp32 [experts], int32 [vocab, top_k]
    ExpertWeights experts, shared;
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

struct ModelWeights {
    Linear embed, head;
    HeadWeights output;
    std::vector<BlockWeights> layers;
    std::optional<MtpWeights> mtp;
    u64 bytes = 0;  // on the device
};

using LoadProgress = std::function<void(u64 done_bytes, u64 total_bytes)>;

// The checkpoint must have passed check_complete().
[[nodiscard]] ModelWeights load_weights(Device& device, const DeepseekV4Config& config,
                                        const Checkpoint& checkpoint, const LoadProgress& progress);

}  // namespace deep_gemm::runtime
