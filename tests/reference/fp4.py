"""MXFP4 weights in float64, from the checkpoint's bytes and from the packed blobs: two independent readings."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

MAGNITUDES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
VALUES = np.concatenate([MAGNITUDES, -MAGNITUDES])
BIAS = {"mx_e4m3": 8, "mx_e5m2": 15}
EXPONENTS = {"mx_e4m3": 15, "mx_e5m2": 29}


def split_codes(packed: Array) -> Array:
    """[..., k / 2] bytes -> [..., k] codes, low nibble first."""
    pairs = packed.view(np.uint8)
    return np.stack([pairs & 0xF, pairs >> 4], axis=-1).reshape(*pairs.shape[:-1], -1)


def join_codes(codes: Array) -> Array:
    """The other way round."""
    return (codes[..., 0::2] | codes[..., 1::2] << 4).astype(np.uint8)


def dequantise(packed: Array, scales: Array) -> Array:
    """The weights that codes [..., n, k / 2] and UE8M0 scales [..., n, k / 32] stand for."""
    exponents = np.repeat(scales.astype(np.int32) - 127, 32, axis=-1)
    return np.ldexp(VALUES[split_codes(packed)], exponents)


def unpack(weights: Any) -> Array:
    """The weights [experts, n, k] that an Fp4Weights stands for, read as its layout is written down."""
    experts, n, k, form = weights.experts, weights.n, weights.k, weights.form
    blocks, num_k = -(-n // 64), -(-k // 256) * 2
    offset_bytes = 1 if form == "mx_e4m3" else 2
    blobs = np.asarray(weights.blobs).view(np.uint8).reshape(-1, num_k, 4096 + 128 * offset_bytes)
    row_scales = np.asarray(weights.row_scales).astype(np.float64).reshape(-1, 64)
    runs = [(i, 1) for i in range(experts * blocks)]
    if weights.runs is not None:
        runs = [(int(r) >> 8 & 0xFFFFFF, int(r) & 0xFF) for r in np.asarray(weights.runs).view(np.uint32)]
    # [run, k block, odd row, warp, g, q, step], and one offset for each (.., odd row, warp, g, q)
    words = blobs[..., :4096].copy().view(np.uint32).reshape(len(blobs), num_k, 2, 4, 8, 4, 4)
    raw = blobs[..., 4096:]
    pairs = (
        np.stack([raw & 0xF, raw >> 4], -1) if offset_bytes == 1 else raw.reshape(len(blobs), num_k, 128, 2)
    )
    offsets = np.moveaxis(pairs.reshape(len(blobs), num_k, 4, 8, 4, 2), -1, 2).astype(np.int32)
    magnitudes, signs = [], []
    for i in range(8):
        half, e = divmod(i, 4)
        magnitudes.append(words >> (16 * half + 4 * e) & 7)
        signs.append(words >> (8 * e + (3 if half else 7)) & 1)
    value = MAGNITUDES[np.stack(magnitudes, -1)] * (1 - 2.0 * np.stack(signs, -1))
    scale = np.where(offsets == EXPONENTS[form], 0.0, np.exp2(offsets - float(BIAS[form])))
    value = value * scale[..., None, None]
    # row = 16 warp + 2 g + odd, k = 128 block + 32 q + 8 step + i
    value = (
        value.transpose(0, 3, 4, 2, 1, 5, 6, 7).reshape(len(blobs), 64, num_k * 128) * row_scales[:, :, None]
    )
    tiles = np.stack([value[first : first + count].sum(0) for first, count in runs])
    return tiles.reshape(experts, blocks * 64, num_k * 128)[:, :n, :k]
