"""How Hopper's tensor core adds: the published model of one instruction, whole FP8 products in a kernel's order, and a
bound on the distance from the exact sum that holds whatever the data.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

BLOCK = 128  # elements of K between two promotions
STEP = 32  # elements of K of one FP8 instruction


def fused_sum(a: Array, b: Array, c: Array, kind: str) -> Array:
    """One instruction of the Hopper model: align to the largest exponent, truncate at F bits, add, truncate to R bits."""
    fraction, result = (13, 13) if kind in ("e4m3", "e5m2") else (25, 23)
    smallest = {"e4m3": -6, "e5m2": -14, "f16": -14, "bf16": -126}[kind]

    def exponent(x: Array, minimum: int) -> Array:
        return np.where(x == 0, -(10**6), np.maximum(np.frexp(x)[1] - 1, minimum))

    a64, b64, c64 = a.astype(np.float64), b.astype(np.float64), c.astype(np.float64)
    products = a64[:, None, :] * b64[None, :, :]
    exponents = exponent(a64, smallest)[:, None, :] + exponent(b64, smallest)[None, :, :]
    largest = np.maximum(exponents.max(axis=2), exponent(c64, -126))
    unit = np.ldexp(1.0, np.maximum(largest, -500) - fraction)
    total = np.trunc(products / unit[..., None]).sum(axis=2) + np.trunc(c64 / unit)
    value = total * unit
    step = np.ldexp(1.0, np.maximum(np.frexp(value)[1] - 1, -126) - result)
    return np.where(value == 0, 0.0, np.trunc(value / step) * step)


def fp8_block_sum(a: Array, b: Array) -> Array:
    """a [m, <= 128] b [n, <= 128]^T of E4M3, as four instructions add it."""
    total = np.zeros((len(a), len(b)))
    for k in range(0, a.shape[1], STEP):
        total = fused_sum(a[:, k : k + STEP], b[:, k : k + STEP], total, "e4m3")
    return total


def fma_fp32(x: Array, y: Array, z: Array) -> Array:
    """x y + z of fp32 numbers, rounded once. x y must fit in float64, as it does where one has few bits."""
    product, wide = x.astype(np.float64) * y.astype(np.float64), z.astype(np.float64)
    total = product + wide
    part = total - product
    lost = (product - (total - part)) + (wide - part)  # what rounding to float64 lost, exactly
    # Rounding to odd: a second rounding cannot meet a tie that is none.
    even = (total.view(np.int64) & 1) == 0
    odd = np.nextafter(total, np.where(lost > 0, np.inf, -np.inf))
    return np.where((lost != 0) & even, odd, total).astype(np.float32)


def fp8_gemm(a: Array, scale_a: Array, b: Array, scale_b: Array) -> Array:
    """D in fp32, bit for bit, of a kernel that takes K in order: sum = fma(scale_a scale_b, block, sum).

    a [m, k] and b [n, k] of E4M3, scales [m, k / 128] and [n, k / 128] (already one for each row).
    """
    total = np.zeros((len(a), len(b)), np.float32)
    for block in range(-(-a.shape[1] // BLOCK)):
        k = slice(block * BLOCK, (block + 1) * BLOCK)
        scales = scale_a[:, block, None] * scale_b[None, :, block]
        total = fma_fp32(scales, fp8_block_sum(a[:, k], b[:, k]).astype(np.float32), total)
    return total


def accumulation_bound(a: Array, b: Array) -> Array:
    """How far fp8_block_sum of a [m, <= 128], b [n, <= 128] (E4M3 numbers in float64) may be from the exact sum.

    One instruction aligns its 32 products and the sum so far to the largest exponent among them and cuts each 2^-13
    below it, then cuts their sum at 13 bits: 33 + 1 times less than 2^-13 of the largest of those numbers. The largest
    product is at most the product of the largest elements, and a subnormal element aligns as if it were 2^-6. The
    numbers that are cut are themselves off by the error so far; 35 in the place of 34 is more than that.
    """
    error, after = np.zeros((len(a), len(b))), np.zeros((len(a), len(b)))
    for k in range(0, a.shape[1], STEP):
        left, right = a[:, k : k + STEP], b[:, k : k + STEP]
        tops = [np.abs(x).max(axis=1) for x in (left, right)]
        tops = [np.where(top == 0, 0.0, np.maximum(top, 2.0**-6)) for top in tops]
        before, after = after, after + left @ right.T
        largest = np.maximum(np.outer(*tops), np.maximum(np.abs(before), np.abs(after)) + error)
        error = error + 35 * 2.0**-13 * largest
    return error
