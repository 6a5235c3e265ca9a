"""Number formats as tables of values, and the harness of the conversion tests: one kernel, out[i] = f(x[i])."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

F16_NAN, BF16_NAN, FP8_NAN = 0x7FFF, 0x7FFF, 0x7F


class Target:
    """A number format as the sorted list of its non-negative finite values; the code is the position."""

    def __init__(self, dtype: Any, max_finite: int, nan: int, infinity: int | None, sign: int) -> None:
        codes = np.arange(max_finite + 1)
        storage = np.uint16 if np.dtype(dtype).itemsize == 2 else np.uint8
        self.values = codes.astype(storage).view(dtype).astype(np.float64)
        self.max_finite, self.nan, self.infinity, self.sign = max_finite, nan, infinity, sign

    def encode(self, x: Array, rounding: str, *, saturate: bool = False, relu: bool = False) -> Array:
        with np.errstate(invalid="ignore"):  # signalling NaNs
            value = x.astype(np.float64)
        negative = np.signbit(value)
        magnitude = np.abs(np.where(np.isnan(value), 0.0, value))
        below = np.searchsorted(self.values, magnitude, side="right") - 1
        low = self.values[below]
        above = np.minimum(below + 1, self.max_finite)
        step = self.values[above] - low
        # Above the largest value the next step has the size of the last one.
        step = np.where(below == self.max_finite, self.values[-1] - self.values[-2], step)
        with np.errstate(invalid="ignore"):
            rest = magnitude - low
            up = {
                "rn": (rest > step / 2) | ((rest == step / 2) & (below % 2 == 1)),
                "rna": rest >= step / 2,
                "rz": np.zeros_like(negative),
                "rm": negative & (rest > 0),
                "rp": ~negative & (rest > 0),
            }[rounding]
        code = below + (up & (magnitude != 0))
        overflow = code > self.max_finite
        limit = self.max_finite if saturate or self.infinity is None else self.infinity
        code = np.where(overflow, limit, code)
        if self.infinity is not None and not saturate:
            code = np.where(np.isinf(value), self.infinity, code)
        else:
            code = np.where(np.isinf(value), self.max_finite, code)
        code = np.where(negative, code | self.sign, code)
        if relu:
            code = np.where(negative, 0, code)
        return np.where(np.isnan(value), self.nan, code).astype(np.uint32)


E4M3 = Target(ml_dtypes.float8_e4m3fn, 0x7E, FP8_NAN, None, 0x80)
E5M2 = Target(ml_dtypes.float8_e5m2, 0x7B, FP8_NAN, 0x7C, 0x80)
E2M1 = Target(ml_dtypes.float4_e2m1fn, 0x7, 0x7, None, 0x8)
E2M3 = Target(ml_dtypes.float6_e2m3fn, 0x1F, 0x1F, None, 0x20)
E3M2 = Target(ml_dtypes.float6_e3m2fn, 0x1F, 0x1F, None, 0x20)
F16 = Target(np.float16, 0x7BFF, F16_NAN, 0x7C00, 0x8000)
BF16 = Target(ml_dtypes.bfloat16, 0x7F7F, BF16_NAN, 0x7F80, 0x8000)


def bits(values: Array) -> Array:
    return np.ascontiguousarray(values, np.float32).view(np.uint32)


def interesting(target: Target, rng: np.random.Generator) -> Array:
    """All fp16 and bf16 values, the target's values and ties with their fp32 neighbours, random patterns."""
    halves = np.arange(65536, dtype=np.uint16)
    with np.errstate(all="ignore"):
        ties = ((target.values[1:] + target.values[:-1]) / 2).astype(np.float32)
        grid = np.concatenate([target.values.astype(np.float32), ties, np.float32([2 * target.values[-1]])])
        near = np.concatenate(
            [grid, np.nextafter(grid, np.float32(0)), np.nextafter(grid, np.float32(np.inf))]
        )
        return np.concatenate(
            [
                halves.view(np.float16).astype(np.float32),
                halves.view(ml_dtypes.bfloat16).astype(np.float32),
                near,
                -near,
                rng.integers(0, 2**32, 32768, dtype=np.uint32).view(np.float32),
            ]
        )


def pad(values: Array, multiple: int = 256) -> Array:
    return np.concatenate([values, np.zeros(-len(values) % multiple, values.dtype)])


LOOP = "for (u32 i = blockIdx.x * blockDim.x + threadIdx.x; i < p.n; i += gridDim.x * blockDim.x)"


def convert(run: Any, statement: str, sources: dict[str, Array], out_dtype: Any) -> Array:
    """out[i] = statement of the sources' element i."""
    n = len(next(iter(sources.values())))
    out = np.zeros(n, out_dtype)
    run(f"{LOOP} {{ {statement} }}", {**sources, "out": out, "n": n}, grid=4, block=256)
    return out


def check(got: Array, expected: Array, inputs: Array) -> None:
    wrong = np.flatnonzero(got != expected)
    shown = [f"{inputs[i]!r} -> {got[i]:#x}, expected {expected[i]:#x}" for i in wrong[:8]]
    assert not len(wrong), f"{len(wrong)} of {len(got)} differ: " + "; ".join(shown)
