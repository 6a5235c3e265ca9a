// What a Qwen3-MoE model is: a frozen value read from config.json. The keys are the checkpoint's own.
#pragma once

#include "runtime/config_keys.h"
#include "runtime/model.h"

#include <memory>

namespace deep_gemm::runtime::qwen3_moe {

struct Config {
    u32 vocab = 0, hidden = 0, num_layers = 0;
    u32 num_heads = 0, num_kv_heads = 0, head_dim = 0;
    u32 num_experts = 0, top_k = 0, expert_width = 0;
    bool normalize_top_k = false;  // the chosen experts' weights sum to 1
    bool tied_head = false;        // the embedding is the output matrix
    double rope_theta = 0;
    float rms_epsilon = 0;
    u32 max_positions = 0, eos = 0;
};

[[nodiscard]] Config read_config(const ConfigKeys& keys);
[[nodiscard]] std::vector<Expected> expected_tensors(const Config& config);
[[nodiscard]] std::unique_ptr<const ModelConfig> parse(const ConfigKeys& keys);

}  // namespace deep_gemm::runtime::qwen3_moe
