"""FP4 weights in float64, from the checkpoint's bytes and from the packed blobs: two independent readings."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
E4M3 = ml_dtypes.float8_e4m3fn

MAGNITUDES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
VALUES = np.concatenate([MAGNITUDES, -MAGNITUDES])
BIAS = {"mx_e4m3": 8, "mx_e5m2": 15}
EXPONENTS = {"mx_e4m3": 15, "mx_e5m2": 29}
NV_LOWEST = 0x20  # code of e4m3 that a stored 0 stands for
SCALE_BYTES = {"mx_e4m3": 1, "mx_e5m2": 2, "nv_single": 3, "nv_exact": 3}  # of a thread


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


def dequantise_nvfp4(packed: Array, scales: Array, shared: Any) -> Array:
    """The weights that codes [..., n, k / 2], E4M3 scale bytes [..., n, k / 16] and global scales stand for.

    `shared`: a number, or one for each matrix or row.
    """
    shared = np.asarray(shared, np.float64)
    scale = np.repeat(scales.view(E4M3).astype(np.float64), 16, axis=-1)
    return (
        VALUES[split_codes(packed)]
        * scale
        * shared.reshape(*shared.shape, *(1,) * (scale.ndim - shared.ndim))
    )


def to_four_bits(x: Array) -> Array:
    """Rounded to four significant bits, to nearest even: e4m3 whose exponent has no end."""
    mantissa, exponent = np.frexp(x)
    return np.ldexp(np.rint(np.ldexp(mantissa, 4)), exponent - 4)


def single_term(packed: Array, scales: Array, shared: Any) -> Array:
    """What form nv_single multiplies in the place of the weights: two thirds rounded, times 1.5."""
    units = dequantise_nvfp4(packed, scales, 1.0)
    shared = np.asarray(shared, np.float64)
    return 1.5 * to_four_bits(units / 1.5) * shared.reshape(*shared.shape, *(1,) * (units.ndim - shared.ndim))


def nvfp4_of(form: str, packed: Array, scales: Array, shared: Any) -> Array:
    """The weights that a form multiplies."""
    return (single_term if form == "nv_single" else dequantise_nvfp4)(packed, scales, shared)


def accumulation_bound(left: Array, right: Array, terms: int, promoted: bool = True) -> Array:
    """How far sums of Hopper's tensor cores may be from left @ right.T (rows and weights [.., k] in float64).

    The elements of one instruction (spec/fp4_weights.h: 8 of each 32) and the sum so far are cut to 13 bits below the
    largest, and so is their sum: at most 34 times 2^-13 of it. Sums of 128 are promoted to fp32, unless
    not `promoted`: then the sum so far is that of all of K. `terms` of a weight take as many instructions. No tighter bound holds whatever the spread of the scales.
    """
    blocks = -(-left.shape[1] // 128)
    tiles = []
    for x in (left, right):
        full = np.zeros((len(x), blocks * 128))
        full[:, : x.shape[1]] = x
        tiles.append(
            full.reshape(len(x), blocks, 4, 4, 8).transpose(0, 1, 3, 2, 4).reshape(len(x), blocks, 4, 32)
        )
    bound = np.zeros((len(left), len(right)))
    partial = np.zeros_like(bound)
    for block in range(blocks):
        if promoted:
            partial = np.zeros_like(bound)
        for step in range(4):
            products = tiles[0][:, None, block, step] * tiles[1][None, :, block, step]
            before, partial = partial, partial + products.sum(-1)
            largest = np.maximum(np.abs(products).max(-1), np.maximum(np.abs(before), np.abs(partial)))
            if not promoted:
                largest = largest + bound  # what is cut is off by as much itself
            bound = bound + terms * 34 * 2.0**-13 * largest
    return bound


def two_terms(x: Array) -> tuple[Array, Array, Array]:
    """(high, low, scale [rows, 1]) of bf16 rows: x is scale * (high + low / 16), but for what is lost (spec/two_terms.h)."""
    x = x.astype(np.float64)
    largest = np.abs(x).max(axis=-1, keepdims=True)
    exponent = np.ceil(np.log2(np.maximum(largest, 2.0**-140) / 448.0))
    scale = np.exp2(np.maximum(exponent, -126))
    high = (x / scale).astype(np.float32).astype(E4M3).astype(np.float64)
    low = ((x / scale - high) * 16).astype(np.float32).astype(E4M3).astype(np.float64)
    return high, low, scale


def two_term_bound(left: Array, right: Array) -> Array:
    """How far the product of both terms may be from that of bf16 rows: what the terms lose, and what their sums do."""
    high, low, scale = two_terms(left)
    lost = np.abs(left - scale * (high + low / 16)) @ np.abs(right).T
    return lost + scale * (accumulation_bound(high, right, 1) + accumulation_bound(low, right, 1) / 16)


def unpack(weights: Any) -> Array:
    """The weights [experts, n, k] that an Fp4Weights stands for, read as its layout is written down."""
    experts, n, k, form = weights.experts, weights.n, weights.k, weights.form
    blocks, num_k = -(-n // 64), -(-k // 256) * 2
    blobs = np.asarray(weights.blobs).view(np.uint8).reshape(-1, num_k, 4096 + 128 * SCALE_BYTES[form])
    row_scales = np.asarray(weights.row_scales).astype(np.float64).reshape(-1, 64)
    runs = [(i, 1) for i in range(experts * blocks)]
    if weights.runs is not None:
        runs = [(int(r) >> 8 & 0xFFFFFF, int(r) & 0xFF) for r in np.asarray(weights.runs).view(np.uint32)]
    # [run, k block, odd row, warp, g, q, step], and a scale for each (.., odd row, warp, g, q, half of the steps)
    words = blobs[..., :4096].copy().view(np.uint32).reshape(len(blobs), num_k, 2, 4, 8, 4, 4)
    magnitudes, signs = [], []
    for i in range(8):
        half, e = divmod(i, 4)
        magnitudes.append(words >> (16 * half + 4 * e) & 7)
        signs.append(words >> (8 * e + (3 if half else 7)) & 1)
    value = MAGNITUDES[np.stack(magnitudes, -1)] * (1 - 2.0 * np.stack(signs, -1))
    stored = np.repeat(_stored_scales(form, blobs[..., 4096:]), 2, axis=-1)[..., None]
    if form.startswith("nv"):
        value = value * _e4m3(stored + NV_LOWEST)
        value = to_four_bits(value / 1.5) if form == "nv_single" else value
    else:
        value = value * np.where(stored == EXPONENTS[form], 0.0, np.exp2(stored - float(BIAS[form])))
    # row = 16 warp + 2 g + odd, k = 128 block + 32 q + 8 step + i
    value = (
        value.transpose(0, 3, 4, 2, 1, 5, 6, 7).reshape(len(blobs), 64, num_k * 128) * row_scales[:, :, None]
    )
    tiles = np.stack([value[first : first + count].sum(0) for first, count in runs])
    return tiles.reshape(experts, blocks * 64, num_k * 128)[:, :n, :k]


def _e4m3(codes: Array) -> Array:
    return codes.astype(np.uint8).view(E4M3).astype(np.float64)


def _stored_scales(form: str, raw: Array) -> Array:
    """[run, k block, 128 threads * bytes] -> [run, k block, odd row, warp, g, q, two halves of 32 elements]."""
    shape = raw.shape[:2]
    if form.startswith("nv"):  # three bytes, the fourth scale in their high bits
        three = np.concatenate([raw[..., :256].reshape(*shape, 128, 2), raw[..., 256:, None]], -1)
        fourth = (three >> 6 << np.array([0, 2, 4], np.uint8)).sum(-1, dtype=np.uint8)
        raw = np.concatenate([three & 0x3F, fourth[..., None]], -1)
    elif form == "mx_e4m3":
        raw = np.stack([raw & 0xF, raw >> 4], -1)
    halves = raw.reshape(*shape, 4, 8, 4, 2, -1)
    return np.broadcast_to(np.moveaxis(halves, -2, 2), (*shape, 2, 4, 8, 4, 2)).astype(np.int32)
