"""Tensors of a checkpoint as the parts of a QuantizedMatrix: every type and shape is checked, nothing is guessed.

A scale of the wrong order or type has as many bytes as the right one and gives plausible nonsense, so what does not fit
is refused, with the option that makes it fit.
"""

from __future__ import annotations

import math
from typing import Any

from deep_gemm import _C, quantized_codecs
from deep_gemm.utils import arrays
from deep_gemm.utils.arrays import Array

BYTES = ("int8", "uint8")
# Types that hold an element or a scale of each kind, besides bytes where it is narrower than 16 bits.
ELEMENTS = {
    "bf16": ("bfloat16",),
    "fp16": ("float16",),
    "fp8_e4m3": ("float8_e4m3fn", *BYTES),
    "int8": BYTES,
    "fp4_e2m1": ("float4_e2m1fn_x2", *BYTES),
}
SCALES = {
    "fp32": ("float32", "bfloat16", "float16", "float8_e8m0fnu"),  # the others are widened
    "fp16": ("float16", "bfloat16", "float32"),  # rounded
    "ue8m0": ("float8_e8m0fnu", *BYTES),
    "e4m3": ("float8_e4m3fn", *BYTES),
    "ue4m3": BYTES,
}
# What makes scales of other types fit.
SCALE_REMEDIES = {
    "fp32": "; bytes of UE8M0 are viewed as float8_e8m0fnu",
    "fp16": "; cast them",
    "ue8m0": "; powers of two are cast to float8_e8m0fnu",
    "e4m3": "; scales that E4M3 has are cast to float8_e4m3fn",
    "ue4m3": "; pass the bytes",
}
# The largest byte that is a scale, and what others are: NaN, or signs that scales do not have.
LARGEST_SCALES = {"ue8m0": 254, "e4m3": 126, "ue4m3": 127}
ORDERS = ("nk", "kn")
LARGEST_ZERO = 15
SQUARE = 32  # rows that share a scale where FP8 has one for 32 x 32


def type_name(x: Array) -> str:
    return str(x.dtype).rpartition(".")[2]


def require_type(format: str, what: str, x: Array, names: tuple[str, ...], remedy: str = "") -> None:
    if type_name(x) not in names:
        raise TypeError(f"{format}: {what} are {type_name(x)}, expected {' or '.join(names)}{remedy}")


def require_order(name: str, order: str) -> None:
    if order not in ORDERS:
        raise ValueError(f"{name}: got '{order}', expected 'nk' or 'kn'; pass one of them")


def with_unit_stride(x: Array) -> Array:
    return x if arrays.strides(x)[-1] == 1 or x.shape[-1] <= 1 else arrays.contiguous(x)


