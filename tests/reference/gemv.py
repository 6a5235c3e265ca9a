"""y = x W^T: in float64, and for Q8_0 bit by bit as the kernel has to compute it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

Q8_LANES = 32


def product(x: Array, w: Array) -> tuple[Array, Array]:
    """(y, magnitude) of float64 operands; magnitude is the sum of |x w| over K."""
    return x @ w.T, np.abs(x) @ np.abs(w).T


def tolerance(y: Array, magnitude: Array, output: str) -> Array:
    """How far a right kernel may be: products are exact, sums are fp32 in any order, and Hopper's tensor core cuts
    what an fp32 sum of 16 products cannot hold; then the output is rounded once, to nearest even.
    """
    rounding = {"bf16": 2.0**-8, "fp16": 2.0**-11, "fp32": 2.0**-24}[output]
    return magnitude * 2.0**-19 + np.abs(y) * rounding * 1.001 + 1e-30


def fma(a: Array, b: Array, c: Array) -> Array:
    """a b + c in fp32, rounded once. The product is exact in float64; the sum is rounded to odd there, so that the
    rounding to fp32 is the only one.
    """
    x, y = a.astype(np.float64) * b.astype(np.float64), c.astype(np.float64)
    total = x + y
    virtual = total - x
    error = (x - (total - virtual)) + (y - virtual)
    bits = total.view(np.int64)
    away = (error > 0) == (total > 0)
    inexact = (error != 0) & (bits & 1 == 0)
    odd = np.where(inexact, np.where(away, bits + 1, bits - 1), bits).view(np.float64)
    return np.where(inexact, odd, total).astype(np.float32)


def q8_rows(w: Array, w_scale: Array, x: Array, x_scale: Array) -> Array:
    """fp32 y [m, n] of int8 w [n, blocks, 32], fp16 w_scale, int8 x [m, blocks, 32], fp32 x_scale: lane l adds blocks
    l, l + 32, ... by one fma each, then lanes meet by butterfly, 16 first.
    """
    dot = np.einsum("mbi,nbi->mnb", x.astype(np.int64), w.astype(np.int64)).astype(np.float32)
    scale = x_scale[:, None, :] * w_scale.astype(np.float32)[None]
    sums = np.zeros((*dot.shape[:2], Q8_LANES), np.float32)
    for first in range(0, dot.shape[2], Q8_LANES):
        lanes = slice(0, min(Q8_LANES, dot.shape[2] - first))
        part = slice(first, first + lanes.stop)
        sums[:, :, lanes] = fma(scale[:, :, part], dot[:, :, part], sums[:, :, lanes])
    for distance in (16, 8, 4, 2, 1):
        sums = sums + sums[:, :, np.arange(Q8_LANES) ^ distance]
    return sums[:, :, 0]


def q8_activations(x: Array) -> tuple[Array, Array]:
    """int8 [m, blocks, 32] and fp32 scales [m, blocks] of x [m, k]."""
    m, k = x.shape
    wide = np.zeros((m, -(-k // 32), 32), np.float32)
    wide.reshape(m, -1)[:, :k] = x
    scale = np.abs(wide).max(2) / np.float32(127)
    with np.errstate(divide="ignore"):
        inverse = np.where(scale == 0, np.float32(0), np.float32(1) / scale)
    return np.clip(np.rint(wide * inverse[:, :, None]), -128, 127).astype(np.int8), scale


def silu(v: Array) -> Array:
    return v / (1 + np.exp(-v))
