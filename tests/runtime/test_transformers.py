"""Against transformers, live: a random Qwen3-MoE made there, its weights written as a checkpoint, the same logits."""

from __future__ import annotations

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
