"""Small random checkpoints, written the way released ones are."""

from __future__ import annotations

import json
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

Array = np.ndarray

STORED = {
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e8m0fnu": "F8_E8M0",
    "int8": "I8",
    "int32": "I32",
    "int64": "I64",
}

QWEN = {
    "model_type": "qwen3_moe",
    "vocab_size": 256,
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 128,
    "norm_topk_prob": True,
    "hidden_act": "silu",
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 512,
    "eos_token_id": 1,
}


def qwen_tensors(config: dict[str, Any], seed: int = 1) -> dict[str, Array]:
    """fp32 arrays whose values bf16 holds exactly, under the released names."""
    rng = np.random.default_rng(seed)
    c, tensors = config, dict[str, Array]()

    def matrix(name: str, n: int, k: int, scale: float = 1.0) -> None:
        values = rng.standard_normal((n, k)) * scale * k**-0.5
        tensors[name + ".weight"] = values.astype(ml_dtypes.bfloat16).astype(np.float32)

    def norm(name: str, n: int) -> None:
        tensors[name + ".weight"] = rng.uniform(0.5, 1.5, n).astype(ml_dtypes.bfloat16).astype(np.float32)

    hidden, width = c["hidden_size"], c["moe_intermediate_size"]
    query, key = c["num_attention_heads"] * c["head_dim"], c["num_key_value_heads"] * c["head_dim"]
    matrix("model.embed_tokens", c["vocab_size"], hidden, hidden**0.5)
    norm("model.norm", hidden)
    if not c.get("tie_word_embeddings"):
        matrix("lm_head", c["vocab_size"], hidden, 4.0)
    for i in range(c["num_hidden_layers"]):
        at = f"model.layers.{i}."
        norm(at + "input_layernorm", hidden)
        norm(at + "post_attention_layernorm", hidden)
        for name, n in (("q", query), ("k", key), ("v", key)):
            matrix(f"{at}self_attn.{name}_proj", n, hidden)
        matrix(at + "self_attn.o_proj", hidden, query)
        norm(at + "self_attn.q_norm", c["head_dim"])
        norm(at + "self_attn.k_norm", c["head_dim"])
        matrix(at + "mlp.gate", c["num_experts"], hidden, 2.0)
        for e in range(c["num_experts"]):
            expert = f"{at}mlp.experts.{e}."
            matrix(expert + "gate_proj", width, hidden)
            matrix(expert + "up_proj", width, hidden)
            matrix(expert + "down_proj", hidden, width)
    return tensors


def to_fp8(tensors: dict[str, Array], scale_dtype: Any) -> tuple[dict[str, Array], dict[str, Array]]:
    """(stored tensors, what they mean): projections as E4M3 with `weight_scale_inv` for 128 x 128 blocks."""
    stored, meant = dict[str, Array](), dict[str, Array]()
    for name, values in tensors.items():
        if not name.endswith("_proj.weight"):
            stored[name] = values.astype(ml_dtypes.bfloat16)
            meant[name] = values
            continue
        n, k = values.shape
        blocks = [[values[i : i + 128, j : j + 128] for j in range(0, k, 128)] for i in range(0, n, 128)]
        scales = np.array([[abs(block).max() / 448 for block in row] for row in blocks]).astype(scale_dtype)
        wide = scales.astype(np.float32).repeat(128, 0).repeat(128, 1)[:n, :k]
        codes = np.clip(values / wide, -448, 448).astype(ml_dtypes.float8_e4m3fn)
        stored[name], stored[name + "_scale_inv"] = codes, scales
        meant[name] = codes.astype(np.float32) * wide
    return stored, meant


def write_safetensors(path: Path, tensors: dict[str, Array]) -> None:
    header, parts, at = dict[str, Any](), list[bytes](), 0
    for name, values in tensors.items():
        raw = np.ascontiguousarray(values).tobytes()
        header[name] = {
            "dtype": STORED[values.dtype.name],
            "shape": list(values.shape),
            "data_offsets": [at, at + len(raw)],
        }
        parts.append(raw)
        at += len(raw)
    text = json.dumps(header).encode()
    path.write_bytes(b"".join([struct.pack("<Q", len(text)), text, *parts]))


