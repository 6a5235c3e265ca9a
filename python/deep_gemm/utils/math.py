"""Casts to FP8 with their scales, for numpy arrays and PyTorch tensors alike.

A scale is amax / 448 of the elements it covers (at least 1e-4 / 448), so that the largest becomes the largest
E4M3 number. `use_ue8m0` rounds scales up to powers of two.
"""

from __future__ import annotations

from collections.abc import Iterable

from deep_gemm.utils import arrays
from deep_gemm.utils.arrays import Array

FP8_MAX = 448.0
SMALLEST_AMAX = 1e-4


def ceil_div(x: int, y: int) -> int:
    """x / y, rounded up."""
    if y <= 0:
        raise ValueError(f"ceil_div: got a divisor of {y}, expected at least 1; pass a positive one")
    return (x + y - 1) // y


def align(x: int, y: int) -> int:
    """The multiple of y at or above x."""
    if y <= 0:
        raise ValueError(f"align: got multiples of {y}, expected at least 1; pass a positive one")
    return ceil_div(x, y) * y


def ceil_to_ue8m0(x: Array) -> Array:
    """The power of two at or above |x|, within the exponents that UE8M0 has."""
    pattern = arrays.bits(arrays.contiguous(abs(arrays.cast(x, "fp32"))), "int32")
    exponent = ((pattern >> 23) & 0xFF) + arrays.cast((pattern & 0x7FFFFF) != 0, "int32")
    return arrays.bits(arrays.clamp(exponent, 1, 254) << 23, "fp32")


def pack_ue8m0_to_int(x: Array) -> Array:
    """Four powers of two along the last dimension into one int32, one exponent byte each, the first lowest."""
    if not arrays.has_type(x, "fp32") or x.shape[-1] % 4 != 0:
        raise ValueError(
            f"pack_ue8m0_to_int: got {x.dtype} of shape {tuple(x.shape)}, expected fp32 and a last dimension that "
            "is a multiple of 4; "
            "convert the scales, or pad them with ones"
        )
    pattern = arrays.bits(arrays.contiguous(x), "int32")
    if bool((pattern < 0).any()) or bool(((pattern & 0x7FFFFF) != 0).any()):
        raise ValueError(
            "pack_ue8m0_to_int: got scales that are no powers of two; round them with ceil_to_ue8m0"
        )
    return arrays.bits(arrays.cast(pattern >> 23, "uint8"), "int32")


def unpack_ue8m0_from_int(packed_sf: Array) -> Array:
    """The inverse of pack_ue8m0_to_int."""
    exponents = arrays.cast(arrays.bits(arrays.contiguous(packed_sf), "uint8"), "int32")
    return arrays.bits(exponents << 23, "fp32")


def scale_of(amax: Array, limit: float, use_ue8m0: bool) -> Array:
    scale = arrays.divided(arrays.clamp(amax, SMALLEST_AMAX), limit)
    return ceil_to_ue8m0(scale) if use_ue8m0 else arrays.cast(scale, "fp32")


def require_matrix(x: Array, function: str) -> None:
    arrays.require_array(x, function)
    if len(x.shape) != 2:
        raise ValueError(
            f"{function}: got shape {tuple(x.shape)}, expected a matrix; reshape it to [rows, columns]"
        )


def require_gran_k(gran_k: int, function: str) -> None:
    if not isinstance(gran_k, int) or gran_k < 1:
        raise ValueError(
            f"{function}: got gran_k={gran_k!r}, expected an int of at least 1, such as 128 or 32"
        )


def padded(x: Array, rows: int, columns: int) -> Array:
    """fp32, with zero rows and columns appended."""
    if tuple(x.shape) == (rows, columns):
        return arrays.cast(x, "fp32")
    result = arrays.zeros(x, (rows, columns), "fp32")
    result[: x.shape[0], : x.shape[1]] = arrays.cast(x, "fp32")
    return result


