"""fp32 arithmetic is IEEE, bit for bit: every rounding mode, signed zeros, NaN, flush to zero, saturation."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from deep_gemm import _C
from deep_gemm.testing.device import readonly, run_kernel

SPECIAL = [
    0.0,
    -0.0,
    1.0,
    -1.0,
    1e-45,
    -1e-45,
    1.1754942e-38,
    3.4028235e38,
    -3.4028235e38,
    np.inf,
    -np.inf,
    np.nan,
]


def operands() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    bits = rng.integers(0, 2**32, (3, 1024), dtype=np.uint32)
    near = (bits & 0x807FFFFF) | (rng.integers(100, 154, bits.shape, dtype=np.uint32) << 23)
    values = np.where(rng.random(bits.shape) < 0.8, near, bits).astype(np.uint32).view(np.float32)
    a, b = np.meshgrid(np.float32(SPECIAL), np.float32(SPECIAL))
    c = np.resize(np.float32(SPECIAL), a.size)
    return tuple(
        np.concatenate([values[i], special.ravel()]).astype(np.float32) for i, special in enumerate((a, b, c))
    )


@np.errstate(over="ignore")
def exact_round(value: Fraction, mode: str) -> np.float32:
    """The fp32 nearest to a non-zero value in one direction."""
    guess = np.float32(float(value))
    down = guess
    if not np.isfinite(guess) or Fraction(float(guess)) > value:
        down = np.nextafter(guess, np.float32(-np.inf)) if guess != -np.inf else guess
    up = down
    if not np.isfinite(down) or Fraction(float(down)) < value:
        up = np.nextafter(down, np.float32(np.inf))
    return down if mode == "rm" or (mode == "rz" and value > 0) else up


@pytest.mark.parametrize("mode", ["rz", "rm", "rp"])
@pytest.mark.parametrize("name", ["add", "sub", "mul", "fma"])
def test_directed_rounding(name: str, mode: str) -> None:
    a, b, c = operands()
    count = 512
    a, b, c = a[:count], b[:count], c[:count]
    keep = np.isfinite(a) & np.isfinite(b) & np.isfinite(c)
    out = np.zeros(count, np.float32)
    third = ', "f"(c[i])' if name == "fma" else ""
    source = f"""
    extern "C" __global__ void f(const float* a, const float* b, const float* c, float* out) {{
        const int i = blockIdx.x * 32 + threadIdx.x;
        asm("{name}.{mode}.f32 %0, %1, %2{", %3" if third else ""};" : "=f"(out[i]) : "f"(a[i]), "f"(b[i]){third});
    }}"""
    run_kernel(
        _C.Device("emulator:sm_90a"),
        source,
        "f",
        readonly(a),
        readonly(b),
        readonly(c),
        out,
        grid=count // 32,
    )
    for x, y, z, got, finite in zip(a, b, c, out, keep, strict=True):
        if not finite:
            continue
        x, y, z = Fraction(float(x)), Fraction(float(y)), Fraction(float(z))
        value = {"add": x + y, "sub": x - y, "mul": x * y, "fma": x * y + z}[name]
        if value:
            assert got == exact_round(value, mode), (float(x), float(y), float(z), got)


@pytest.mark.parametrize("name", ["add", "sub", "mul", "div"])
def test_nearest_is_numpy(name: str) -> None:
    a, b, _ = operands()
    count = a.size // 32 * 32
    a, b = a[:count], b[:count]
    out = np.zeros(count, np.float32)
    source = f"""
    extern "C" __global__ void f(const float* a, const float* b, float* out) {{
        const int i = blockIdx.x * 32 + threadIdx.x;
        asm("{name}.rn.f32 %0, %1, %2;" : "=f"(out[i]) : "f"(a[i]), "f"(b[i]));
    }}"""
    run_kernel(_C.Device("emulator:sm_90a"), source, "f", readonly(a), readonly(b), out, grid=count // 32)
    with np.errstate(all="ignore"):
        expected = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide}[name](a, b)
    bits = np.where(np.isnan(expected), np.uint32(0x7FFFFFFF), expected.view(np.uint32))
    np.testing.assert_array_equal(out.view(np.uint32), bits)


@pytest.mark.parametrize("name", ["min", "max"])
@pytest.mark.parametrize("nan_wins", [False, True])
def test_extrema(name: str, nan_wins: bool) -> None:
    a, b, _ = operands()
    count = a.size // 32 * 32
    a, b = a[:count], b[:count]
    out = np.zeros(count, np.float32)
    source = f"""
    extern "C" __global__ void f(const float* a, const float* b, float* out) {{
        const int i = blockIdx.x * 32 + threadIdx.x;
        asm("{name}{".NaN" if nan_wins else ""}.f32 %0, %1, %2;" : "=f"(out[i]) : "f"(a[i]), "f"(b[i]));
    }}"""
    run_kernel(_C.Device("emulator:sm_90a"), source, "f", readonly(a), readonly(b), out, grid=count // 32)
    # Order by (value, sign of zero): -0 < +0.
    first = (a > b) | ((a == b) & ~np.signbit(a))
    chosen = np.where(first == (name == "max"), a, b)
    either = np.where(np.isnan(a), b, a)
    expected = np.where(np.isnan(a) | np.isnan(b), np.nan if nan_wins else either, chosen).astype(np.float32)
    bits = np.where(np.isnan(expected), np.uint32(0x7FFFFFFF), expected.view(np.uint32))
    np.testing.assert_array_equal(out.view(np.uint32), bits)


def test_flush_and_saturate() -> None:
    x = np.float32([1e-39, -1e-39, 2.0, -3.0, 0.25, np.nan, 1e-20, np.inf] * 4)
    out = np.zeros((2, 32), np.float32)
    source = """
    extern "C" __global__ void f(const float* x, float* out) {
        const int i = threadIdx.x;
        asm("mul.rn.ftz.f32 %0, %1, %2;" : "=f"(out[i]) : "f"(x[i]), "f"(1.0f));
        asm("add.rn.sat.f32 %0, %1, %2;" : "=f"(out[32 + i]) : "f"(x[i]), "f"(0.0f));
    }"""
    run_kernel(_C.Device("emulator:sm_90a"), source, "f", readonly(x), out)
    flushed = np.where(np.abs(x) < 1.17549435e-38, np.copysign(np.float32(0), x), x)
    np.testing.assert_array_equal(np.signbit(out[0, :2]), [False, True])
    np.testing.assert_array_equal(out[0], flushed)
    np.testing.assert_array_equal(out[1], np.nan_to_num(np.clip(x, 0, 1), nan=0.0))
