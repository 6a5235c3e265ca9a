"""Quantisers and checkpoint decoders, element by element in numpy, sharing no code with the package.

The quantisers follow docs/formats.md: fp32 arithmetic with one rounding for each operation; codes come from a search
among the format's values. The decoders read each layout as its format describes it and give float64.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

E2M1_VALUES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
E4M3_VALUES = np.arange(0x7F, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float64)


def nearest_code(x: Array, values: Array, sign_bit: int, nan: int) -> Array:
    """The code of the nearest of `values` (code order), a tie to the even code, saturating."""
    wide = x.astype(np.float64)
    magnitude = np.abs(np.where(np.isnan(wide), 0, wide))
    middle = (values[1:] + values[:-1]) / 2
    below = np.searchsorted(middle, magnitude, side="left")
    tie = (below < len(middle)) & (middle[np.minimum(below, len(middle) - 1)] == magnitude)
    code = below + (tie & (below % 2 == 1))
    code = np.where(np.signbit(wide), code | sign_bit, code)
    return np.where(np.isnan(wide), nan, code).astype(np.uint8)


def e2m1(x: Array) -> Array:
    return nearest_code(x, E2M1_VALUES, 8, 7)


def e4m3(x: Array) -> Array:
    return nearest_code(x, E4M3_VALUES, 0x80, 0x7F)


def power_of_two(x: Array, rule: str) -> Array:
    """The exponent (not biased) that `rule` gives for positive fp32 numbers; infinity takes the largest, 127."""
    mantissa, exponent = np.frexp(np.where(np.isinf(x), 1, x).astype(np.float64))  # mantissa in [0.5, 1)
    above = mantissa > 0.5 if rule == "up" else mantissa**2 > 0.5
    return np.where(np.isinf(x), 127, exponent - 1 + above)


def pack(codes: Array) -> Array:
    return (codes[..., 0::2] + 16 * codes[..., 1::2]).astype(np.uint8)


def fp8_row(x: Array, rule: str = "exact") -> tuple[Array, Array]:
    """[m, k] -> (E4M3 codes [m, k], fp32 scales [m])."""
    codes, scales = fp8_128(x, rule, block=x.shape[1])
    return codes, scales[:, 0]


def fp8_128(x: Array, rule: str = "exact", block: int = 128) -> tuple[Array, Array]:
    """[m, k] -> (E4M3 codes [m, k], fp32 scales [m, ceil(k / 128)])."""
    m, k = x.shape
    values = np.zeros((m, -(-k // block) * block), np.float32)
    values[:, :k] = x
    values = values.reshape(m, -1, block)
    scale = np.maximum(np.abs(values).max(-1, initial=0), np.float32(1e-4)) / np.float32(448)
    if rule != "exact":
        number = np.where(np.isnan(scale), 1, scale)
        scale = np.where(np.isnan(scale), scale, np.exp2(power_of_two(number, rule))).astype(np.float32)
    with np.errstate(invalid="ignore"):
        codes = e4m3(values * (np.float32(1) / scale)[..., None])
    return codes.reshape(m, -1)[:, :k], scale


def mxfp4(x: Array, rule: str = "up") -> tuple[Array, Array]:
    """[m, k] -> (codes [m, k / 2], UE8M0 [m, k / 32])."""
    values = x.astype(np.float32).reshape(len(x), -1, 32)
    amax = np.maximum(np.abs(values).max(-1, initial=0), np.float32(6 * 2.0**-126))
    nan = np.isnan(amax)
    exponent = power_of_two(np.where(nan, 1, amax / np.float32(6)), rule)
    exponent = np.where(exponent == 126, 125, exponent)  # elements beyond fp32 saturate; an infinity has 127
    scale = np.exp2(exponent).astype(np.float32)
    codes = np.where(nan[..., None], 7, e2m1(values * (np.float32(1) / scale)[..., None]))
    return pack(codes.reshape(len(x), -1)), np.where(nan, 255, exponent + 127).astype(np.uint8)


def nvfp4(x: Array, global_scale: Array | None = None) -> tuple[Array, Array, Array]:
    """[m, k] -> (codes [m, k / 2], E4M3 [m, k / 16], global [m]), one global scale a row unless given."""
    values = x.astype(np.float32)
    if global_scale is None:
        amax = np.abs(values).max(-1, initial=0)
        global_scale = np.where(amax == 0, np.float32(1), amax / np.float32(2688)).astype(np.float32)
    shared = np.broadcast_to(np.asarray(global_scale, np.float32), (len(x),))
    blocks = values.reshape(len(x), -1, 16)
    with np.errstate(invalid="ignore", divide="ignore"):
        scales = e4m3(np.abs(blocks).max(-1, initial=0) / (np.float32(6) * shared[:, None]))
        value = scales.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
        factor = np.where(value == 0, np.float32(0), np.float32(1) / (value * shared[:, None]))
        codes = e2m1(blocks * factor[..., None].astype(np.float32))
    return pack(codes.reshape(len(x), -1)), scales, np.asarray(global_scale)


# ---- Checkpoints


def deepseek(weight: Array, scale: Array) -> Array:
    """I8 pairs, low nibble first; F8_E8M0 for 32 elements."""
    n, half = weight.shape
    out = np.zeros((n, half * 2))
    for i in range(n):
        for j in range(half * 2):
            code = int(weight[i, j // 2]) >> (4 * (j % 2)) & 0xF
            value = (-1.0 if code & 8 else 1.0) * E2M1_VALUES[code & 7]
            out[i, j] = value * 2.0 ** (int(scale.view(np.uint8)[i, j // 32]) - 127)
    return out


def nvfp4_checkpoint(weight: Array, weight_scale: Array, weight_scale_2: float) -> Array:
    """U8 pairs, low nibble first; F8_E4M3 for 16 elements; one fp32 number."""
    n, half = weight.shape
    small = weight_scale.astype(np.float64)
    out = np.zeros((n, half * 2))
    for i in range(n):
        for j in range(half * 2):
            code = int(weight[i, j // 2]) >> (4 * (j % 2)) & 0xF
            value = (-1.0 if code & 8 else 1.0) * E2M1_VALUES[code & 7]
            out[i, j] = value * small[i, j // 16] * float(weight_scale_2)
    return out


def gguf_mxfp4(blocks: Array) -> Array:
    """As ggml reads block_mxfp4: the doubled values times 2^(e - 128)."""
    doubled = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12]
    n, row_bytes = blocks.shape
    out = np.zeros((n, row_bytes // 17 * 32))
    for i in range(n):
        for b in range(row_bytes // 17):
            block = blocks[i, b * 17 : b * 17 + 17]
            scale = 2.0 ** (int(block[0]) - 128)
            for j in range(16):
                out[i, b * 32 + j] = doubled[int(block[1 + j]) & 0xF] * scale
                out[i, b * 32 + 16 + j] = doubled[int(block[1 + j]) >> 4] * scale
    return out


def deepgemm(packed: Array, sf: Array) -> Array:
    """int32 words: element i of eight in bits 4 i; scale byte g of four in bits 8 g."""
    n, words = packed.shape
    out = np.zeros((n, words * 8))
    for i in range(n):
        for j in range(words * 8):
            code = int(packed[i, j // 8]) >> (4 * (j % 8)) & 0xF
            group = j // 32
            exponent = int(sf[i, group // 4]) >> (8 * (group % 4)) & 0xFF
            out[i, j] = (-1.0 if code & 8 else 1.0) * E2M1_VALUES[code & 7] * 2.0 ** (exponent - 127)
    return out