def per_token_cast_to_fp8(
    x: Array, use_ue8m0: bool = False, gran_k: int = 128, use_packed_ue8m0: bool = False
) -> tuple[Array, Array]:
    """[m, k] -> FP8 [m, k] and one scale for each row and `gran_k` columns, [m, k / gran_k] rounded up."""
    require_matrix(x, "per_token_cast_to_fp8")
    require_gran_k(gran_k, "per_token_cast_to_fp8")
    m, k = x.shape
    blocks = padded(x, m, align(k, gran_k)).reshape(m, ceil_div(k, gran_k), gran_k)
    scale = (
        scale_of(arrays.amax(abs(blocks), (2,)), FP8_MAX, use_ue8m0) if k else arrays.zeros(x, (m, 0), "fp32")
    )
    values = arrays.cast(blocks * (1.0 / scale[:, :, None]), "fp8_e4m3").reshape(m, -1)[:, :k]
    return arrays.contiguous(values), pack_ue8m0_to_int(scale) if use_packed_ue8m0 else scale


def per_channel_cast_to_fp8(x: Array, use_ue8m0: bool = False, gran_k: int = 128) -> tuple[Array, Array]:
    """[k, n] -> FP8 [k, n] and one scale for each `gran_k` rows and column, [k / gran_k, n]."""
    require_matrix(x, "per_channel_cast_to_fp8")
    require_gran_k(gran_k, "per_channel_cast_to_fp8")
    k, n = x.shape
    if k % gran_k != 0:
        raise ValueError(
            f"per_channel_cast_to_fp8: got {k} rows, expected a multiple of {gran_k}; pad with zero rows"
        )
    blocks = arrays.cast(x, "fp32").reshape(-1, gran_k, n)
    scale = scale_of(arrays.amax(abs(blocks), (1,)), FP8_MAX, use_ue8m0)
    return arrays.cast(blocks * (1.0 / scale[:, None, :]), "fp8_e4m3").reshape(k, n), scale


def per_block_cast_to_fp8(x: Array, use_ue8m0: bool = False, gran_k: int = 128) -> tuple[Array, Array]:
    """[n, k] -> FP8 [n, k] and one scale for each gran_k x gran_k block, rounded up."""
    require_matrix(x, "per_block_cast_to_fp8")
    require_gran_k(gran_k, "per_block_cast_to_fp8")
    n, k = x.shape
    blocks = padded(x, align(n, gran_k), align(k, gran_k))
    blocks = blocks.reshape(ceil_div(n, gran_k), gran_k, ceil_div(k, gran_k), gran_k)
    scale = scale_of(arrays.amax(abs(blocks), (1, 3), keepdims=True), FP8_MAX, use_ue8m0)
    values = arrays.cast(blocks * (1.0 / scale), "fp8_e4m3").reshape(align(n, gran_k), align(k, gran_k))
    return arrays.contiguous(values[:n, :k]), scale.reshape(scale.shape[0], scale.shape[2])


def per_custom_dims_cast_to_fp8(
    x: Array, dims: Iterable[int], use_ue8m0: bool = False
) -> tuple[Array, Array]:
    """One scale for each index along `dims` (-1: the last), shared by everything along the other dimensions."""
    arrays.require_array(x, "per_custom_dims_cast_to_fp8")
    rank, given = len(x.shape), tuple(dims)
    kept = {dim + rank if dim < 0 else dim for dim in given}
    if len(kept) != len(given) or not kept <= set(range(rank)):
        raise ValueError(
            f"per_custom_dims_cast_to_fp8: got dims {given} of an array of shape {tuple(x.shape)}, expected "
            f"different dimensions from {-rank} to {rank - 1}; "
            "correct the dims"
        )
    shared = tuple(i for i in range(rank) if i not in kept)
    values = arrays.cast(x, "fp32")
    scale = scale_of(arrays.amax(abs(values), shared, keepdims=True), FP8_MAX, use_ue8m0)
    return arrays.cast(values * (1.0 / scale), "fp8_e4m3"), scale.squeeze()


__all__ = [
    "align",
    "ceil_div",
    "ceil_to_ue8m0",
    "pack_ue8m0_to_int",
    "per_block_cast_to_fp8",
    "per_channel_cast_to_fp8",
    "per_custom_dims_cast_to_fp8",
    "per_token_cast_to_fp8",
    "unpack_ue8m0_from_int",
]
