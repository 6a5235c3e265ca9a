"""FP4 weights for Hopper: packed once, then read by the FP8 x FP4 operations at the speed of memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from deep_gemm import _C
from deep_gemm.fp4_formats.importers import from_deepgemm
from deep_gemm.utils.arrays import Array, has_type, is_torch, require_array


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
    where `codes` does; what is on a GPU is packed there, at the speed of its memory, and the call waits for it.
    deep_gemm.fp4_formats.from_* give the arguments: pack_fp4_weights(*from_nvfp4(...)).

    MXFP4: scales are UE8M0 bytes [..., n, k / 32], or fp32 powers of two. Exact for every input. `form` ('mx_e4m3',
    'mx_e5m2') forces what a weight is decoded to; by default the smaller one.

    NVFP4: scales are E4M3 [..., n, k / 16] without a sign; `global_scale` is a number, one for each matrix, or one for
    each row, from 2^-100 to 2^100. `form` 'nv_single' (default) rounds a weight to one E4M3 on the way to the tensor
    core, at most 1 / 26 of it off, 1.4 % rms; 'nv_exact' multiplies it as the exact sum of two.

    The result's `report` says how many rows need more scales than a form has, which takes more memory but no precision,
    and what rounding the weights cost. Errors: ValueError, TypeError with what was got and expected.
    """
    for tensor in (codes, scales):
        require_array(tensor, "pack_fp4_weights")
    group = 32 if global_scale is None else 16
    if codes.ndim not in (2, 3) or scales.ndim != codes.ndim:
        raise ValueError(
            f"pack_fp4_weights: got codes {tuple(codes.shape)} and scales {tuple(scales.shape)}, expected [experts, n, "
            f"k / 2] and [experts, n, k / {group}], or both without experts; reshape them"
        )
    *experts, n, half_k = (int(extent) for extent in codes.shape)
    expected = (*experts, n, half_k * 2 // group)
    if tuple(scales.shape) != expected or half_k * 2 % group != 0:
        remedy = "; NVFP4 scales, one for 16, come with a global_scale" if global_scale is None else ""
        raise ValueError(
            f"pack_fp4_weights: got codes {tuple(codes.shape)} and scales {tuple(scales.shape)}, expected k to be a "
            f"multiple of {group} and scales {expected}: one for each {group} weights{remedy}"
        )
    if codes.dtype.itemsize != 1:
        raise TypeError(
            f"pack_fp4_weights: got codes of {codes.dtype}, expected bytes (int8 or uint8); view them as such"
        )
    if scales.dtype.itemsize != 1 and (not has_type(scales, "fp32") or global_scale is not None):
        kinds = "UE8M0 bytes or fp32 powers of two" if global_scale is None else "E4M3 bytes"
        raise TypeError(f"pack_fp4_weights: got scales of {scales.dtype}, expected {kinds}; convert them")
    shape = (experts[0] if experts else 1, n, half_k * 2)
    if is_torch(codes) and codes.is_cuda and 0 not in shape:
        return _pack_torch(codes, scales, global_scale, shape, form)
    host_scales = _on_host(scales)
    if scales.dtype.itemsize == 4:
        host_scales = _ue8m0(host_scales.view(np.float32))
    packed = _C.pack_fp4(
        _on_host(codes),
        host_scales,
        *shape,
        form=form,
        globals=None if global_scale is None else _by_row(global_scale, (*experts, n)),
    )
    if not is_torch(codes):
        return packed
    import torch

    def place(x: Any) -> Any:
        return None if x is None else torch.from_numpy(x).to(codes.device)

    return packed.with_tensors(place(packed.blobs), place(packed.row_scales), place(packed.runs))


def weights_of_pair(function: str, codes: Array, scales: Array, turned: bool = False) -> _C.Fp4Weights:
    """What `function` computes with where it got DeepGEMM's pair as b: int8 codes [..., n, k / 2], contiguous along k,
    and scales of 32, fp32 powers of two or UE8M0 as bytes or four to an int32; `turned`: both given transposed.

    Errors: ValueError, TypeError; RuntimeError while the stream is being captured, as packing looks at the weights.
    """
    for tensor in (codes, scales):
        require_array(tensor, function)
        if tensor.ndim < 2:
            raise ValueError(
                f"{function}: got FP4 codes {tuple(codes.shape)} and scales {tuple(scales.shape)} for b, expected two "
                "dimensions, or three with groups; reshape them"
            )
    if turned:
        codes, scales = codes.swapaxes(-1, -2), scales.swapaxes(-1, -2)
    step = codes.stride(-1) if is_torch(codes) else codes.strides[-1] // codes.itemsize
    if step != 1 and codes.shape[-1] > 1:
        raise ValueError(
            f"{function}: got FP4 codes with stride {step} along k, expected 1, as two neighbours along k share a "
            f"byte; pass {'b.mT.contiguous().mT' if turned else 'b.contiguous()'}"
        )
    if is_torch(codes) and codes.is_cuda:
        import torch

        if torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                f"{function}: got FP4 codes for b while the stream is captured, expected Fp4Weights; pack them before "
                "with deep_gemm.pack_fp4_weights(codes, scales)"
            )
    try:
        if scales.dtype.itemsize == 4 and "int" in str(scales.dtype):
            codes, scales = from_deepgemm(codes, scales)
        return pack_fp4_weights(codes, scales)
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{function}: b: {error}") from None