def adopt_data(
    format: str, row: dict[str, Any], data: Array, k: int | None, interleaved: bool, order: str
) -> tuple[Array, int, int]:
    """(data as the layout has it, n, k)."""
    arrays.require_array(data, format)
    if len(data.shape) != 2:
        raise ValueError(f"{format}: data has shape {tuple(data.shape)}, expected [n, row]; reshape it")
    bits, packed = row["element_bits"], row["element_bits"] == 4
    if interleaved and not packed:
        raise ValueError(
            f"{format}: got interleaved=True, expected it for 4 bits alone: elements of {bits} bits have one order; "
            "leave it out"
        )
    if packed and type_name(data) == "int32":  # eight codes in a word, the first in its low bits
        data = arrays.bits(arrays.contiguous(data.T if order == "kn" else data), "int8")
        order = "nk"
    elements = ELEMENTS["int8" if row["packing"] == "blocks" else row["element"]]
    require_type(format, "elements of data", data, elements, "; deep_gemm.quantize makes them of others")
    if order == "kn":
        if row["packing"] == "blocks" or interleaved:
            raise ValueError(f"{format}: data_order is 'kn', expected 'nk': blocks of a row stand together")
        data = data.T
    data = with_unit_stride(data) if bits == 16 else with_unit_stride(quantized_codecs.as_bytes(data))
    n, columns = (int(extent) for extent in data.shape)
    if row["packing"] == "blocks" and columns % 34:
        raise ValueError(
            f"{format}: data has {columns} bytes in a row, expected whole blocks of 34; "
            "pass the rows of a Q8_0 tensor"
        )
    if k is None:
        k = columns // 34 * 32 if row["packing"] == "blocks" else columns * (2 if packed else 1)
    if isinstance(k, bool) or not hasattr(k, "__index__"):
        raise TypeError(f"{format}: k is a {type(k).__name__}, expected an integer; convert it")
    k = int(k)
    if k < 1:
        raise ValueError(f"{format}: k is {k}, expected at least one column; pass weights with columns")
    if bits == 16:
        if columns != k:
            raise ValueError(
                f"{format}: data has {columns} columns, expected {k} as k; "
                "correct k, or pass the data of that matrix"
            )
        return data, n, k
    if packed and not interleaved:
        half = -(-k // 2)
        if columns < half:
            raise ValueError(
                f"{format}: data has {columns} bytes in a row, expected {half} for k = {k}; "
                "correct k, or pass the data of that matrix"
            )
        order_of = (
            quantized_codecs.interleave if row["packing"] == "interleaved" else quantized_codecs.to_fragments
        )
        data = order_of(without_tail(data[:, :half], k), k)
    expected = _C.row_bytes(format, k)
    if int(data.shape[1]) != expected:
        raise ValueError(
            f"{format}: data has {data.shape[1]} bytes in a row, expected {expected} for k = {k}; "
            "correct k, or pass the data of that matrix"
        )
    return data, n, k


def without_tail(data: Array, k: int) -> Array:
    """An odd k leaves half a byte, which is no element: zero, as quantize() has it."""
    if k % 2 == 0:
        return data
    pairs = arrays.bits(arrays.contiguous(data), "uint8")
    last = pairs[:, -1:] & 0xF
    whole = arrays.zeros(pairs, tuple(pairs.shape), "uint8")
    whole[:, :-1], whole[:, -1:] = pairs[:, :-1], last
    return arrays.bits(whole, "int8")


def shaped(format: str, what: str, x: Array, shape: tuple[int, int], order: str, k: int) -> Array:
    """x as [rows of blocks, blocks along k]; of one row or column also without that dimension."""
    got, wanted = tuple(int(extent) for extent in x.shape), shape if order == "nk" else shape[::-1]
    squeezed = [(extent,) for extent in shape if shape[0] == 1 or shape[1] == 1]
    if got == wanted:
        return arrays.contiguous(x.T if order == "kn" else x)
    if got in squeezed and got[0] == shape[0] * shape[1]:
        return arrays.contiguous(x).reshape(shape)
    turn = f"; scale_order='{'kn' if order == 'nk' else 'nk'}' turns them" if got == wanted[::-1] else ""
    raise ValueError(
        f"{format}: {what} have shape {got}, expected {wanted}{turn or f', as k is {k}; pass those of this matrix'}"
    )


def adopt_scales(
    format: str, row: dict[str, Any], scales: Array, shape: tuple[int, int], order: str, k: int
) -> Array:
    kind = row["scale"]
    arrays.require_array(scales, format)
    require_type(format, "scales", scales, SCALES[kind], SCALE_REMEDIES[kind])
    square = (-(-shape[0] // SQUARE), shape[1])
    if format == "fp8_32" and tuple(scales.shape) == (square if order == "nk" else square[::-1]) != shape:
        scales = quantized_codecs.by_element(scales.T if order == "nk" else scales, SQUARE, shape[0]).T
        order = "nk"
    scales = shaped(format, "scales", scales, shape, order, k)
    if kind == "fp16":
        return quantized_codecs.as_fp16(scales, format)
    if kind in LARGEST_SCALES:
        check_bytes(format, scales, LARGEST_SCALES[kind])
    return quantized_codecs.as_scales(scales, kind)


def check_bytes(format: str, scales: Array, largest: int) -> None:
    """As pack_fp4_weights: a scale that is NaN or negative was written by nobody who quantised finite weights."""
    codes = arrays.bits(arrays.contiguous(scales), "uint8")
    outside = codes > largest
    if bool(outside.any()):
        code = int(codes[outside][0])
        what = "NaN" if code & 0x7F == 0x7F else "a negative number"
        raise ValueError(
            f"{format}: a scale is the byte {code} ({what}), expected 0 to {largest}; repair the checkpoint"
        )


def adopt_zeros(format: str, zeros: Array, shape: tuple[int, int], order: str, k: int) -> Array:
    arrays.require_array(zeros, format)
    require_type(format, "zero points", zeros, BYTES, "; cast them")
    zeros = quantized_codecs.as_bytes(shaped(format, "zero points", zeros, shape, order, k))
    outside = (zeros < 0) | (zeros > LARGEST_ZERO)
    if bool(outside.any()):
        raise ValueError(
            f"{format}: a zero point is {int(zeros[outside][0]) & 0xFF}, expected 0 to {LARGEST_ZERO}; "
            "shift codes and zero points alike"
        )
    return zeros


def adopt_global(format: str, row: dict[str, Any], scale: Any) -> float:
    shape = tuple(getattr(scale, "shape", ()))
    if math.prod(shape) != 1:
        raise ValueError(
            f"{format}: global_scale has shape {shape}, expected one number; pass each matrix by itself"
        )
    value = float(scale.reshape(())) if shape else float(scale)
    if value != 1 and not row["has_global"]:
        raise ValueError(
            f"{format}: global_scale is {value}, expected 1: the layout has none; scale the scales"
        )
    if not 0 < value < math.inf:
        raise ValueError(
            f"{format}: global_scale is {value}, expected a positive number; it is 1 for a matrix of zeros"
        )
    return value


__all__ = ["adopt_data", "adopt_global", "adopt_scales", "adopt_zeros", "require_order", "type_name"]
