"""D = C + A B^T in float64, written for reading: no tiling, no shortcuts.

Each function returns the exact result of the inputs it was given (their quantisation included) and `magnitude`, the
sum of |a b| over K for each element, by which the rounding errors of a kernel are bounded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

SCALE_BLOCK = 128
GROUP_ALIGNMENT = 128


@dataclass(frozen=True)
class Scaled:
    """An FP8 matrix [..., rows, k] and its scales, one for each `rows_per_scale` rows and 128 columns."""

    values: Array
    scales: Array
    rows_per_scale: int


def dense_operand(operand: Scaled | Array) -> Array:
    """The matrix that an operand stands for."""
    if not isinstance(operand, Scaled):
        return operand.astype(np.float64)
    rows, k = operand.values.shape[-2:]
    by_row = np.repeat(operand.scales.astype(np.float64), operand.rows_per_scale, axis=-2)[..., :rows, :]
    by_element = np.repeat(by_row, SCALE_BLOCK, axis=-1)[..., :k]
    return operand.values.astype(np.float64) * by_element


def take(operand: Scaled | Array, index: Any) -> Scaled | Array:
    """Some groups or rows; rows of an operand whose scales are per row."""
    if isinstance(operand, Scaled):
        return Scaled(operand.values[index], operand.scales[index], operand.rows_per_scale)
    return operand[index]


def gemm(a: Scaled | Array, b: Scaled | Array, c: Array | None = None) -> tuple[Array, Array]:
    """(D, magnitude) of one matrix product."""
    left, right = dense_operand(a), dense_operand(b)
    product = left @ right.T
    magnitude = np.abs(left) @ np.abs(right).T
    if c is None:
        return product, magnitude
    return product + c.astype(np.float64), magnitude + np.abs(c.astype(np.float64))


def contiguous(a: Scaled | Array, b: Scaled | Array, group_of_row: Array) -> tuple[Array, Array]:
    """Row i times the matrix of its group; a row of no group is zero."""
    matrices = dense_operand(b)
    rows = dense_operand(a)
    d = np.zeros((rows.shape[0], matrices.shape[1]))
    magnitude = np.zeros_like(d)
    for group in range(matrices.shape[0]):
        mine = group_of_row == group
        d[mine] = rows[mine] @ matrices[group].T
        magnitude[mine] = np.abs(rows[mine]) @ np.abs(matrices[group]).T
    return d, magnitude


def groups_of_psum(ends: Array, num_rows: int) -> Array:
    """The group of each row of a prefix-sum layout, -1 for the gaps."""
    group_of_row = np.full(num_rows, -1, np.int32)
    start = 0
    for group, end in enumerate(int(end) for end in ends):
        group_of_row[start:end] = group
        start = max(start, -(-end // GROUP_ALIGNMENT) * GROUP_ALIGNMENT)
    return group_of_row


def masked(a: Scaled | Array, b: Scaled | Array, valid_rows: Array) -> tuple[Array, Array]:
    """Group by group; rows at and beyond `valid_rows` are NaN here: the result says nothing about them."""
    left, right = dense_operand(a), dense_operand(b)
    d = np.full((left.shape[0], left.shape[1], right.shape[1]), np.nan)
    magnitude = np.full_like(d, np.nan)
    for group, rows in enumerate(int(rows) for rows in valid_rows):
        d[group, :rows] = left[group, :rows] @ right[group].T
        magnitude[group, :rows] = np.abs(left[group, :rows]) @ np.abs(right[group]).T
    return d, magnitude


def tolerance(d: Array, magnitude: Array, operands: str, output: str) -> Array:
    """How far a right kernel may be from `d`.

    FP8: Hopper's tensor cores keep 13 bits below the largest term of a sum of 32 products and cut the rest off, four
    times in 128 elements, then the sum is promoted: at most 4 * 2^-12 of what the terms add up to; the terms of a
    sum have one sign only in the worst case, so a quarter of it is already generous. BF16: fp32 sums of terms in
    any order. Then one rounding to the output.
    """
    accumulation = 2.0**-12 if operands == "fp8_e4m3" else 2.0**-19
    rounding = 2.0**-8 if output == "bf16" else 2.0**-22
    return magnitude * accumulation + np.abs(d) * rounding + 1e-30