def pack_on_device(
    codes: Any,
    scales: Any,
    globals_: Any,
    shape: tuple[int, int, int],
    form: str | None,
    empty: Callable[[int, str], Any],
    place: Callable[[Any], Any],
    device: Any = None,
) -> _C.Fp4Weights:
    """Packs codes uint8 [experts, n, k / 2] and their scales where they are; shape is (experts, n, k).

    Scales are uint8 [experts, n, k / 32] (UE8M0), or [experts, n, k / 16] (E4M3) with `globals_` fp32 [experts, n].
    `empty(count, "int8" or "float32")` makes an output there, `place(array)` copies one from the host. Errors are
    those of pack_fp4_weights()."""
    guess = form or ("mx_e4m3" if globals_ is None else "nv_single")
    blobs, row_scales = _C.fp4_packed_sizes(*shape, guess)
    outputs = _C.Fp4Weights(empty(blobs, "int8"), empty(row_scales, "float32"), None, *shape, guess)
    wanted = _C.pack_fp4_on_device(codes, scales, globals_, outputs, form is not None, device=device)
    if wanted is None:
        return outputs
    num_runs = None if wanted.runs is None else int((wanted.runs & 255).sum())
    blobs, row_scales = _C.fp4_packed_sizes(*shape, wanted.form, num_runs)
    del outputs  # before what replaces it: these are the largest tensors around
    runs = None if wanted.runs is None else place(wanted.runs)
    outputs = wanted.with_tensors(empty(blobs, "int8"), empty(row_scales, "float32"), runs)
    _C.pack_fp4_on_device(codes, scales, globals_, outputs, True, device=device)
    return outputs


def _pack_torch(
    codes: Any, scales: Any, global_scale: Any, shape: tuple[int, int, int], form: str | None
) -> _C.Fp4Weights:
    """On the GPU of `codes`, on its current stream."""
    import torch

    experts, n, _ = shape
    codes = codes.detach().contiguous()
    if codes.data_ptr() % 16 != 0:
        codes = codes.clone()
    scales = scales.detach().to(codes.device).contiguous()
    if scales.dtype.itemsize == 4:
        bits = scales.view(torch.int32)
        exponents = bits >> 23
        if bool(((bits & 0x7FFFFF) != 0).any() | (exponents <= 0).any() | (exponents == 255).any()):
            raise ValueError(NO_POWERS_OF_TWO)
        scales = exponents.to(torch.uint8)
    globals_ = None
    if global_scale is not None:
        values = torch.as_tensor(global_scale, dtype=torch.float32, device=codes.device)
        rows = tuple(codes.shape[:-1])
        if tuple(values.shape) not in {(), rows[:-1], rows}:
            raise ValueError(_bad_global(tuple(values.shape), rows))
        values = values.reshape(*values.shape, *(1,) * (len(rows) - values.ndim))
        globals_ = values.expand(rows).reshape(experts, n)
    return pack_on_device(
        codes.view(torch.uint8).reshape(experts, n, -1),
        scales.view(torch.uint8).reshape(experts, n, -1),
        globals_,
        shape,
        form,
        lambda count, kind: torch.empty(count, dtype=getattr(torch, kind), device=codes.device),
        lambda x: torch.from_numpy(x).to(codes.device),
    )


def _by_row(global_scale: Any, rows: tuple[int, ...]) -> np.ndarray:
    """fp32, one for each row."""
    values = np.asarray(global_scale.cpu() if is_torch(global_scale) else global_scale, np.float32)
    if values.shape not in {(), rows[:-1], rows}:
        raise ValueError(_bad_global(values.shape, rows))
    by_matrix = values.reshape(*values.shape, *(1,) * (len(rows) - values.ndim))
    return np.ascontiguousarray(np.broadcast_to(by_matrix, rows))


def _bad_global(got: tuple[int, ...], rows: tuple[int, ...]) -> str:
    return f"pack_fp4_weights: got global_scale {got}, expected a number, {rows[:-1]} or {rows}; reshape it"


NO_POWERS_OF_TWO = (
    "pack_fp4_weights: got fp32 scales that are no powers of two, expected 2^-126 to 2^127 as MXFP4 has them (1 for a "
    "group of zeros); quantise with such scales, or pass E4M3 scales of 16 weights (NVFP4)"
)


def _ue8m0(scales: np.ndarray) -> np.ndarray:
    """The exponent bytes of fp32 powers of two."""
    bits = scales.view(np.uint32)
    if (bits & 0x807FFFFF).any() or np.isin(bits >> 23, (0, 255)).any():
        raise ValueError(NO_POWERS_OF_TWO)
    return (bits >> 23).astype(np.uint8)


__all__ = ["pack_fp4_weights"]
