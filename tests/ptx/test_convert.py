"""Every conversion, exhaustively: all codes decode; all fp16 and bf16 values, all ties and their neighbours, and random
fp32 patterns encode. The reference is a table search over the target format's values in float64, so it shares nothing
with the codecs under test.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from ptx.number_formats import (
    BF16,
    BF16_NAN,
    E2M1,
    E2M3,
    E3M2,
    E4M3,
    E5M2,
    F16,
    F16_NAN,
    Target,
    bits,
    check,
    convert,
    interesting,
    pad,
)  # fmt: skip

Array = np.ndarray[Any, np.dtype[Any]]

# ---- fp32 pairs to 8-bit pairs and 16-bit pairs

PAIRS = [("e4m3x2", E4M3, "rn", True), ("e5m2x2", E5M2, "rn", True)]
WIDE_PAIRS = [("f16x2", F16, "rn"), ("f16x2", F16, "rz"), ("bf16x2", BF16, "rn"), ("bf16x2", BF16, "rz")]


@pytest.mark.parametrize("relu", [False, True], ids=["", "relu"])
@pytest.mark.parametrize(
    ("name", "target", "rounding", "saturate"), PAIRS, ids=lambda v: v if isinstance(v, str) else ""
)
def test_f32_to_fp8(
    run: Any, rng: np.random.Generator, name: str, target: Target, rounding: str, saturate: bool, relu: bool
) -> None:
    x = pad(interesting(target, rng))
    y = np.roll(x, 1)
    op = f"cvt.{rounding}.satfinite{'.relu' if relu else ''}.{name}.f32"
    got = convert(
        run,
        f'u16 r; asm("{op} %0, %1, %2;" : "=h"(r) : "f"(p.y[i]), "f"(p.x[i])); p.out[i] = r;',
        {"x": x, "y": y},
        np.uint16,
    )
    encode = lambda v: target.encode(v, rounding, saturate=saturate, relu=relu)  # noqa: E731
    check(got, encode(x) | encode(y) << 8, x)


@pytest.mark.parametrize("relu", [False, True], ids=["", "relu"])
@pytest.mark.parametrize(
    ("name", "target", "rounding"), WIDE_PAIRS, ids=lambda v: v if isinstance(v, str) else ""
)
def test_f32_to_16_bit_pairs(
    run: Any, rng: np.random.Generator, name: str, target: Target, rounding: str, relu: bool
) -> None:
    x = pad(interesting(target, rng))
    y = np.roll(x, 1)
    op = f"cvt.{rounding}{'.relu' if relu else ''}.{name}.f32"
    got = convert(
        run,
        f'u32 r; asm("{op} %0, %1, %2;" : "=r"(r) : "f"(p.y[i]), "f"(p.x[i])); p.out[i] = r;',
        {"x": x, "y": y},
        np.uint32,
    )
    check(got, target.encode(x, rounding, relu=relu) | target.encode(y, rounding, relu=relu) << 16, x)


@pytest.mark.parametrize("op", ["cvt.rn.f16.f32", "cvt.rz.f16.f32", "cvt.rn.bf16.f32", "cvt.rz.bf16.f32"])
def test_f32_to_16_bit(run: Any, rng: np.random.Generator, op: str) -> None:
    _, rounding, kind, _ = op.split(".")
    target = {"f16": F16, "bf16": BF16}[kind]
    x = pad(interesting(target, rng))
    got = convert(
        run, f'u16 r; asm("{op} %0, %1;" : "=h"(r) : "f"(p.x[i])); p.out[i] = r;', {"x": x}, np.uint16
    )
    check(got, target.encode(x, rounding), x)


@pytest.mark.parametrize("rounding", ["rna", "rn", "rz"])
def test_f32_to_tf32(run: Any, rng: np.random.Generator, rounding: str) -> None:
    x = pad(interesting(E4M3, rng))
    u = bits(x)
    exponent = u & np.uint32(0x7F800000)
    ties = (u & np.uint32(0xFFFFE000)) | np.uint32(0x1000)
    x = np.concatenate([x, np.where(exponent == 0x7F800000, u, ties).view(np.float32)])
    u = bits(x)
    got = convert(
        run,
        f'u32 r; asm("cvt.{rounding}.tf32.f32 %0, %1;" : "=r"(r) : "f"(p.x[i])); p.out[i] = r;',
        {"x": x},
        np.uint32,
    )
    magnitude = (u & np.uint32(0x7FFFFFFF)).astype(np.uint64)
    bump = {"rz": 0, "rna": 0x1000, "rn": 0xFFF + ((magnitude >> np.uint64(13)) & np.uint64(1))}[rounding]
    expected = (
        ((magnitude + np.uint64(bump) if isinstance(bump, int) else magnitude + bump) >> np.uint64(13))
        << np.uint64(13)
    ).astype(np.uint32) | (u & np.uint32(0x80000000))
    finite = np.isfinite(x)
    check(got[finite] & np.uint32(0xFFFFE000), expected[finite], x[finite])
    assert np.all(np.isnan(got.view(np.float32)) == np.isnan(x))
    assert np.all(got.view(np.float32)[np.isinf(x)] == x[np.isinf(x)])


# ---- decoding: every code


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("e4m3x2", ml_dtypes.float8_e4m3fn), ("e5m2x2", ml_dtypes.float8_e5m2)],
    ids=["e4m3", "e5m2"],
)
@pytest.mark.parametrize("relu", [False, True], ids=["", "relu"])
def test_fp8_to_f16(run: Any, name: str, dtype: Any, relu: bool) -> None:
    codes = np.arange(65536, dtype=np.uint16)
    op = f"cvt.rn{'.relu' if relu else ''}.f16x2.{name}"
    got = convert(
        run, f'u32 r; asm("{op} %0, %1;" : "=r"(r) : "h"(p.x[i])); p.out[i] = r;', {"x": codes}, np.uint32
    )
    with np.errstate(all="ignore"):
        halves = codes.view(np.uint8).view(dtype).astype(np.float16)
    expected = np.where(np.isnan(halves), F16_NAN, halves.view(np.uint16)).astype(np.uint16)
    if relu:
        expected = np.where(np.signbit(halves) & ~np.isnan(halves), 0, expected).astype(np.uint16)
    check(got, expected.view(np.uint32), codes)


@pytest.mark.parametrize(
    ("source", "dtype"), [("f16", np.float16), ("bf16", ml_dtypes.bfloat16)], ids=["f16", "bf16"]
)
def test_16_bit_to_f32(run: Any, source: str, dtype: Any) -> None:
    codes = np.arange(65536, dtype=np.uint16)
    got = convert(
        run,
        f'float r; asm("cvt.f32.{source} %0, %1;" : "=f"(r) : "h"(p.x[i])); p.out[i] = r;',
        {"x": codes},
        np.float32,
    )
    expected = codes.view(dtype).astype(np.float32)
    number = ~np.isnan(expected)
    check(bits(got)[number], bits(expected)[number], codes[number])
    assert np.isnan(got[~number]).all()


@pytest.mark.parametrize(("name", "target"), [("e4m3x2", E4M3), ("e5m2x2", E5M2)], ids=["e4m3", "e5m2"])
@pytest.mark.parametrize("relu", [False, True], ids=["", "relu"])
def test_f16_to_fp8(run: Any, name: str, target: Target, relu: bool) -> None:
    x = np.arange(65536, dtype=np.uint16)
    pairs = x.astype(np.uint32) | np.roll(x, 7).astype(np.uint32) << 16
    op = f"cvt.rn.satfinite{'.relu' if relu else ''}.{name}.f16x2"
    got = convert(
        run, f'u16 r; asm("{op} %0, %1;" : "=h"(r) : "r"(p.x[i])); p.out[i] = r;', {"x": pairs}, np.uint16
    )
    code = target.encode(x.view(np.float16), "rn", saturate=True, relu=relu)
    check(got, code | np.roll(code, 7) << 8, x)


# ---- formats that first exist on Blackwell


@pytest.mark.parametrize(
    ("name", "target", "constraint"),
    [("e2m1x2", E2M1, "b8"), ("e2m3x2", E2M3, "h"), ("e3m2x2", E3M2, "h")],
    ids=["e2m1", "e2m3", "e3m2"],
)
@pytest.mark.parametrize("relu", [False, True], ids=["", "relu"])
def test_f32_to_narrow(
    run_blackwell: Any, rng: np.random.Generator, name: str, target: Target, constraint: str, relu: bool
) -> None:
    x = pad(interesting(target, rng))
    y = np.roll(x, 1)
    op = f"cvt.rn.satfinite{'.relu' if relu else ''}.{name}.f32"
    if constraint == "b8":
        text = f'u16 r; asm("{{.reg .b8 t; {op} t, %1, %2; cvt.u16.u8 %0, t;}}" : "=h"(r) : "f"(p.y[i]), "f"(p.x[i]));'
    else:
        text = f'u16 r; asm("{op} %0, %1, %2;" : "=h"(r) : "f"(p.y[i]), "f"(p.x[i]));'
    got = convert(run_blackwell, text + " p.out[i] = r;", {"x": x, "y": y}, np.uint16)
    encode = lambda v: target.encode(v, "rn", saturate=True, relu=relu)  # noqa: E731
    check(got, encode(x) | encode(y) << (4 if constraint == "b8" else 8), x)


@pytest.mark.parametrize(
    ("name", "dtype", "width"),
    [
        ("e2m1x2", ml_dtypes.float4_e2m1fn, 4),
        ("e2m3x2", ml_dtypes.float6_e2m3fn, 6),
        ("e3m2x2", ml_dtypes.float6_e3m2fn, 6),
    ],
    ids=["e2m1", "e2m3", "e3m2"],
)
def test_narrow_to_f16(run_blackwell: Any, name: str, dtype: Any, width: int) -> None:
    code = np.arange(1 << width, dtype=np.uint16)
    low, high = (grid.ravel() for grid in np.meshgrid(code, code))
    packed = (low | high << (4 if width == 4 else 8)).astype(np.uint16)
    load = (
        "{.reg .b8 t; cvt.u8.u16 t, %1; cvt.rn.f16x2.e2m1x2 %0, t;}"
        if width == 4
        else f"cvt.rn.f16x2.{name} %0, %1;"
    )
    got = convert(
        run_blackwell,
        f'u32 r; asm("{load}" : "=r"(r) : "h"(p.x[i])); p.out[i] = r;',
        {"x": packed},
        np.uint32,
    )
    half = lambda c: c.astype(np.uint8).view(dtype).astype(np.float16).view(np.uint16).astype(np.uint32)  # noqa: E731
    check(got, half(low) | half(high) << 16, packed)


@pytest.mark.parametrize("rounding", ["rz", "rp"])
def test_f32_to_ue8m0(run_blackwell: Any, rng: np.random.Generator, rounding: str) -> None:
    powers = np.float32(2.0) ** np.arange(-149, 128, dtype=np.float32)
    with np.errstate(all="ignore"):
        near = np.concatenate(
            [powers, np.nextafter(powers, np.float32(0)), np.nextafter(powers, np.float32(np.inf))]
        )
        random = rng.integers(0, 2**32, 32768, dtype=np.uint32).view(np.float32)
    x = pad(np.concatenate([near, -near, np.float32([0, -0.0, np.inf, -np.inf, np.nan]), random]))
    op = f"cvt.{rounding}.satfinite.ue8m0x2.f32"
    got = convert(
        run_blackwell,
        f'u16 r; asm("{op} %0, %1, %2;" : "=h"(r) : "f"(1.0f), "f"(p.x[i])); p.out[i] = r;',
        {"x": x},
        np.uint16,
    )
    with np.errstate(all="ignore"):
        magnitude = np.abs(x.astype(np.float64))
        _, exponent = np.frexp(magnitude)
        exact = magnitude == np.ldexp(0.5, exponent)
        code = exponent - 1 + 127 + ((rounding == "rp") & ~exact)
    code = np.where(magnitude == 0, 0, np.where(np.isinf(magnitude), 254, np.clip(code, 0, 254)))
    check(got, np.where(np.isnan(x), 0xFF, code).astype(np.uint16) | 127 << 8, x)


def test_ue8m0_to_bf16(run_blackwell: Any) -> None:
    codes = np.arange(65536, dtype=np.uint16)
    got = convert(
        run_blackwell,
        'u32 r; asm("cvt.rn.bf16x2.ue8m0x2 %0, %1;" : "=r"(r) : "h"(p.x[i])); p.out[i] = r;',
        {"x": codes},
        np.uint32,
    )
    one = np.where(np.arange(256) == 255, BF16_NAN, np.where(np.arange(256) == 0, 0x40, np.arange(256) << 7))
    check(got, (one[codes & 255] | one[codes >> 8] << 16).astype(np.uint32), codes)
