"""Models from GGUF: names, metadata, stacked experts and block formats, against the same model from safetensors."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from golden import tiny_v4
from reference import deepseek_v4_model, qwen3_moe
from runtime.checkpoints import QWEN, qwen_tensors

from deep_gemm import _C, Engine
from deep_gemm.models import model_path

Array = np.ndarray
PROMPT = [5, 17, 200, 3, 99, 42]
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def metadata_value(value: Any) -> bytes:
    """type and value: text, bool, integers as u32, floats as fp32, lists of integers as i32, of text as strings."""
    if isinstance(value, str):
        return struct.pack("<I", 8) + text(value)
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value[0], str):
        return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(text(v) for v in value)
    kind, code = (6, "f") if isinstance(value[0], float) else (5, "i")
    return struct.pack(f"<IIQ{len(value)}{code}", 9, kind, len(value), *value)


def q8_0(values: Array) -> tuple[bytes, Array]:
    """(blocks, what they mean)"""
    blocks = values.reshape(-1, 32).astype(np.float32)
    scale = (abs(blocks).max(1, keepdims=True) / 127).astype(np.float16)
    wide = np.maximum(scale.astype(np.float32), 1e-12)
    codes = np.clip(np.round(blocks / wide), -127, 127).astype(np.int8)
    raw = np.concatenate([scale.view(np.uint8).reshape(-1, 2), codes.view(np.uint8)], 1)
    return raw.tobytes(), (codes * scale.astype(np.float32)).reshape(values.shape)


def mxfp4(values: Array) -> tuple[bytes, Array]:
    blocks = values.reshape(-1, 32).astype(np.float64)
    exponent = np.ceil(np.log2(np.maximum(abs(blocks).max(1, keepdims=True), 2.0**-100) / 6))
    scaled = blocks / 2.0**exponent
    codes = abs(abs(scaled)[..., None] - E2M1).argmin(-1).astype(np.uint8)
    signs = (scaled < 0).astype(np.uint8) * 8
    packed = (codes | signs)[:, :16] | (codes | signs)[:, 16:] << 4
    raw = np.concatenate([(exponent + 127).astype(np.uint8), packed], 1)
    meant = E2M1[codes] * np.where(signs, -1, 1) * 2.0**exponent
    return raw.tobytes(), meant.reshape(values.shape).astype(np.float32)


# GGUF's type number, and how values are stored in it.
TYPES: dict[str, tuple[int, Any]] = {
    "F32": (0, lambda v: (v.astype(np.float32).tobytes(), v)),
    "F16": (1, lambda v: (v.astype(np.float16).tobytes(), v.astype(np.float16).astype(np.float32))),
    "Q8_0": (8, q8_0),
    "I32": (26, lambda v: (v.astype(np.int32).tobytes(), v)),
    "BF16": (30, lambda v: (v.astype(ml_dtypes.bfloat16).tobytes(), v.astype(ml_dtypes.bfloat16))),
    "MXFP4": (39, mxfp4),
}


class Writer:
    """A GGUF file in the making; `meant` holds the values that a reader must see."""

    def __init__(self, **metadata: Any) -> None:
        self.metadata = metadata
        self.tensors: list[tuple[str, Array, int, bytes]] = []

    def add(self, name: str, values: Array, kind: str) -> Array:
        number, store = TYPES[kind]
        raw, meant = store(values)
        self.tensors.append((name, values, number, raw))
        return np.asarray(meant)

    def write(self, path: Path) -> Path:
        header, data = b"GGUF" + struct.pack("<IQQ", 3, len(self.tensors), len(self.metadata)), b""
        for key, value in self.metadata.items():
            header += text(key) + metadata_value(value)
        for name, values, number, raw in self.tensors:
            dims = values.shape[::-1]
            header += text(name) + struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
            header += struct.pack("<IQ", number, len(data))
            data += raw + bytes(-len(raw) % 32)
        path.write_bytes(header + bytes(-len(header) % 32) + data)
        return path


QWEN_NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate": "ffn_gate_inp",
}


def qwen_metadata(**changes: Any) -> dict[str, Any]:
    values = {
        "general.architecture": "qwen3moe",
        "tokenizer.ggml.tokens": ["a", "b c"],
        "tokenizer.ggml.eos_token_id": QWEN["eos_token_id"],
        "qwen3moe.embedding_length": QWEN["hidden_size"],
        "qwen3moe.block_count": QWEN["num_hidden_layers"],
        "qwen3moe.context_length": QWEN["max_position_embeddings"],
        "qwen3moe.attention.head_count": QWEN["num_attention_heads"],
        "qwen3moe.attention.head_count_kv": QWEN["num_key_value_heads"],
        "qwen3moe.attention.key_length": QWEN["head_dim"],
        "qwen3moe.attention.layer_norm_rms_epsilon": QWEN["rms_norm_eps"],
        "qwen3moe.rope.freq_base": QWEN["rope_theta"],
        "qwen3moe.expert_count": QWEN["num_experts"],
        "qwen3moe.expert_used_count": QWEN["num_experts_per_tok"],
        "qwen3moe.expert_feed_forward_length": QWEN["moe_intermediate_size"],
    }
    return {key: value for key, value in {**values, **changes}.items() if value is not None}


def qwen_file(path: Path, matrices: str, experts: str, **changes: Any) -> dict[str, Array]:
    """Writes the random model; returns the meaning of each tensor under its released name."""
    tensors = qwen_tensors(QWEN)
    meant = dict(tensors)
    file = Writer(**qwen_metadata(**changes))

    def add(name: str, ours: str, kind: str) -> None:
        meant[ours] = file.add(name, tensors[ours], kind)

    add("token_embd.weight", "model.embed_tokens.weight", matrices)
    add("output_norm.weight", "model.norm.weight", "F32")
    add("output.weight", "lm_head.weight", matrices)
    for i in range(QWEN["num_hidden_layers"]):
        for ours, name in QWEN_NAMES.items():
            kind = "F32" if ours.endswith("norm") or ours == "mlp.gate" else matrices
            add(f"blk.{i}.{name}.weight", f"model.layers.{i}.{ours}.weight", kind)
        for part in ("gate", "up", "down"):
            names = [
                f"model.layers.{i}.mlp.experts.{e}.{part}_proj.weight" for e in range(QWEN["num_experts"])
            ]
            stack = file.add(
                f"blk.{i}.ffn_{part}_exps.weight", np.stack([tensors[n] for n in names]), experts
            )
            meant.update(zip(names, stack, strict=True))
    file.write(path)
    return meant


@pytest.mark.parametrize(
    ("matrices", "experts"), [("F32", "MXFP4"), ("F16", "Q8_0"), ("BF16", "BF16"), ("Q8_0", "Q8_0")]
)
def test_qwen3_moe(device: _C.Device, tmp_path: Path, matrices: str, experts: str) -> None:
    meant = qwen_file(tmp_path / "m.gguf", matrices, experts)
    engine = Engine(tmp_path / "m.gguf", device=device, numerics="exact", context=64, max_rows=32)
    assert engine.architecture == "Qwen3-MoE" and engine.vocab == 256 and engine.eos == 1
    model = qwen3_moe.Model(QWEN, meant)
    want = np.stack([model.feed(token) for token in PROMPT])
    assert abs(engine.session().logits_of(PROMPT) - want).max() < 2e-4


def test_released_numerics_round_to_bf16(device: _C.Device, tmp_path: Path) -> None:
    """Q8_0 and F16 take two bytes a weight, and the logits are near those of the values they stand for."""
    meant = qwen_file(tmp_path / "m.gguf", "F16", "Q8_0")
    exact, released = (_C.Checkpoint(str(tmp_path / "m.gguf")).device_bytes(n) for n in ("exact", "released"))
    assert released < 0.51 * exact
    engine = Engine(tmp_path / "m.gguf", device=device, context=64, max_rows=32)
    assert engine.weight_bytes == released
    model = qwen3_moe.Model(QWEN, meant)
    want = np.stack([model.feed(token) for token in PROMPT])
    got = engine.session().logits_of(PROMPT)
    assert 1e-4 < np.sqrt(((got - want) ** 2).mean()) / want.std() < 0.05


DEEPSEEK_KEYS = {
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "attention.head_count": "num_attention_heads",
    "attention.key_length": "head_dim",
    "rope.dimension_count": "qk_rope_head_dim",
    "attention.q_lora_rank": "q_lora_rank",
    "attention.output_group_count": "o_groups",
    "attention.output_lora_rank": "o_lora_rank",
    "attention.sliding_window": "sliding_window",
    "attention.compress_ratios": "compress_ratios",
    "attention.indexer.head_count": "index_n_heads",
    "attention.indexer.key_length": "index_head_dim",
    "attention.indexer.top_k": "index_topk",
    "expert_count": "n_routed_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_count": "n_shared_experts",
    "hash_layer_count": "num_hash_layers",
    "hyper_connection.count": "hc_mult",
    "hyper_connection.sinkhorn_iterations": "hc_sinkhorn_iters",
}
DEEPSEEK_REALS = {
    "attention.compress_rope_freq_base": "compress_rope_theta",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
    "expert_weights_scale": "routed_scaling_factor",
    "hyper_connection.epsilon": "hc_eps",
}
DEEPSEEK_NAMES = {
    "embed.weight": "token_embd.weight",
    "head.weight": "output.weight",
    "norm.weight": "output_norm.weight",
    "hc_head_fn": "output_hc_fn.weight",
    "hc_head_base": "output_hc_base.weight",
    "hc_head_scale": "output_hc_scale.weight",
    **{
        f"hc_{site}_{part}": f"hc_{site}_{part}.weight"
        for site in ("attn", "ffn")
        for part in ("fn", "base", "scale")
    },
    "attn_norm.weight": "attn_norm.weight",
    "ffn_norm.weight": "ffn_norm.weight",
    "attn.wq_a.weight": "attn_q_a.weight",
    "attn.q_norm.weight": "attn_q_a_norm.weight",
    "attn.wq_b.weight": "attn_q_b.weight",
    "attn.wkv.weight": "attn_kv.weight",
    "attn.kv_norm.weight": "attn_kv_a_norm.weight",
    "attn.attn_sink": "attn_sinks.weight",
    "attn.wo_a.weight": "attn_output_a.weight",
    "attn.wo_b.weight": "attn_output_b.weight",
    "attn.compressor.wkv.weight": "attn_compressor_kv.weight",
    "attn.compressor.wgate.weight": "attn_compressor_gate.weight",
    "attn.compressor.ape": "attn_compressor_ape.weight",
    "attn.compressor.norm.weight": "attn_compressor_norm.weight",
    "attn.indexer.wq_b.weight": "indexer.attn_q_b.weight",
    "attn.indexer.weights_proj.weight": "indexer.proj.weight",
    "attn.indexer.compressor.wkv.weight": "indexer_compressor_kv.weight",
    "attn.indexer.compressor.wgate.weight": "indexer_compressor_gate.weight",
    "attn.indexer.compressor.ape": "indexer_compressor_ape.weight",
    "attn.indexer.compressor.norm.weight": "indexer_compressor_norm.weight",
    "ffn.gate.weight": "ffn_gate_inp.weight",
    "ffn.gate.bias": "exp_probs_b.bias",
    "ffn.gate.tid2eid": "ffn_gate_tid2eid.weight",
    "ffn.shared_experts.w1.weight": "ffn_gate_shexp.weight",
    "ffn.shared_experts.w3.weight": "ffn_up_shexp.weight",
    "ffn.shared_experts.w2.weight": "ffn_down_shexp.weight",
}
EXPERTS = {"w1": "ffn_gate_exps.weight", "w3": "ffn_up_exps.weight", "w2": "ffn_down_exps.weight"}


def deepseek_file(config: dict[str, Any]) -> Writer:
    """Without tensors yet."""
    yarn = config["rope_scaling"]
    return Writer(
        **{
            "general.architecture": "deepseek4",
            "tokenizer.ggml.bos_token_id": config["bos_token_id"],
            "tokenizer.ggml.eos_token_id": config["eos_token_id"],
            **{f"deepseek4.{key}": config[ours] for key, ours in DEEPSEEK_KEYS.items()},
            **{f"deepseek4.{key}": float(config[ours]) for key, ours in DEEPSEEK_REALS.items()},
            "deepseek4.swiglu_clamp_exp": [float(config["swiglu_limit"])] * config["num_hidden_layers"],
            "deepseek4.rope.scaling.factor": float(yarn["factor"]),
            "deepseek4.rope.scaling.original_context_length": yarn["original_max_position_embeddings"],
            "deepseek4.rope.scaling.yarn_beta_fast": float(yarn["beta_fast"]),
            "deepseek4.rope.scaling.yarn_beta_slow": float(yarn["beta_slow"]),
        }
    )


def test_deepseek_v4(device: _C.Device, tmp_path: Path) -> None:
    """The shipped model, its experts as MXFP4 blocks and the rest as F32: the golden logits."""
    folder = model_path("tiny_v4")
    config = json.loads((folder / "config.json").read_text())
    tensors = deepseek_v4_model.read_checkpoint(folder)
    file = deepseek_file(config)
    for name, values in tensors.items():
        if name.startswith("mtp."):
            continue
        layer, rest = name.split(".", 2)[1:] if name.startswith("layers.") else ("", name)
        if rest.startswith("ffn.experts."):
            _, _, e, which, _ = rest.split(".")
            if e == "0":
                names = [
                    name.replace(".experts.0.", f".experts.{i}.") for i in range(config["n_routed_experts"])
                ]
                file.add(f"blk.{layer}.{EXPERTS[which]}", np.stack([tensors[n] for n in names]), "MXFP4")
            continue
        kind = "I32" if rest.endswith("tid2eid") else "F32"
        file.add((f"blk.{layer}." if layer else "") + DEEPSEEK_NAMES[rest], values, kind)
    engine = Engine(file.write(tmp_path / "m.gguf"), device=device, numerics="exact", context=64, max_rows=32)
    assert engine.architecture == "DeepSeek-V4" and not engine.drafts
    ids = tiny_v4.ids("p0")[:14]
    assert abs(engine.session().logits_of(ids) - tiny_v4.logits("p0")[:14]).max() < 2e-4
    with pytest.raises(ValueError, match="this DeepSeek-V4 model has no MTP block"):
        engine.session(window=3)


def test_refuses_a_model_of_no_layers(tmp_path: Path) -> None:
    """By that number, not by the list of layers that was cut to it."""
    config = json.loads((model_path("tiny_v4") / "config.json").read_text())
    file = deepseek_file({**config, "num_hidden_layers": 0})
    file.metadata["deepseek4.swiglu_clamp_exp"] = [10.0]
    file.add("token_embd.weight", np.zeros((1024, 256)), "F32")
    with pytest.raises(ValueError, match="num_hidden_layers: got 0, expected 1 to 1024"):
        _C.Checkpoint(str(file.write(tmp_path / "m.gguf"))).problems()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"general.architecture": "llama"}, "got 'llama', expected 'deepseek_v4' or 'qwen3_moe'"),
        (
            {"general.architecture": "llama"},
            "(general.architecture of a GGUF file: 'deepseek4' or 'qwen3moe')",
        ),
        ({"general.architecture": None}, "no config.json beside the checkpoint"),
        (
            {"qwen3moe.block_count": None},
            "m.gguf: no metadata 'qwen3moe.block_count'; expected a qwen3moe model",
        ),
        ({"qwen3moe.block_count": 1}, "extra: blk"),
        ({"qwen3moe.block_count": 1}, "python -m deep_gemm inspect lists all of it"),
        ({"qwen3moe.block_count": 3}, "missing: model.layers.2.input_layernorm.weight"),
        ({"qwen3moe.embedding_length": "128"}, "hidden_size: got a string"),
        ({"qwen3moe.rope.freq_base": float("nan")}, "rope_theta is missing"),
        ({"general.alignment": 3}, "alignment 3, expected a power of two"),
    ],
)
def test_refuses(emulator: _C.Device, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    qwen_file(tmp_path / "m.gguf", "F32", "F32", **changes)
    with pytest.raises((ValueError, _C.Error)) as raised:
        Engine(tmp_path / "m.gguf", device=emulator)
    assert message.replace("extra: blk", "extra: model.layers.1.") in str(raised.value)


def test_refuses_a_stack_that_is_none(emulator: _C.Device, tmp_path: Path) -> None:
    file = Writer(**qwen_metadata())
    file.add("blk.0.ffn_up_exps.weight", np.zeros((32, 32)), "F32")
    with pytest.raises(_C.Error, match="has shape 32x32, expected a stack of at most 1024 experts' matrices"):
        Engine(file.write(tmp_path / "m.gguf"), device=emulator)


@pytest.mark.parametrize(
    ("dims", "message"),
    [
        ([0, 0, 1 << 20], "an extent of 0, expected at least 1"),
        ([32, 0, 8], "an extent of 0, expected at least 1"),
        ([1, 1, 1025], "has shape 1025x1x1, expected a stack of at most 1024 experts' matrices"),
    ],
)
def test_refuses_a_stack_of_any_number(tmp_path: Path, dims: list[int], message: str) -> None:
    """Each matrix of a stack becomes a tensor with a name: a number that the bytes do not back would take all memory."""
    file = Writer(**qwen_metadata())
    file.add("blk.0.ffn_up_exps.weight", np.zeros(1025), "F32")
    path = file.write(tmp_path / "m.gguf")
    content = path.read_bytes()
    old = struct.pack("<IQ", 1, 1025)
    at = content.index(old)
    header = content[:at] + struct.pack("<I3Q", 3, *dims) + content[at + len(old) : at + len(old) + 12]
    path.write_bytes(header + bytes(-len(header) % 32) + bytes(4 * 1025))
    with pytest.raises(_C.Error) as raised:
        _C.Checkpoint(str(path))
    assert message in str(raised.value)
