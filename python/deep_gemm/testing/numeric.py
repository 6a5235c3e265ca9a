"""Comparing results, for numpy arrays and PyTorch tensors."""

from __future__ import annotations

from typing import Any

import numpy as np

from deep_gemm.utils import arrays
from deep_gemm.utils.arrays import Array


def calc_diff(x: Array, y: Array) -> float:
    """1 - 2 x.y / (x.x + y.y): 0 for equal tensors, about half the relative squared error for close ones."""
    arrays.require_array(x, "calc_diff")
    arrays.require_array(y, "calc_diff")
    if tuple(x.shape) != tuple(y.shape):
        raise ValueError(
            f"calc_diff: got shapes {tuple(x.shape)} and {tuple(y.shape)}, expected one shape; "
            "reshape one of them"
        )
    x, y = arrays.double(x), arrays.double(y)
    denominator = (x * x + y * y).sum()
    if denominator == 0:
        return 0.0
    return float(1 - 2 * (x * y).sum() / denominator)


def count_bytes(*tensors: Any) -> int:
    """Bytes of all tensors, also inside tuples and lists; None counts nothing."""
    total = 0
    for tensor in tensors:
        if isinstance(tensor, tuple | list):
            total += count_bytes(*tensor)
        elif tensor is not None:
            total += arrays.num_bytes(tensor)
    return total


def assert_bitwise_equal(x: Array, y: Array, label: str = "") -> None:
    """Names the first element that differs, and how many bytes do."""
    for value in (x, y):
        arrays.require_array(value, "assert_bitwise_equal")
    prefix = f"{label}: " if label else ""
    if tuple(x.shape) != tuple(y.shape) or x.dtype != y.dtype:
        raise AssertionError(f"{prefix}got {x.dtype} {tuple(x.shape)}, expected {y.dtype} {tuple(y.shape)}")
    first, second = (arrays.bits(arrays.contiguous(t).reshape(-1), "uint8") for t in (x, y))
    wrong = first != second
    if not bool(wrong.any()):
        return
    itemsize = arrays.num_bytes(x) // max(1, int(np.prod(x.shape)))
    byte = int(arrays.cast(wrong, "int32").argmax())
    place = tuple(int(i) for i in np.unravel_index(byte // itemsize, tuple(x.shape)))
    raise AssertionError(
        f"{prefix}{int(wrong.sum())} of {wrong.shape[0]} bytes differ, first at {place}: got {x[place]}, "
        f"expected {y[place]}"
    )


__all__ = ["assert_bitwise_equal", "calc_diff", "count_bytes"]
