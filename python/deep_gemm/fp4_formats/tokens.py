"""Quantisation of activations where they are: on the GPU, or the emulated one."""

from __future__ import annotations

from typing import Any

from deep_gemm import _C
from deep_gemm.utils import arrays
from deep_gemm.utils.arrays import Array

RULES = {"fp8_128": "exact", "fp8_row": "exact", "mxfp4": "up", "nvfp4": "exact"}


def _empty(like: Array, shape: tuple[int, ...], name: str) -> Array:
    steps = [1] * len(shape)
    for i in range(len(shape) - 1, 0, -1):
        steps[i - 1] = steps[i] * max(shape[i], 1)
    return arrays.empty_strided(like, shape, steps, name)


def quantize_tokens(
    x: Array,
    recipe: str = "fp8_128",
    *,
    scale_rule: str | None = None,
    global_scale: Array | None = None,
    device: Any = None,
    stream: int | None = None,
) -> tuple[Array, ...]:
    """Quantises each row of x [m, k] (bf16 or fp32) by itself: row i of a batch gives the bits that it gives alone.

    'fp8_128': (E4M3 [m, k], fp32 scales [m, ceil(k / 128)]), what the FP8 operations take; scale_rule 'exact',
    or 'up' or 'nearest' for scales that are powers of two. 'fp8_row': the same with one scale for each row, fp32 [m];
    the FP4 operations take it as scales[:, None].expand(-1, ceil(k / 128)). 'mxfp4': (codes uint8 [m, k / 2], UE8M0
    bytes [m, k / 32]); 'up' or 'nearest'. 'nvfp4': (codes, E4M3 bytes [m, k / 16], fp32 global scales [m]); with a
    calibrated `global_scale` [1] that one is used and returned. k is a multiple of 16, for mxfp4 of 32.
    """
    if recipe not in RULES:
        raise ValueError(
            f"quantize_tokens: got recipe {recipe!r}, expected one of {', '.join(RULES)}; pass one of them"
        )
    if len(x.shape) != 2:
        raise ValueError(f"quantize_tokens: got shape {tuple(x.shape)}, expected [m, k]; reshape it")
    m, k = (int(extent) for extent in x.shape)
    if recipe == "fp8_128":
        codes, scales = _empty(x, (m, k), "fp8_e4m3"), _empty(x, (m, -(-k // 128)), "fp32")
    elif recipe == "fp8_row":
        codes, scales = _empty(x, (m, k), "fp8_e4m3"), _empty(x, (m,), "fp32")
    else:
        block = 32 if recipe == "mxfp4" else 16
        codes, scales = _empty(x, (m, k // 2), "uint8"), _empty(x, (m, -(-k // block)), "uint8")
    shared = global_scale
    if recipe == "nvfp4" and shared is None:
        shared = _empty(x, (m,), "fp32")
    rule = scale_rule or RULES[recipe]
    given = global_scale is not None
    _C.quantize_into(recipe, rule, x, codes, scales, shared, given, device=device, stream=stream)
    return (codes, scales) if shared is None else (codes, scales, shared)


__all__ = ["quantize_tokens"]
