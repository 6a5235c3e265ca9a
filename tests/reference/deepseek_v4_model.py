"""DeepSeek-V4 in float64 numpy, one token at a time, written from the published architecture: the model that the runtime
is compared with. Reads a checkpoint folder by itself; `quantized` adds the released graph's FP8 key-value rows and its
Hadamard and FP4 indexer (not the FP8 activations)."""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

Array = np.ndarray
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
DTYPES: dict[str, Any] = {
    "F32": np.float32,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E8M0": ml_dtypes.float8_e8m0fnu,
    "I8": np.uint8,
    "I32": np.int32,
    "I64": np.int64,
}


def read_checkpoint(folder: Path) -> dict[str, Array]:
    """name -> float64 (ids: int64), scales applied."""
    raw = (folder / "model.safetensors").read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + length])
    stored = {}
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = (8 + length + offset for offset in entry["data_offsets"])
            stored[name] = np.frombuffer(raw[begin:end], DTYPES[entry["dtype"]]).reshape(entry["shape"])
    tensors = {}
    for name, values in stored.items():
        scale = stored.get(name.removesuffix("weight") + "scale") if name.endswith(".weight") else None
        if name.endswith(".scale"):
            continue
        if scale is None:
            tensors[name] = values if values.dtype.kind == "i" else values.astype(np.float64)
            continue
        exact = scale.astype(np.float64)
        if values.dtype == np.uint8:
            codes = np.stack((values & 15, values >> 4), -1).reshape(len(values), -1)
            tensors[name] = E2M1[codes] * exact.repeat(32, 1)
        else:
            blocks = exact.repeat(128, 0).repeat(128, 1)
            tensors[name] = values.astype(np.float64) * blocks[: values.shape[0], : values.shape[1]]
    return tensors


def rms(x: Array, weight: Array | None, eps: float) -> Array:
    y = x / np.sqrt((x * x).mean(-1, keepdims=True) + eps)
    return y if weight is None else y * weight


def sigmoid(z: Array) -> Array:
    return 1 / (1 + np.exp(-z))


def to_bf16(x: Array) -> Array:
    return x.astype(np.float32).astype(ml_dtypes.bfloat16).astype(np.float64)


def round_trip(x: Array, group: int, dtype: Any, largest: float, floor: float) -> Array:
    """Groups of the last axis through a narrow format with a power-of-two scale that clips nothing."""
    y = x.reshape(*x.shape[:-1], -1, group)
    amax = np.maximum(abs(y).max(-1, keepdims=True), floor)
    scale = 2.0 ** np.ceil(np.log2(amax / largest))
    return ((y / scale).astype(np.float32).astype(dtype).astype(np.float64) * scale).reshape(x.shape)


