"""D = C + A B^T in float64, written for reading: no tiling, no shortcuts.

Each function returns the exact result of the inputs it was given (their quantisation included) and how far a right
kernel's sums may be from it, element by element (reference/hopper.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from reference import hopper

Array = npt.NDArray[Any]

SCALE_BLOCK = 128
GROUP_ALIGNMENT = 128


@dataclass(frozen=True)
class Scaled:
    """An FP8 matrix [..., rows, k] and its scales, one for each `rows_per_scale` rows and `columns_per_scale`."""

    values: Array
    scales: Array
    rows_per_scale: int
    columns_per_scale: int = SCALE_BLOCK


def dense_operand(operand: Scaled | Array) -> Array:
    """The matrix that an operand stands for."""
    if not isinstance(operand, Scaled):
        return operand.astype(np.float64)
    rows, k = operand.values.shape[-2:]
    by_row = np.repeat(operand.scales.astype(np.float64), operand.rows_per_scale, axis=-2)[..., :rows, :]
    by_element = np.repeat(by_row, operand.columns_per_scale, axis=-1)[..., :k]
    return operand.values.astype(np.float64) * by_element


def take(operand: Scaled | Array, index: Any) -> Scaled | Array:
    """Some groups or rows; rows of an operand whose scales are per row."""
    if isinstance(operand, Scaled):
        return Scaled(operand.values[index], operand.scales[index], operand.rows_per_scale)
    return operand[index]


def sum_error(a: Scaled | Array, b: Scaled | Array) -> Array:
    """How far the sums of a right kernel may be from A B^T.

    BF16: fp32 sums of exact products, whose order is the plan's: 2^-19 of what the terms add up to. FP8: see
    hopper.accumulation_bound; promotion then rounds the product of two scales and an fma for each block of K, and a
    split of K adds a few sums more.
    """
    magnitude = np.abs(dense_operand(a)) @ np.abs(dense_operand(b)).T
    if not isinstance(a, Scaled) or not isinstance(b, Scaled):
        return magnitude * 2.0**-19
    k = a.values.shape[1]
    error = magnitude * (-(-k // SCALE_BLOCK) + 16) * 2.0**-24
    for block in range(-(-k // SCALE_BLOCK)):
        along_k = slice(block * SCALE_BLOCK, (block + 1) * SCALE_BLOCK)
        scale_a, scale_b = (
            np.repeat(np.abs(x.scales[:, block].astype(np.float64)), x.rows_per_scale)[: len(x.values)]
            for x in (a, b)
        )
        parts = (x.values[:, along_k].astype(np.float64) for x in (a, b))
        error += hopper.accumulation_bound(*parts) * np.outer(scale_a, scale_b)
    return error


def gemm(a: Scaled | Array, b: Scaled | Array, c: Array | None = None) -> tuple[Array, Array]:
    """(D, error of the sums) of one matrix product; adding C is one more rounding to fp32."""
    product, error = dense_operand(a) @ dense_operand(b).T, sum_error(a, b)
    if c is None:
        return product, error
    wide = c.astype(np.float64)
    return product + wide, error + (np.abs(product) + np.abs(wide)) * 2.0**-23


def contiguous(a: Scaled | Array, b: Scaled | Array, group_of_row: Array) -> tuple[Array, Array]:
    """Row i times the matrix of its group; a row of no group is zero."""
    matrices = b.values if isinstance(b, Scaled) else b
    d = np.zeros((len(group_of_row), matrices.shape[1]))
    error = np.zeros_like(d)
    for group in range(len(matrices)):
        mine = group_of_row == group
        d[mine], error[mine] = gemm(take(a, mine), take(b, group))
    return d, error


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
    shape = (a.values if isinstance(a, Scaled) else a).shape
    d = np.full((*shape[:2], (b.values if isinstance(b, Scaled) else b).shape[1]), np.nan)
    error = np.full_like(d, np.nan)
    for group, rows in enumerate(int(rows) for rows in valid_rows):
        d[group, :rows], error[group, :rows] = gemm(take(take(a, group), slice(rows)), take(b, group))
    return d, error


def tolerance(d: Array, error: Array, output: str) -> Array:
    """How far a right kernel's output may be from `d`, whose sums may be off by `error`: the rounding of bf16; or, in
    fp32, four of them, for C and the sums that CTAs and warpgroups along K have of their own are added one by one."""
    rounding = 2.0**-8 if output == "bf16" else 4 * 2.0**-24
    return error * (1 + rounding) + np.abs(d) * rounding + 1e-30
