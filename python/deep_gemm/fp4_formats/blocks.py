"""MXFP4 and NVFP4 on the host, for weights: numpy in, numpy out, bit for bit what the kernels give.

All arithmetic is fp32, each operation rounded once, in this order (docs/formats.md):

    MXFP4   amax of 32, at least 6 * 2^-126;  scale = 2^e, e from amax / 6 rounded up or to nearest;
            code = e2m1(x * (1 / scale))
    NVFP4   global = amax / 2688 of a row, of everything, or given; 1 where amax is 0;
            scale = e4m3(amax of 16 / (6 * global));  code = e2m1(x * (1 / (scale * global))), 0 where scale is 0

A NaN makes the amax, hence the scale, NaN. Scales are returned as bytes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from deep_gemm import _C
from deep_gemm.fp4_formats.importers import MX_BLOCK, NV_BLOCK, as_bytes, check_scales
from deep_gemm.utils.fp4 import pack_nibbles, unpack_nibbles

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

E2M1_MAX = np.float32(6)
E4M3_MAX = np.float32(448)
SMALLEST_MX_AMAX = np.float32(6 * 2.0**-126)
SCALE_CODECS = {"up": "e2m1_scale_up", "nearest": "ue8m0_nearest"}
RULES = tuple(SCALE_CODECS)


def _blocks(x: npt.ArrayLike, block: int, what: str) -> Floats:
    """fp32 [..., k / block, block]."""
    values = np.asarray(x).astype(np.float32)
    if values.ndim == 0 or values.shape[-1] % block != 0:
        raise ValueError(
            f"{what}: got shape {values.shape}, expected the last dimension to be a multiple of {block}; pad with zeros"
        )
    return values.reshape(*values.shape[:-1], -1, block)


def _amax(x: Floats, axis: Any) -> Floats:
    return np.asarray(np.abs(x).max(axis=axis, initial=0), np.float32)


def _encode(blocks: Floats, factor: Floats) -> Bytes:
    """Packed codes of blocks * factor, [..., k / 2]."""
    with np.errstate(invalid="ignore", over="ignore"):
        codes: Bytes = _C.encode(blocks * factor[..., None], "e2m1")
    return np.asarray(pack_nibbles(codes.reshape(*blocks.shape[:-2], -1)))


def quantize_mxfp4(x: npt.ArrayLike, *, rule: str = "up") -> tuple[Bytes, Bytes]:
    """[..., k] -> (codes [..., k / 2], UE8M0 [..., k / 32]). 'up' clips nothing below 6 * 2^125, 'nearest' may."""
    if rule not in RULES:
        raise ValueError(f"quantize_mxfp4: got rule {rule!r}, expected one of {RULES}; pass one of them")
    blocks = _blocks(x, MX_BLOCK, "quantize_mxfp4")
    amax = np.maximum(_amax(blocks, -1), SMALLEST_MX_AMAX)
    scales: Bytes = _C.encode(amax / E2M1_MAX, SCALE_CODECS[rule])
    with np.errstate(invalid="ignore"):
        return _encode(blocks, np.float32(1) / _C.decode(scales, "ue8m0_up")), scales


def dequantize_mxfp4(codes: Any, scales: Any) -> Floats:
    """fp32 [..., n, k] of codes [..., n, k / 2] and UE8M0 scales [..., n, k / 32]; exact but below 2^-126."""
    packed, exponents = as_bytes(codes, "dequantize_mxfp4"), as_bytes(scales, "dequantize_mxfp4")
    check_scales(packed, exponents, MX_BLOCK, "dequantize_mxfp4")
    scale: Floats = _C.decode(exponents, "ue8m0_up")
    return np.asarray(_C.decode(unpack_nibbles(packed), "e2m1") * np.repeat(scale, MX_BLOCK, axis=-1))


def nvfp4_global_scale(x: npt.ArrayLike, *, scope: str = "tensor") -> Floats:
    """amax / (448 * 6), 1 where amax is 0: fp32 scalar, or [...] without the last axis for scope='token'."""
    if scope not in ("tensor", "token"):
        raise ValueError(
            f"nvfp4_global_scale: got scope {scope!r}, expected 'tensor' or 'token'; pass one of them"
        )
    values = np.asarray(x).astype(np.float32)
    amax = _amax(values, -1 if scope == "token" else None)
    return np.asarray(np.where(amax == 0, np.float32(1), amax / (E4M3_MAX * E2M1_MAX)), np.float32)


def quantize_nvfp4(
    x: npt.ArrayLike, *, scope: str = "tensor", global_scale: Any = None, block: int = NV_BLOCK
) -> tuple[Bytes, Bytes, Floats]:
    """[..., k] -> (codes [..., k / 2], E4M3 [..., k / block], fp32 global scale).

    `scope`: 'tensor' or 'token' (one global scale for each row); a given `global_scale` (calibrated: a number, or one
    for each row) wins. `block` is 16; 32 for formats that call themselves NVF4 with 32.
    """
    if block not in (NV_BLOCK, MX_BLOCK):
        raise ValueError(f"quantize_nvfp4: got block {block}, expected 16 or 32; pass one of them")
    blocks = _blocks(x, block, "quantize_nvfp4")
    shared = (
        nvfp4_global_scale(x, scope=scope) if global_scale is None else np.asarray(global_scale, np.float32)
    )
    if shared.shape not in {(), blocks.shape[:-2]}:
        raise ValueError(
            f"quantize_nvfp4: got global_scale {shared.shape}, expected a number or {blocks.shape[:-2]}; "
            "reshape it"
        )
    by_block = shared[..., None] if shared.ndim else shared
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        scales: Bytes = _C.encode(_amax(blocks, -1) / (E2M1_MAX * by_block), "e4m3")
        value: Floats = _C.decode(scales, "e4m3")
        factor = np.where(value == 0, np.float32(0), np.float32(1) / (value * by_block))
        # Where the scale is 0 the codes are zeros that keep their sign.
        return _encode(blocks, factor.astype(np.float32)), scales, shared


def dequantize_nvfp4(codes: Any, scales: Any, global_scale: Any, *, block: int = NV_BLOCK) -> Floats:
    """fp32 [..., n, k] = e2m1 * (e4m3 * global); global a number, one for each matrix or one for each row."""
    packed, small = as_bytes(codes, "dequantize_nvfp4"), as_bytes(scales, "dequantize_nvfp4")
    check_scales(packed, small, block, "dequantize_nvfp4")
    shared = np.asarray(global_scale, np.float32)
    if shared.shape not in {(), packed.shape[:-2], packed.shape[:-1]}:
        raise ValueError(
            f"dequantize_nvfp4: got global_scale {shared.shape}, expected a number, {packed.shape[:-2]} or "
            f"{packed.shape[:-1]}; "
            "reshape it"
        )
    shared = shared.reshape(*shared.shape, *(1,) * (packed.ndim - shared.ndim))
    scale = np.repeat(_C.decode(small, "e4m3") * shared, block, axis=-1)
    return np.asarray(_C.decode(unpack_nibbles(packed), "e2m1") * scale)


__all__ = [
    "dequantize_mxfp4",
    "dequantize_nvfp4",
    "nvfp4_global_scale",
    "quantize_mxfp4",
    "quantize_nvfp4",
]
