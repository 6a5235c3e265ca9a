"""Shapes of released models, for measuring with random weights: config.json as far as the runtime reads it."""

from __future__ import annotations

from typing import Any

FLASH = {
    "model_type": "deepseek_v4",
    "vocab_size": 129280,
    "hidden_size": 4096,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 43,
    "num_attention_heads": 64,
    "head_dim": 512,
    "qk_rope_head_dim": 64,
    "q_lora_rank": 1024,
    "o_groups": 8,
    "o_lora_rank": 1024,
    "sliding_window": 128,
    "index_n_heads": 64,
    "index_head_dim": 128,
    "index_topk": 512,
    "n_routed_experts": 256,
    "num_experts_per_tok": 6,
    "n_shared_experts": 1,
    "num_hash_layers": 0,
    "routed_scaling_factor": 1.5,
    "swiglu_limit": 10.0,
    "rope_theta": 10000,
    "compress_rope_theta": 160000,
    "rope_scaling": {
        "factor": 16,
        "original_max_position_embeddings": 65536,
        "beta_fast": 32,
        "beta_slow": 1,
    },
    "hc_mult": 4,
    "hc_sinkhorn_iters": 20,
    "hc_eps": 1e-6,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 1048576,
    "num_nextn_predict_layers": 1,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "scoring_func": "sqrtsoftplus",
    "hidden_act": "silu",
}

PRO = FLASH | {
    "hidden_size": 7168,
    "moe_intermediate_size": 3072,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "q_lora_rank": 1536,
    "o_groups": 16,
    "index_topk": 1024,
    "n_routed_experts": 384,
    "routed_scaling_factor": 2.5,
}

QWEN = {
    "model_type": "qwen3_moe",
    "vocab_size": 151936,
    "hidden_size": 2048,
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
    "norm_topk_prob": True,
    "hidden_act": "silu",
    "rope_theta": 1000000.0,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 40960,
    "eos_token_id": 151645,
}

QWEN_FP8 = QWEN | {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}

# For tests: everything that the large ones have, in no time.
TINY = FLASH | {
    "vocab_size": 256,
    "hidden_size": 256,
    "moe_intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "q_lora_rank": 128,
    "o_groups": 2,
    "o_lora_rank": 128,
    "index_n_heads": 4,
    "index_topk": 16,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
}

CONFIGS: dict[str, dict[str, Any]] = {
    "flash": FLASH,
    "pro": PRO,
    "qwen3-30b-a3b": QWEN,
    "qwen3-30b-a3b-fp8": QWEN_FP8,
    "tiny": TINY,
}


def with_layers(name: str, layers: int) -> dict[str, Any]:
    """The shape with so many layers. DeepSeek-V4's are CSA and HCA in turn, as all but its first two are."""
    config = CONFIGS[name] | {"num_hidden_layers": layers}
    if config["model_type"] == "deepseek_v4":
        config["compress_ratios"] = [4 if i % 2 == 0 else 128 for i in range(layers)] + [0]
    return config
