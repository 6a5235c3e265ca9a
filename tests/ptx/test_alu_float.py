"""Floating-point arithmetic: IEEE results bit for bit, approximations within their documented error, 16-bit pairs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from ptx.alu import Array, Op, check, execute, operands, same


def ftz(x: Array) -> Array:
    return np.where((x != 0) & (np.abs(x) < np.float32(2.0**-126)), np.copysign(np.float32(0), x), x).astype(
        np.float32
    )


def flushed(function: Callable[..., Any]) -> Callable[..., Array]:
    return lambda *xs: ftz(np.asarray(function(*(ftz(x) for x in xs)), np.float32))


def fma32(a: Array, b: Array, c: Array) -> Array:
    """fp32 fused multiply-add: the product is exact in float64; the sum is made odd before the second rounding."""
    product = a.astype(np.float64) * b.astype(np.float64)
    total = product + c.astype(np.float64)
    # Two-sum error: non-zero means total is inexact, then force its last bit to 1 (rounding to odd).
    part = total - product
    error = (product - (total - part)) + (c.astype(np.float64) - part)
    raw = total.view(np.int64)
    inexact = np.isfinite(total) & (error != 0) & np.isfinite(error)
    toward = np.where((error > 0) == (total > 0), raw, raw - 1)
    odd = np.where(inexact, toward | 1, raw)
    return odd.view(np.float64).astype(np.float32)


def fmin(a: Array, b: Array) -> Array:
    low = np.fmin(a, b)
    return np.where((a == 0) & (b == 0), np.where(np.signbit(a) | np.signbit(b), -0.0, 0.0), low).astype(
        a.dtype
    )


def fmax(a: Array, b: Array) -> Array:
    high = np.fmax(a, b)
    return np.where((a == 0) & (b == 0), np.where(np.signbit(a) & np.signbit(b), -0.0, 0.0), high).astype(
        a.dtype
    )


def saturate(x: Array) -> Array:
    return np.where(np.isnan(x) | (x <= 0), np.float32(0), np.minimum(x, np.float32(1))).astype(np.float32)


FLOAT = [
    Op("add.f32", "f32 f32 f32", np.add),
    Op("sub.f32", "f32 f32 f32", np.subtract),
    Op("mul.f32", "f32 f32 f32", np.multiply),
    Op("add.ftz.f32", "f32 f32 f32", flushed(np.add)),
    Op("mul.ftz.f32", "f32 f32 f32", flushed(np.multiply)),
    Op("add.sat.f32", "f32 f32 f32", lambda a, b: saturate(a + b)),
    Op("fma.rn.f32", "f32 f32 f32 f32", fma32),
    Op("fma.rn.ftz.f32", "f32 f32 f32 f32", flushed(fma32)),
    Op("fma.rn.sat.f32", "f32 f32 f32 f32", lambda a, b, c: saturate(fma32(a, b, c))),
    Op("div.rn.f32", "f32 f32 f32", np.divide),
    Op("rcp.rn.f32", "f32 f32", lambda a: np.float32(1) / a),
    Op("sqrt.rn.f32", "f32 f32", np.sqrt),
    Op("min.f32", "f32 f32 f32", fmin),
    Op("max.f32", "f32 f32 f32", fmax),
    Op("min.NaN.f32", "f32 f32 f32", lambda a, b: np.where(np.isnan(a) | np.isnan(b), np.float32(np.nan), fmin(a, b))),
    Op("max.NaN.f32", "f32 f32 f32", lambda a, b: np.where(np.isnan(a) | np.isnan(b), np.float32(np.nan), fmax(a, b))),
    Op("abs.f32", "f32 f32", np.abs),
    Op("neg.f32", "f32 f32", np.negative),
    Op("copysign.f32", "f32 f32 f32", lambda a, b: np.copysign(b, a)),
    Op("add.f64", "f64 f64 f64", np.add),
    Op("mul.f64", "f64 f64 f64", np.multiply),
    Op("div.rn.f64", "f64 f64 f64", np.divide),
    Op("cvt.f64.f32", "f64 f32", lambda a: a.astype(np.float64)),
    Op("cvt.rn.f32.f64", "f32 f64", lambda a: a.astype(np.float32)),
    Op("ex2.approx.f32", "f32 f32", lambda a: np.exp2(a.astype(np.float64)).astype(np.float32), 3e-7),
    Op("rcp.approx.f32", "f32 f32", lambda a: (1 / a.astype(np.float64)).astype(np.float32), 3e-7),
    Op("rcp.approx.ftz.f32", "f32 f32", lambda a: ftz((1 / ftz(a).astype(np.float64)).astype(np.float32)), 3e-7),
    Op("rsqrt.approx.f32", "f32 f32", lambda a: (1 / np.sqrt(a.astype(np.float64))).astype(np.float32), 5e-7),
    Op("sqrt.approx.f32", "f32 f32", lambda a: np.sqrt(a.astype(np.float64)).astype(np.float32), 5e-7),
    Op("div.full.f32", "f32 f32 f32", lambda a, b: a / b, 5e-7),
]  # fmt: skip


@pytest.mark.parametrize("op", FLOAT, ids=str)
def test_float(run: Any, rng: np.random.Generator, op: Op) -> None:
    if op.text == "div.full.f32":
        a, b = operands(["f32", "f32"], rng)
        keep = (
            (np.abs(b) > 1e-30)
            & (np.abs(b) < 1e30)
            & np.isfinite(a)
            & (np.abs(a) < 1e6)
            & ((np.abs(a) > 1e-4) | (a == 0))
        )
        got, expected = execute(run, op, [a[keep], b[keep]]), a[keep] / b[keep]
        assert same(got, expected, op.tolerance).all()
        return
    check(run, op, rng)


@pytest.mark.parametrize("name", ["lg2", "sin", "cos", "tanh"])
def test_approximate_functions(run: Any, rng: np.random.Generator, name: str) -> None:
    """Absolute error: these lose relative accuracy near their zeros, on the GPU too."""
    x = rng.uniform(0.01 if name == "lg2" else -3.1, 3.1, 1024).astype(np.float32)
    got = execute(run, Op(f"{name}.approx.f32", "f32 f32", np.sin), [x])
    function = {"lg2": np.log2, "sin": np.sin, "cos": np.cos, "tanh": np.tanh}[name]
    np.testing.assert_allclose(
        got, function(x.astype(np.float64)), atol=6e-4 if name == "tanh" else 2e-6, rtol=0
    )


HALVES = {"f16x2": np.float16, "bf16x2": ml_dtypes.bfloat16}
HALF_OPS: dict[str, Callable[..., Any]] = {
    "add": lambda a, b: a + b,
    "mul": lambda a, b: a * b,
    "min": np.fmin,
    "max": np.fmax,
    "fma": lambda a, b, c: a * b + c,
}


@pytest.mark.parametrize("name", list(HALF_OPS))
@pytest.mark.parametrize("kind", list(HALVES))
def test_half_pairs(run: Any, rng: np.random.Generator, kind: str, name: str) -> None:
    """Both halves of packed 16-bit arithmetic; one rounding, of the float64 result, which holds the exact one."""
    count = 3 if name == "fma" else 2
    dtype = HALVES[kind]
    values = [(rng.standard_normal(2048) * 4).astype(np.float32).astype(dtype) for _ in range(count)]
    packed = [v.view(np.uint16).view(np.uint32) for v in values]
    op = Op(f"{name}.{'rn.' if name == 'fma' else ''}{kind}", " ".join(["b32"] * (count + 1)), np.add)
    got = execute(run, op, packed).view(np.uint16).view(dtype)
    exact = HALF_OPS[name](*(v.astype(np.float64) for v in values))
    np.testing.assert_array_equal(got.astype(np.float64), exact.astype(dtype).astype(np.float64))
