"""The pieces of DeepSeek-V4 and Qwen3-MoE in float64, one token at a time where order matters; written for reading.

Arrays are what the operations get, already rounded to their formats; nothing here rounds unless it says so.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def sigmoid(z: Array) -> Array:
    return 1 / (1 + np.exp(-z))


def softplus(z: Array) -> Array:
    return np.where(z > 20, z, np.log1p(np.exp(np.minimum(z, 20))))


def rms_norm(x: Array, weight: Array | None, eps: float) -> Array:
    x = x.astype(np.float64)
    y = x / np.sqrt((x * x).mean(-1, keepdims=True) + eps)
    return y if weight is None else y * weight.astype(np.float64)


def weight_matrix(w: Array, scale: Array | None) -> Array:
    """[..., n, k] in float64: plain, E4M3 with scales per 128 x 128, or bytes of E2M1 pairs with scales per 32."""
    if scale is None:
        return w.astype(np.float64)
    factors = scale.astype(np.float64)
    if w.dtype.name == "int8":
        codes = w.view(np.uint8)
        values = np.stack([E2M1[codes & 15], E2M1[codes >> 4]], -1).reshape(*w.shape[:-1], -1)
        return values * factors.repeat(32, -1)
    n, k = w.shape[-2:]
    return w.astype(np.float64) * factors.repeat(128, -1)[..., :k].repeat(128, -2)[..., :n, :]


def activations(x: Array, scale: Array | None) -> Array:
    return x.astype(np.float64) * (1 if scale is None else scale.astype(np.float64).repeat(128, -1))


def swiglu(gate: Array, up: Array, limit: float) -> Array:
    if limit > 0:
        gate, up = np.minimum(gate, limit), np.clip(up, -limit, limit)
    return gate * sigmoid(gate) * up


def hyper_connection(
    x: Array, fn: Array, base: Array, scale: Array, iterations: int, hc_eps: float, rms_eps: float
) -> tuple[Array, Array, Array]:
    """(pre, post, comb) of one token's streams x [h, d]."""
    h = x.shape[0]
    mix = fn.astype(np.float64) @ rms_norm(x.reshape(-1), None, rms_eps)
    pre = sigmoid(mix[:h] * scale[0] + base[:h]) + hc_eps
    post = 2 * sigmoid(mix[h : 2 * h] * scale[1] + base[h : 2 * h])
    c = mix[2 * h :].reshape(h, h) * scale[2] + base[2 * h :].reshape(h, h)
    c = np.exp(c - c.max(1, keepdims=True))
    c = c / c.sum(1, keepdims=True) + hc_eps
    c = c / (c.sum(0, keepdims=True) + hc_eps)
    for _ in range(iterations - 1):
        c = c / (c.sum(1, keepdims=True) + hc_eps)
        c = c / (c.sum(0, keepdims=True) + hc_eps)
    return pre, post, c


