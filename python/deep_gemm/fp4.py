"""FP4 weights for Hopper: packed once, then read by the FP8 x FP4 operations at the speed of memory."""

from __future__ import annotations

from typing import Any

import numpy as np

from deep_gemm import _C
from deep_gemm.utils.arrays import Array, is_torch


def _on_host(x: Array) -> np.ndarray:
    """The bytes of a tensor, in host memory."""
    if is_torch(x):
        import torch

        x = x.detach().contiguous().view(torch.uint8).cpu().numpy()
    return np.ascontiguousarray(x).view(np.uint8)


def pack_fp4_weights(
    codes: Array, scales: Array, global_scale: Any = None, *, form: str | None = None
) -> _C.Fp4Weights:
    """Pack MXFP4 or NVFP4 weights for fp8_fp4_gemm_nt, its grouped forms and fused_moe.

    codes: [n, k / 2] or [experts, n, k / 2], a byte holds two E2M1 codes, the first in the low nibble. The result lives
    where `codes` does. deep_gemm.fp4_formats.from_* give the arguments: pack_fp4_weights(*from_nvfp4(...)).

    MXFP4: scales are UE8M0 bytes [..., n, k / 32], or fp32 powers of two. Exact for every input. `form` ('mx_e4m3',
    'mx_e5m2') forces what a weight is decoded to; by default the smaller one.

    NVFP4: scales are E4M3 [..., n, k / 16] without a sign; `global_scale` is a number, one for each matrix, or one for
    each row, from 2^-100 to 2^100. `form` 'nv_single' (default) rounds a weight to one E4M3 on the way to the tensor
    core, at most 1 / 26 of it off, 1.4 % rms; 'nv_exact' multiplies it as the exact sum of two.

    The result's `report` says how many rows need more scales than a form has, which takes more memory but no precision,
    and what rounding the weights cost. Errors: ValueError, TypeError with what was got and expected.
    """
    group = 32 if global_scale is None else 16
    if codes.ndim not in (2, 3) or scales.ndim != codes.ndim:
        raise ValueError(
            f"pack_fp4_weights: got codes {tuple(codes.shape)} and scales {tuple(scales.shape)}, expected [experts, n, "
            f"k / 2] and [experts, n, k / {group}], or both without experts"
        )
    *experts, n, half_k = (int(extent) for extent in codes.shape)
    expected = (*experts, n, half_k * 2 // group)
    if tuple(scales.shape) != expected or half_k * 2 % group != 0:
        remedy = "; NVFP4 scales, one for 16, come with a global_scale" if global_scale is None else ""
        raise ValueError(
            f"pack_fp4_weights: got codes {tuple(codes.shape)} and scales {tuple(scales.shape)}, expected k to be a "
            f"multiple of {group} and scales {expected}{remedy}"
        )
    if codes.dtype.itemsize != 1:
        raise TypeError(f"pack_fp4_weights: got codes of {codes.dtype}, expected bytes (int8 or uint8)")
    host_scales = _on_host(scales)
    if scales.dtype.itemsize == 4 and global_scale is None:
        host_scales = _ue8m0(host_scales.view(np.float32))
    elif scales.dtype.itemsize != 1:
        kinds = "UE8M0 bytes or fp32 powers of two" if global_scale is None else "E4M3 bytes"
        raise TypeError(f"pack_fp4_weights: got scales of {scales.dtype}, expected {kinds}")
    packed = _C.pack_fp4(
        _on_host(codes),
        host_scales,
        experts=experts[0] if experts else 1,
        n=n,
        k=half_k * 2,
        form=form,
        globals=None if global_scale is None else _by_row(global_scale, (*experts, n)),
    )
    if not is_torch(codes):
        return packed
    import torch

    def place(x: Any) -> Any:
        return None if x is None else torch.from_numpy(x).to(codes.device)

    return packed.with_tensors(place(packed.blobs), place(packed.row_scales), place(packed.runs))


def _by_row(global_scale: Any, rows: tuple[int, ...]) -> np.ndarray:
    """fp32, one for each row."""
    values = np.asarray(global_scale.cpu() if is_torch(global_scale) else global_scale, np.float32)
    if values.shape not in {(), rows[:-1], rows}:
        raise ValueError(
            f"pack_fp4_weights: got global_scale {values.shape}, expected a number, {rows[:-1]} or {rows}"
        )
    by_matrix = values.reshape(*values.shape, *(1,) * (len(rows) - values.ndim))
    return np.ascontiguousarray(np.broadcast_to(by_matrix, rows))


def _ue8m0(scales: np.ndarray) -> np.ndarray:
    """The exponent bytes of fp32 powers of two."""
    bits = scales.view(np.uint32)
    if (bits & 0x807FFFFF).any() or (bits >> 23 == 255).any():
        raise ValueError(
            "pack_fp4_weights: got fp32 scales that are no powers of two from 2^-126 to 2^127; MXFP4 has no others"
        )
    return (bits >> 23).astype(np.uint8)


__all__ = ["pack_fp4_weights"]
