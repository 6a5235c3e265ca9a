// What a DeepSeek-V4 model is: a frozen value read from config.json. The keys are the checkpoint's own.
#pragma once

#include "runtime/config_keys.h"
#include "runtime/model.h"

#include <memory>
#include <vector>

namespace deep_gemm::runtime::deepseek_v4 {

// The rotary frequencies of one kind of layer: angle of pair i at position p is p * frequency(i).
struct RopeConfig {
    double theta = 10000;
    double yarn_factor = 1;  // 1: no YaRN
    double yarn_original = 0, beta_fast = 32, beta_slow = 1;
};

struct LayerConfig {
    u32 compress_ratio = 0;  // 0: sliding window only; 4: CSA (overlapping windows and an indexer); else HCA
    bool hash_routed = false;

    [[nodiscard]] bool compressed() const { return compress_ratio != 0; }
    [[nodiscard]] bool indexed() const { return compress_ratio == 4; }
    [[nodiscard]] u32 overlap() const { return indexed() ? 2 : 1; }  // windows a token contributes to
};

struct Config {
    u32 vocab = 0, hidden = 0;
    u32 num_heads = 0, head_dim = 0, rope_dim = 0, q_rank = 0, o_groups = 0, o_rank = 0, window = 0;
    u32 index_heads = 0, index_dim = 0, index_topk = 0;
    u32 num_experts = 0, top_k = 0, expert_width = 0, num_shared = 0;
    float routed_scale = 1, swiglu_limit = 0;
    u32 streams = 0, sinkhorn_iterations = 0;
    float hc_epsilon = 0, rms_epsilon = 0;
    RopeConfig rope, compress_rope;
    u32 max_positions = 0;
    u32 bos = 0, eos = 0;
    std::vector<LayerConfig> layers;
    u32 num_mtp = 0;  // 0 or 1

    [[nodiscard]] u32 mixes() const { return (2 + streams) * streams; }  // outputs of a hyper-connection site
};

[[nodiscard]] Config read_config(const ConfigKeys& keys);
[[nodiscard]] std::vector<Expected> expected_tensors(const Config& config);
[[nodiscard]] std::unique_ptr<const ModelConfig> parse(const ConfigKeys& keys);

}  // namespace deep_gemm::runtime::deepseek_v4
