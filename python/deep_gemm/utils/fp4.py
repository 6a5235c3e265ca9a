"""FP4 (E2M1) packing: two values in a byte, the first in the low nibble, one scale for each `gran_k` of a row.

The casts round as DeepGEMM's do: to nearest, a value half-way between two to the one nearer zero, zeros without a
sign. deep_gemm.fp4_formats has MXFP4 and NVFP4 with the formats' own rounding (ties to even).
"""

from __future__ import annotations

from itertools import pairwise

from deep_gemm.utils import arrays
from deep_gemm.utils.arrays import Array
from deep_gemm.utils.math import (
    align,
    ceil_div,
    pack_ue8m0_to_int,
    padded,
    require_gran_k,
    require_matrix,
    scale_of,
    unpack_ue8m0_from_int,
)

FP4_MAX = 6.0
FP4_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def _codes_of(x: Array) -> Array:
    """E2M1 codes, one in a byte."""
    code = arrays.zeros(x, x.shape, "uint8")
    for low, high in pairwise(FP4_VALUES):
        code = code + arrays.cast(abs(x) > (low + high) / 2, "uint8")
    return code | (arrays.cast((x < 0) & (code != 0), "uint8") << 3)


def pack_nibbles(codes: Array) -> Array:
    """uint8 [..., k], one code in a byte -> uint8 [..., k / 2], two in a byte, the first in the low nibble."""
    return arrays.contiguous(codes[..., ::2] | (codes[..., 1::2] << 4))


def unpack_nibbles(packed: Array) -> Array:
    """The inverse of pack_nibbles; takes bytes of any type."""
    pairs = arrays.bits(arrays.contiguous(packed), "uint8")
    codes = arrays.zeros(packed, (*pairs.shape[:-1], pairs.shape[-1] * 2), "uint8")
    codes[..., ::2] = pairs & 0xF
    codes[..., 1::2] = pairs >> 4
    return codes


def _pack(codes: Array) -> Array:
    return arrays.bits(pack_nibbles(codes), "int8")


def per_token_cast_to_fp4(
    x: Array, use_ue8m0: bool = False, gran_k: int = 128, use_packed_ue8m0: bool = False
) -> tuple[Array, Array]:
    """[m, k] -> int8 [m, k / 2] and scales [m, k / gran_k] rounded up.

    Packed scales fill up with 1.0 to a multiple of four.
    """
    require_matrix(x, "per_token_cast_to_fp4")
    require_gran_k(gran_k, "per_token_cast_to_fp4")
    m, k = x.shape
    if k % 2 != 0:
        raise ValueError(
            f"per_token_cast_to_fp4: got {k} columns, expected an even number; pad with a column of zeros"
        )
    if use_packed_ue8m0 and not use_ue8m0:
        raise ValueError(
            "per_token_cast_to_fp4: packed UE8M0 scales need use_ue8m0=True; "
            "pass it, or leave use_packed_ue8m0 out"
        )
    blocks = padded(x, m, align(k, gran_k)).reshape(m, ceil_div(k, gran_k), gran_k)
    scale = scale_of(arrays.amax(abs(blocks), (2,)), FP4_MAX, use_ue8m0)
    packed = _pack(_codes_of((blocks * (1.0 / scale[:, :, None])).reshape(m, -1)))
    values = arrays.contiguous(packed[:, : k // 2])
    if not use_packed_ue8m0:
        return values, scale
    filled = arrays.zeros(x, (m, align(scale.shape[1], 4)), "fp32") + 1.0
    filled[:, : scale.shape[1]] = scale
    return values, pack_ue8m0_to_int(filled)


def transpose_packed_fp4(a: Array) -> Array:
    """int8 [m, n / 2] -> int8 [n, m / 2]."""
    require_matrix(a, "transpose_packed_fp4")
    if not arrays.has_type(a, "int8") or a.shape[0] % 2 != 0:
        raise ValueError(
            f"transpose_packed_fp4: got {a.dtype} of shape {tuple(a.shape)}, expected int8 with an even number "
            "of rows; "
            "view it as int8, or pad with a row of zeros"
        )
    return _pack(arrays.contiguous(unpack_nibbles(a).T))


def cast_back_from_fp4(packed: Array, sf: Array, gran_k: int = 128, use_packed_ue8m0: bool = False) -> Array:
    """The fp32 matrix that per_token_cast_to_fp4 stands for."""
    for tensor in (packed, sf):
        require_matrix(tensor, "cast_back_from_fp4")
    require_gran_k(gran_k, "cast_back_from_fp4")
    scale = unpack_ue8m0_from_int(sf) if use_packed_ue8m0 else sf
    codes = unpack_nibbles(packed)
    m, k = codes.shape
    magnitude = arrays.zeros(scale, (m, k), "fp32")
    for code, value in enumerate(FP4_VALUES):
        magnitude = magnitude + arrays.cast((codes & 7) == code, "fp32") * value
    signed = magnitude * (1.0 - 2.0 * arrays.cast(codes >> 3, "fp32"))
    columns = arrays.zeros(scale, (m, align(k, gran_k)), "fp32").reshape(m, -1, gran_k)
    columns = columns + scale[:, : columns.shape[1], None]
    return signed * columns.reshape(m, -1)[:, :k]


__all__ = ["cast_back_from_fp4", "per_token_cast_to_fp4", "transpose_packed_fp4"]
