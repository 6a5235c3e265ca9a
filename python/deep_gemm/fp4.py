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


def pack_fp4_weights(codes: Array, scales: Array, form: str | None = None) -> _C.Fp4Weights:
    """Pack MXFP4 weights for fp8_fp4_gemm_nt and its grouped forms; exact for every input.

    codes: [n, k / 2] or [experts, n, k / 2], a byte holds two E2M1 codes, the first in the low nibble. scales: UE8M0
    bytes [..., n, k / 32], or fp32 powers of two. The result lives where `codes` does. `form` ('mx_e4m3', 'mx_e5m2')
    forces what a weight is decoded to; by default the smaller one. The result's `report` says how many rows need more
    exponents than a form has; those take more memory, never less precision.
    """
    if codes.ndim not in (2, 3) or scales.ndim != codes.ndim:
        raise ValueError(
            f"pack_fp4_weights: got codes {tuple(codes.shape)} and scales {tuple(scales.shape)}, expected [experts, n, "
            "k / 2] and [experts, n, k / 32], or both without experts"
        )
    *experts, n, half_k = (int(extent) for extent in codes.shape)
    expected = (*experts, n, half_k // 16)
    if tuple(scales.shape) != expected or half_k % 16 != 0:
        raise ValueError(
            f"pack_fp4_weights: got codes {tuple(codes.shape)} and scales {tuple(scales.shape)}, expected k to be a "
            f"multiple of 32 and scales {expected}"
        )
    if codes.dtype.itemsize != 1:
        raise TypeError(f"pack_fp4_weights: got codes of {codes.dtype}, expected bytes (int8 or uint8)")
    host_scales = _on_host(scales)
    if scales.dtype.itemsize == 4:
        host_scales = _ue8m0(host_scales.view(np.float32))
    elif scales.dtype.itemsize != 1:
        raise TypeError(
            f"pack_fp4_weights: got scales of {scales.dtype}, expected UE8M0 bytes or fp32 powers of two"
        )
    packed = _C.pack_fp4(
        _on_host(codes), host_scales, experts=experts[0] if experts else 1, n=n, k=half_k * 2, form=form
    )
    if not is_torch(codes):
        return packed
    import torch

    def place(x: Any) -> Any:
        return None if x is None else torch.from_numpy(x).to(codes.device)

    return packed.with_tensors(place(packed.blobs), place(packed.row_scales), place(packed.runs))


def _ue8m0(scales: np.ndarray) -> np.ndarray:
    """The exponent bytes of fp32 powers of two."""
    bits = scales.view(np.uint32)
    if (bits & 0x807FFFFF).any() or (bits >> 23 == 255).any():
        raise ValueError(
            "pack_fp4_weights: got fp32 scales that are no powers of two from 2^-126 to 2^127; MXFP4 has no others"
        )
    return (bits >> 23).astype(np.uint8)


__all__ = ["pack_fp4_weights"]