def hadamard(x: Array) -> Array:
    n, y, h = x.shape[-1], x, 1
    while h < n:
        y = y.reshape(*x.shape[:-1], n // (2 * h), 2, h)
        y = np.stack((y[..., 0, :] + y[..., 1, :], y[..., 0, :] - y[..., 1, :]), -2).reshape(x.shape)
        h *= 2
    return y * n**-0.5


class Rope:
    def __init__(self, dims: int, theta: float, yarn: dict[str, Any] | None) -> None:
        self.dims = dims
        f = theta ** (-np.arange(0, dims, 2) / dims)
        if yarn:

            def pair(rotations: float) -> float:
                ratio = yarn["original_max_position_embeddings"] / (rotations * 2 * math.pi)
                return dims * math.log(ratio) / (2 * math.log(theta))

            low = max(math.floor(pair(yarn["beta_fast"])), 0)
            high = min(math.ceil(pair(yarn["beta_slow"])), dims - 1)
            ramp = np.clip((np.arange(dims // 2) - low) / (high - low), 0, 1)
            f = f / yarn["factor"] * ramp + f * (1 - ramp)
        self.f = f

    def __call__(self, x: Array, position: int, inverse: bool = False) -> Array:
        c, s = np.cos(self.f * position), np.sin(self.f * position) * (-1 if inverse else 1)
        y = x.copy()
        a, b = x[..., -self.dims :: 2], x[..., -self.dims + 1 :: 2]
        y[..., -self.dims :: 2], y[..., -self.dims + 1 :: 2] = a * c - b * s, a * s + b * c
        return y


@dataclass
class Frontier:
    """The rows of one compressor and the tokens of its open window."""

    previous: tuple[Array, Array] | None = None
    values: list[Array] = field(default_factory=list)
    gates: list[Array] = field(default_factory=list)
    rows: list[Array] = field(default_factory=list)


class Block:
    """One block and what it remembers of its sequence."""

    def __init__(self, model: Model, at: str, ratio: int) -> None:
        self.model, self.ratio = model, ratio
        self.w = {name.removeprefix(at): v for name, v in model.w.items() if name.startswith(at)}
        c = model.c
        theta = c["compress_rope_theta"] if ratio else c["rope_theta"]
        self.rope = Rope(c["qk_rope_head_dim"], theta, c["rope_scaling"] if ratio else None)
        self.window: dict[int, Array] = {}
        self.main, self.index = Frontier(), Frontier()
        self.picks: list[list[int]] = []
        self.chosen: list[Array] = []  # experts

    def finish_latent(self, row: Array) -> Array:
        if not self.model.quantized:
            return row
        y = to_bf16(row)
        n = y.shape[-1] - self.rope.dims
        y[:n] = round_trip(y[:n], 64, ml_dtypes.float8_e4m3fn, 448, 1e-4)
        return y

    def finish_index(self, row: Array) -> Array:
        if not self.model.quantized:
            return row
        return round_trip(hadamard(row), 32, ml_dtypes.float4_e2m1fn, 6, 6 * 2.0**-126)

    def push(self, frontier: Frontier, at: str, x: Array, position: int) -> None:
        m, w = self.ratio, self.w
        frontier.values.append(w[at + "wkv.weight"] @ x)
        frontier.gates.append(w[at + "wgate.weight"] @ x + w[at + "ape"][position % m])
        if position % m != m - 1:
            return
        values, gates = np.stack(frontier.values), np.stack(frontier.gates)
        frontier.values, frontier.gates = [], []
        if m == 4:
            d = values.shape[1] // 2
            closed, mine = (values[:, :d], gates[:, :d]), (values[:, d:], gates[:, d:])
            if frontier.previous is None:
                values, gates = mine
            else:
                values = np.concatenate((frontier.previous[0], mine[0]))
                gates = np.concatenate((frontier.previous[1], mine[1]))
            frontier.previous = closed
        p = np.exp(gates - gates.max(0))
        row = rms((p / p.sum(0) * values).sum(0), w[at + "norm.weight"], self.model.eps)
        row = self.rope(row, position + 1 - m)
        frontier.rows.append(self.finish_index(row) if "indexer" in at else self.finish_latent(row))

    def attention(self, x: Array, position: int) -> Array:
        c, w, eps = self.model.c, self.w, self.model.eps
        heads, d = c["num_attention_heads"], c["head_dim"]
        low = rms(w["attn.wq_a.weight"] @ x, w["attn.q_norm.weight"], eps)
        q = self.rope(rms((w["attn.wq_b.weight"] @ low).reshape(heads, d), None, eps), position)
        row = self.rope(rms(w["attn.wkv.weight"] @ x, w["attn.kv_norm.weight"], eps), position)
        self.window[position] = self.finish_latent(row)
        rows = [self.window[p] for p in range(max(0, position - c["sliding_window"] + 1), position + 1)]
        if self.ratio:
            self.push(self.main, "attn.compressor.", x, position)
            chosen = list(range(len(self.main.rows)))
            if self.ratio == 4:
                self.push(self.index, "attn.indexer.compressor.", x, position)
                h, n = c["index_n_heads"], c["index_head_dim"]
                iq = self.rope((w["attn.indexer.wq_b.weight"] @ low).reshape(h, n), position)
                weight = w["attn.indexer.weights_proj.weight"] @ x * (h * n) ** -0.5
                if chosen:
                    dots = np.maximum(self.finish_index(iq) @ np.stack(self.index.rows).T, 0)
                    order = np.argsort(-(dots * weight[:, None]).sum(0), kind="stable")
                    chosen = sorted(int(i) for i in order[: c["index_topk"]])
                self.picks.append(chosen)
            rows += [self.main.rows[i] for i in chosen]
        k = np.stack(rows)
        s = q @ k.T * d**-0.5
        sink = w["attn.attn_sink"][:, None]
        top = np.maximum(s.max(1, keepdims=True), sink)
        p = np.exp(s - top)
        o = self.rope(p @ k / (p.sum(1, keepdims=True) + np.exp(sink - top)), position, inverse=True)
        groups = c["o_groups"]
        a = w["attn.wo_a.weight"].reshape(groups, c["o_lora_rank"], -1)
        z = np.einsum("gd,grd->gr", o.reshape(groups, -1), a).reshape(-1)
        return w["attn.wo_b.weight"] @ z

    def expert(self, at: str, x: Array, weight: float) -> Array:
        limit, w = self.model.c["swiglu_limit"], self.w
        gate = np.minimum(w[at + "w1.weight"] @ x, limit)
        up = np.clip(w[at + "w3.weight"] @ x, -limit, limit)
        return w[at + "w2.weight"] @ (gate * sigmoid(gate) * up * weight)

    def experts(self, x: Array, token: int) -> Array:
        c, w = self.model.c, self.w
        z = w["ffn.gate.weight"] @ x
        s = np.sqrt(np.where(z > 20, z, np.log1p(np.exp(np.minimum(z, 20)))))
        if "ffn.gate.tid2eid" in w:
            chosen = w["ffn.gate.tid2eid"][token]
        else:
            chosen = np.argsort(-(s + w["ffn.gate.bias"]), kind="stable")[: c["num_experts_per_tok"]]
        self.chosen.append(chosen)
        weights = s[chosen] / s[chosen].sum() * c["routed_scaling_factor"]
        y = self.expert("ffn.shared_experts.", x, 1)
        for e, weight in zip(chosen, weights, strict=True):
            y = y + self.expert(f"ffn.experts.{e}.", x, weight)
        return y

    def __call__(self, streams: Array, position: int, token: int) -> Array:
        model, w = self.model, self.w
        for site, norm in (("hc_attn", "attn_norm.weight"), ("hc_ffn", "ffn_norm.weight")):
            pre, post, comb = model.mix(streams, w[site + "_fn"], w[site + "_base"], w[site + "_scale"])
            u = rms(pre @ streams, w[norm], model.eps)
            y = self.attention(u, position) if site == "hc_attn" else self.experts(u, token)
            streams = post[:, None] * y[None] + comb.T @ streams
        return streams


class Model:
    def __init__(self, folder: Path, quantized: bool = False) -> None:
        self.c = json.loads((folder / "config.json").read_text())
        self.w = read_checkpoint(folder)
        self.quantized = quantized
        self.eps = self.c["rms_norm_eps"]
        ratios = self.c["compress_ratios"][: self.c["num_hidden_layers"]]
        self.blocks = [Block(self, f"layers.{i}.", ratio) for i, ratio in enumerate(ratios)]
        self.mtp = Block(self, "mtp.0.", 0)
        self.streams: list[Array] = []  # of each token after the last block

    def mix(self, x: Array, fn: Array, base: Array, scale: Array) -> tuple[Array, Array, Array]:
        h, eps = self.c["hc_mult"], self.c["hc_eps"]
        m = fn @ rms(x.reshape(-1), None, self.eps)
        pre = sigmoid(m[:h] * scale[0] + base[:h]) + eps
        post = 2 * sigmoid(m[h : 2 * h] * scale[1] + base[h : 2 * h])
        comb = (m[2 * h :] * scale[2] + base[2 * h :]).reshape(h, h)
        comb = np.exp(comb - comb.max(1, keepdims=True))
        comb = comb / comb.sum(1, keepdims=True) + eps
        comb = comb / (comb.sum(0, keepdims=True) + eps)
        for _ in range(self.c["hc_sinkhorn_iters"] - 1):
            comb = comb / (comb.sum(1, keepdims=True) + eps)
            comb = comb / (comb.sum(0, keepdims=True) + eps)
        return pre, post, comb

    def head(self, streams: Array, at: str = "") -> Array:
        w = self.w
        m = w[at + "hc_head_fn"] @ rms(streams.reshape(-1), None, self.eps)
        pre = sigmoid(m * w[at + "hc_head_scale"] + w[at + "hc_head_base"]) + self.c["hc_eps"]
        return w["head.weight"] @ rms(pre @ streams, w[at + "norm.weight"], self.eps)

    def feed(self, token: int) -> Array:
        """Adds a token; returns the logits that follow it."""
        position = len(self.streams)
        streams = np.repeat(self.w["embed.weight"][token][None], self.c["hc_mult"], 0)
        for block in self.blocks:
            streams = block(streams, position, token)
        self.streams.append(streams)
        return self.head(streams)

    def draft(self, streams: Array, position: int, token: int) -> tuple[Array, Array]:
        """The MTP block at `position`, for the token that follows it: (streams, logits of the token after that)."""
        w = self.w
        e = w["mtp.0.e_proj.weight"] @ rms(self.w["embed.weight"][token], w["mtp.0.enorm.weight"], self.eps)
        h = rms(streams, w["mtp.0.hnorm.weight"], self.eps) @ w["mtp.0.h_proj.weight"].T
        x = self.mtp(e[None] + h, position, token)
        return x, self.head(x, "mtp.0.")