def write_checkpoint(folder: Path, config: dict[str, Any], tensors: dict[str, Array]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    write_safetensors(folder / "model.safetensors", tensors)
    return folder


RELEASED_NARROW = re.compile(r"experts\.|attn\.w[a-z_]+\.|indexer\.wq_b\.|[eh]_proj\.")

# The smallest DeepSeek-V4 with everything in it: CSA with an indexer that leaves rows out, HCA, hash routing, MTP.
V4 = {
    "model_type": "deepseek_v4",
    "vocab_size": 64,
    "hidden_size": 32,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "head_dim": 32,
    "qk_rope_head_dim": 16,
    "q_lora_rank": 32,
    "o_groups": 1,
    "o_lora_rank": 32,
    "sliding_window": 16,
    "compress_ratios": [4, 128, 0],
    "index_n_heads": 2,
    "index_head_dim": 32,
    "index_topk": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "num_hash_layers": 1,
    "routed_scaling_factor": 1.5,
    "swiglu_limit": 10.0,
    "rope_theta": 10000,
    "compress_rope_theta": 160000,
    "rope_scaling": {"factor": 16, "original_max_position_embeddings": 64, "beta_fast": 32, "beta_slow": 1},
    "hc_mult": 2,
    "hc_sinkhorn_iters": 4,
    "hc_eps": 1e-6,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 512,
    "num_nextn_predict_layers": 1,
    "bos_token_id": 0,
    "eos_token_id": 1,
}


def as_released(name: str, values: Array) -> dict[str, Array]:
    """Routed experts as MXFP4, other projections as FP8 with power-of-two scales of 128 x 128 blocks, the rest as bf16
    or fp32: any codes, and scales that keep the values' size."""
    if not name.endswith(".weight") or values.ndim != 2 or not RELEASED_NARROW.search(name):
        return {name: values.astype(ml_dtypes.bfloat16) if values.ndim == 2 else values}
    scale_name, (n, k) = name.removesuffix("weight") + "scale", values.shape
    rng, exponent = np.random.default_rng(zlib.crc32(name.encode())), np.round(np.log2(k**-0.5))
    if ".experts." in name:
        codes = rng.integers(-128, 128, (n, k // 2)).astype(np.int8)
        scales = 2.0 ** (exponent - rng.integers(1, 3, (n, k // 32)))
    else:
        codes = values * np.float32(2.0**-exponent * 32)
        scales = np.full((-(-n // 128), -(-k // 128)), 2.0 ** (exponent - 5))
        codes = codes.astype(ml_dtypes.float8_e4m3fn)
    return {name: codes, scale_name: scales.astype(ml_dtypes.float8_e8m0fnu)}


def write_random_v4(folder: Path, seed: int = 1, released: bool = False, **changes: Any) -> Path:
    """A random model of this configuration: every tensor that the checkpoint is said to miss."""
    from deep_gemm import _C

    config = {**V4, **changes}
    rng = np.random.default_rng(seed)
    write_checkpoint(folder, config, {"nothing": np.zeros(1, np.float32)})
    tensors: dict[str, Array] = {}
    for problem in _C.Checkpoint(str(folder)).problems():
        if not problem.startswith("missing: "):
            continue
        _, name, shape_text = problem.split(" ")
        shape = [int(extent) for extent in shape_text.split("x")]
        if name.endswith("tid2eid"):
            chosen = rng.permuted(np.tile(np.arange(config["n_routed_experts"]), (shape[0], 1)), axis=1)
            tensors[name] = chosen[:, : shape[1]].astype(np.int32)
        elif name.endswith("norm.weight"):
            tensors[name] = rng.uniform(0.5, 1.5, shape).astype(np.float32)
        else:
            scale = {"head.weight": 4.0, "embed.weight": 6.0}.get(name, 1.0)
            values = (rng.standard_normal(shape) * scale * shape[-1] ** -0.5).astype(np.float32)
            tensors |= as_released(name, values) if released else {name: values}
    return write_checkpoint(folder, config, tensors)
