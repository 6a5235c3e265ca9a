"""Against transformers, live: random models made there, their weights written as checkpoints, the same logits."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runtime.checkpoints import write_checkpoint

from deep_gemm import _C, Engine

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

CONFIG: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "num_experts": 16,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 128,
    "norm_topk_prob": True,
    "hidden_act": "silu",
    "rope_theta": 1e6,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": False,
    "eos_token_id": 1,
}


def released_names(state: dict[str, Any]) -> dict[str, np.ndarray]:
    """Stacked experts, as transformers 5 holds them, one by one."""
    tensors = {}
    for name, value in state.items():
        array = value.detach().float().numpy()
        at, _, what = name.rpartition("experts.")
        if what == "gate_up_proj":
            for e, matrix in enumerate(array):
                half = len(matrix) // 2
                tensors[f"{at}experts.{e}.gate_proj.weight"] = matrix[:half]
                tensors[f"{at}experts.{e}.up_proj.weight"] = matrix[half:]
        elif what == "down_proj":
            tensors.update({f"{at}experts.{e}.down_proj.weight": matrix for e, matrix in enumerate(array)})
        else:
            tensors[name] = array
    return tensors


def test_random_qwen3_moe(device: _C.Device, tmp_path: Path) -> None:
    torch.manual_seed(1)
    config = transformers.Qwen3MoeConfig(**CONFIG)
    config._attn_implementation = "eager"
    model = transformers.Qwen3MoeForCausalLM(config).float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.normal_(0, 3.0 if "lm_head" in name else 1.5).mul_(parameter.shape[-1] ** -0.5)
        model.model.embed_tokens.weight.normal_(0, 1)
    folder = write_checkpoint(
        tmp_path, {**CONFIG, "model_type": "qwen3_moe"}, released_names(model.state_dict())
    )
    ids = np.random.default_rng(2).integers(0, CONFIG["vocab_size"], 24 if device.emulated else 300)
    with torch.no_grad():
        want = model(input_ids=torch.from_numpy(ids)[None]).logits[0].numpy()
    engine = Engine(folder, device=device, numerics="exact", context=512)
    got = engine.session().logits_of([int(i) for i in ids])
    assert want.std() > 1
    assert abs(got - want).max() < 2e-4 * max(1.0, float(want.std()))
    with torch.no_grad():
        text = model.generate(
            torch.from_numpy(ids)[None], max_new_tokens=8, do_sample=False, eos_token_id=None
        )
    session = engine.session()
    session.sync([int(i) for i in ids])
    produced = [token for step in session.generate(8, eos=-1) for token in step.tokens]
    assert produced == text[0, len(ids) :].tolist()


# Every layer type and both routers; windows, compression and the indexer all leave something out within 40 tokens.
V4_LAYERS = ["sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention"]
V4_RATIOS = {"sliding_attention": 0, "compressed_sparse_attention": 4, "heavily_compressed_attention": 16}
V4_CONFIG: dict[str, Any] = {
    "vocab_size": 256,
    "hidden_size": 128,
    "moe_intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "q_lora_rank": 64,
    "o_groups": 2,
    "o_lora_rank": 32,
    "sliding_window": 8,
    "index_n_heads": 16,  # with few heads several rows score exactly 0, and ties are settled differently
    "index_head_dim": 32,
    "index_topk": 4,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "routed_scaling_factor": 1.5,
    "swiglu_limit": 10.0,
    "rope_theta": 10000.0,
    "compress_rope_theta": 160000.0,
    "hc_mult": 4,
    "hc_sinkhorn_iters": 20,
    "hc_eps": 1e-6,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
    "scoring_func": "sqrtsoftplus",
    "norm_topk_prob": True,
    "hidden_act": "silu",
    "num_nextn_predict_layers": 0,
    "mlp_layer_types": ["hash_moe", "moe", "moe"],
}
YARN = {"factor": 16.0, "original_max_position_embeddings": 64, "beta_fast": 32, "beta_slow": 1}

# transformers' names -> the released ones, in order.
V4_NAMES = [
    (r"^lm_head\.", "head."),
    (r"^model\.embed_tokens\.", "embed."),
    (r"^model\.hc_head\.hc_", "hc_head_"),
    (r"^model\.", ""),
    (r"input_layernorm", "attn_norm"),
    (r"post_attention_layernorm", "ffn_norm"),
    (r"(attn|ffn)_hc\.", r"hc_\1_"),
    (r"self_attn\.", "attn."),
    (r"indexer\.(kv_proj|gate_proj|position_bias|kv_norm)", r"indexer.compressor.\1"),
    (r"compressor\.indexer\.", "indexer."),
    (r"indexer\.q_b_proj", "indexer.wq_b"),
    (r"scorer\.weights_proj", "weights_proj"),
    (r"(compressor\.)kv_proj", r"\1wkv"),
    (r"(compressor\.)gate_proj", r"\1wgate"),
    (r"(compressor\.)position_bias", r"\1ape"),
    (r"(compressor\.)kv_norm", r"\1norm"),
    (r"q_a_proj", "wq_a"),
    (r"q_a_norm", "q_norm"),
    (r"q_b_proj", "wq_b"),
    (r"attn\.kv_proj", "attn.wkv"),
    (r"attn\.sinks", "attn.attn_sink"),
    (r"o_a_proj", "wo_a"),
    (r"o_b_proj", "wo_b"),
    (r"mlp\.", "ffn."),
    (r"e_score_correction_bias", "bias"),
    (r"gate_proj\.weight", "w1.weight"),
    (r"up_proj\.weight", "w3.weight"),
    (r"down_proj\.weight", "w2.weight"),
]


def released_v4(state: dict[str, Any]) -> dict[str, np.ndarray]:
    tensors = {}
    for name, array in released_names(state).items():
        for pattern, ours in V4_NAMES:
            name = re.sub(pattern, ours, name)
        tensors[name] = array.astype(np.int32) if name.endswith("tid2eid") else array
    return tensors


def test_random_deepseek_v4(device: _C.Device, tmp_path: Path) -> None:
    torch.manual_seed(3)
    config = transformers.DeepseekV4Config(
        **V4_CONFIG,
        partial_rotary_factor=0.25,
        layer_types=list(V4_LAYERS),
        compress_rates={name: rate for name, rate in V4_RATIOS.items() if rate},
        rope_parameters={"rope_type": "yarn", **YARN},
    )
    config._attn_implementation = "eager"
    model = transformers.DeepseekV4ForCausalLM(config).float().eval()
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith("tid2eid"):
                order = torch.rand(len(tensor), V4_CONFIG["n_routed_experts"]).argsort(1)
                tensor.copy_(order[:, : tensor.shape[1]])
            elif name.endswith("norm.weight"):
                tensor.uniform_(0.5, 1.5)
            elif "inv_freq" not in name and tensor.is_floating_point():
                tensor.normal_(0, 4.0 if "lm_head" in name else 1.0)
                if tensor.ndim > 1 and not name.endswith("position_bias"):
                    tensor.mul_(tensor.shape[-1] ** -0.5)
    folder = write_checkpoint(
        tmp_path,
        {
            **V4_CONFIG,
            "model_type": "deepseek_v4",
            "qk_rope_head_dim": 16,
            "num_hash_layers": 1,
            "compress_ratios": [V4_RATIOS[name] for name in V4_LAYERS],
            "rope_scaling": YARN,
            "bos_token_id": 0,
            "eos_token_id": 1,
        },
        released_v4(model.state_dict()),
    )
    assert _C.Checkpoint(str(folder)).problems() == []
    ids = np.random.default_rng(2).integers(0, 256, 40 if device.emulated else 200)
    with torch.no_grad():
        want = model(input_ids=torch.from_numpy(ids)[None], use_cache=False).logits[0].numpy()
    engine = Engine(folder, device=device, numerics="exact", context=256, max_rows=32)
    got = engine.session().logits_of([int(i) for i in ids])
    assert want.std() > 1
    assert abs(got - want).max() < 2e-4 * max(1.0, float(want.std()))