def frequencies(dims: int, theta: float, yarn: tuple[float, float, float, float] | None = None) -> Array:
    """Radians per position of each pair; yarn is (factor, original context, beta fast, beta slow)."""
    f = theta ** (-np.arange(0, dims, 2) / dims)
    if yarn is None:
        return f
    factor, context, fast, slow = yarn

    def channel(turns: float) -> float:
        return dims * np.log(context / (turns * 2 * np.pi)) / (2 * np.log(theta))

    low, high = max(np.floor(channel(fast)), 0), min(np.ceil(channel(slow)), dims - 1)
    ramp = np.clip((np.arange(dims // 2) - low) / (high - low), 0, 1)
    return f / factor * ramp + f * (1 - ramp)


def rotate(x: Array, position: int, f: Array, inverse: bool = False, halves: bool = False) -> Array:
    """The last 2 len(f) channels, turned by position * f."""
    y, dims = x.astype(np.float64), 2 * len(f)
    cos, sin = np.cos(position * f), np.sin(position * f) * (-1 if inverse else 1)
    tail = y[..., y.shape[-1] - dims :]
    first, second = (
        (np.s_[..., : dims // 2], np.s_[..., dims // 2 :]) if halves else (np.s_[..., ::2], np.s_[..., 1::2])
    )
    a, b = tail[first].copy(), tail[second].copy()
    tail[first], tail[second] = a * cos - b * sin, a * sin + b * cos
    return y


def to_bf16(x: Array) -> Array:
    """Nearest bf16 of fp32 values, in float64."""
    bits = np.asarray(x, np.float32).view(np.uint32).astype(np.uint64)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16) << 16
    return rounded.astype(np.uint32).view(np.float32).astype(np.float64)


def to_grid(x: Array, mantissa: int, lowest: int, largest: float) -> Array:
    """Nearest value (ties to even) of a format with `mantissa` bits and exponents from `lowest` on; saturates."""
    magnitude = np.minimum(np.abs(x), largest)
    step = 2.0 ** (np.maximum(np.floor(np.log2(np.maximum(magnitude, 1e-300))), lowest) - mantissa)
    return np.sign(x) * np.minimum(np.round(magnitude / step) * step, largest)


def power_of_two_scales(x: Array, group: int, largest: float, floor: float) -> Array:
    amax = np.maximum(np.abs(x.reshape(*x.shape[:-1], -1, group)).max(-1), floor).astype(np.float32)
    return 2.0 ** np.ceil(np.log2((amax / np.float32(largest)).astype(np.float64)))


def fp8_round_trip(x: Array, dims: int) -> Array:
    """All but the last `dims` channels through E4M3 with one scale for 64, everything through bf16."""
    y = to_bf16(x)
    n = y.shape[-1] - dims
    scales = power_of_two_scales(y[..., :n], 64, 448, 1e-4).repeat(64, -1)
    y[..., :n] = to_grid(y[..., :n] / scales, 3, -6, 448) * scales
    return y


def hadamard(x: Array) -> Array:
    n = x.shape[-1]
    index = np.arange(n)
    parity = np.array([[bin(i & j).count("1") & 1 for j in index] for i in index])
    return x.astype(np.float64) @ np.where(parity, -1.0, 1.0) * n**-0.5


def fp4_round_trip(x: Array) -> Array:
    """Through bf16, the Hadamard transform, bf16, and E2M1 with one scale for 32."""
    y = to_bf16(hadamard(to_bf16(x)))
    scales = power_of_two_scales(y, 32, 6, 6 * 2.0**-126).repeat(32, -1)
    return to_grid(y / scales, 1, 0, 6) * scales


def read_fp8_rows(pages: Array, page_rows: int) -> Array:
    """[s, pages, bytes] of int8 -> [s, rows, 512] in float64."""
    import ml_dtypes

    raw = pages.view(np.uint8)
    s, count, _ = raw.shape
    data = np.ascontiguousarray(raw[..., : page_rows * 576]).reshape(s, count * page_rows, 576)
    scales = np.ascontiguousarray(raw[..., page_rows * 576 : page_rows * 584]).reshape(
        s, count * page_rows, 8
    )
    plain = np.ascontiguousarray(data[..., :448]).view(ml_dtypes.float8_e4m3fn).astype(np.float64)
    rotated = np.ascontiguousarray(data[..., 448:]).view(ml_dtypes.bfloat16).astype(np.float64)
    return np.concatenate(
        [plain * (2.0 ** (scales[..., :7].astype(np.float64) - 127)).repeat(64, -1), rotated], -1
    )


def read_fp4_rows(pages: Array, page_rows: int) -> Array:
    """[s, pages, bytes] of int8 -> [s, rows, 128] in float64."""
    raw = pages.view(np.uint8)
    s, count, _ = raw.shape
    codes = np.ascontiguousarray(raw[..., : page_rows * 64]).reshape(s, count * page_rows, 64)
    scales = np.ascontiguousarray(raw[..., page_rows * 64 : page_rows * 68]).reshape(s, count * page_rows, 4)
    table = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])
    values = table[np.stack([codes & 15, codes >> 4], -1)].reshape(s, count * page_rows, 128)
    wide = np.where(scales == 255, np.nan, 2.0 ** (scales.astype(np.float64) - 127))
    return values * wide.repeat(32, -1)


def route(
    logits: Array,
    bias: Array | None,
    k: int,
    softmax: bool,
    normalize: bool,
    scale: float,
    fixed: Array | None = None,
) -> tuple[Array, Array]:
    """(experts, weights) of one token."""
    z = logits.astype(np.float64)
    if softmax:
        s = np.exp(z - z.max())
        s /= s.sum()
    else:
        s = np.sqrt(softplus(z))
    experts = np.argsort(-(s if bias is None else s + bias), kind="stable")[:k] if fixed is None else fixed
    chosen = s[experts]
    return experts, chosen / (chosen.sum() if normalize else 1) * scale


def softmax_pool(values: Array, gates: Array) -> Array:
    """Candidates [n, dim] weighted by a softmax over n for each channel."""
    w = np.exp(gates - gates.max(0))
    return (w / w.sum(0) * values).sum(0)


def compressed_rows(kv: Array, gate: Array, ape: Array, ratio: int, overlap: bool) -> list[Array]:
    """Pooled rows, before their norm, of tokens 0, 1, ... of one sequence; windows that are not full give none."""
    kv, gate = kv.astype(np.float64), gate.astype(np.float64)
    gate = gate + np.stack([ape[p % ratio] for p in range(len(gate))]).astype(np.float64)
    rows = []
    dim = kv.shape[1] // 2 if overlap else kv.shape[1]
    for w in range(len(kv) // ratio):
        own = slice(w * ratio, (w + 1) * ratio)
        k, g = (kv[own, dim:], gate[own, dim:]) if overlap else (kv[own], gate[own])
        if overlap and w > 0:
            before = slice((w - 1) * ratio, w * ratio)
            k, g = np.concatenate([kv[before, :dim], k]), np.concatenate([gate[before, :dim], g])
        rows.append(softmax_pool(k, g))
    return rows


def attention(q: Array, keys: Array, values: Array, scale: float, sinks: Array | None) -> Array:
    """q [heads, d] over rows [n, d]; without rows, zeros."""
    q, keys, values = (a.astype(np.float64) for a in (q, keys, values))
    if len(keys) == 0:
        return np.zeros_like(q)
    s = q @ keys.T * scale
    m = s.max(1, keepdims=True)
    if sinks is not None:
        m = np.maximum(m, sinks.astype(np.float64)[:, None])
    p = np.exp(s - m)
    extra = 0 if sinks is None else np.exp(sinks.astype(np.float64)[:, None] - m)
    return p @ values / (p.sum(1, keepdims=True) + extra)


def index_scores(query: Array, weights: Array, rows: Array, scale: float) -> Array:
    q, w, k = (a.astype(np.float64) for a in (query, weights, rows))
    return scale * (w[:, None] * np.maximum(q @ k.T, 0)).sum(0)


def top_k(scores: Array, k: int) -> Array:
    """Ascending indices of the k largest, ties to the lower index, NaN last."""
    keys = np.where(np.isnan(scores), -np.inf, scores)
    order = np.lexsort((np.arange(len(scores)), np.isnan(scores), -keys))
    return np.sort(order[:k])
