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


def hyper_connection(x: Array, fn: Array, base: Array, scale: Array, iterations: int, hc_eps: float,
                     rms_eps: float) -> tuple[Array, Array, Array]:  # fmt: skip
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
