"""Conversions between integers and floats, of every rounding: clamping, NaN, ties, and rounding to an integral float."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from ptx.number_formats import BF16, F16, bits, check, convert, pad

FLOAT_TO_INT = [
    f"cvt.{rounding}.{kind}.f32"
    for rounding in ("rni", "rzi", "rmi", "rpi")
    for kind in ("s32", "u32", "s64", "u64")
]
INT_RANGES = {
    "s32": (-(2**31), 2**31 - 1),
    "u32": (0, 2**32 - 1),
    "s64": (-(2**63), 2**63 - 1),
    "u64": (0, 2**64 - 1),
}


@pytest.mark.parametrize("op", FLOAT_TO_INT)
def test_f32_to_integer(run: Any, rng: np.random.Generator, op: str) -> None:
    _, rounding, kind, _ = op.split(".")
    low, high = INT_RANGES[kind]
    x = pad(
        np.concatenate(
            [
                np.arange(-600, 600, dtype=np.float32) / 4,
                np.float32(
                    [
                        2.0**31,
                        2.0**32,
                        2.0**63,
                        2.0**64,
                        -(2.0**31),
                        -(2.0**63),
                        2147483520.0,
                        np.inf,
                        -np.inf,
                        np.nan,
                        -0.0,
                    ]
                ),
                rng.integers(0, 2**32, 4096, dtype=np.uint32).view(np.float32),
            ]
        )
    )
    wide = kind.endswith("64")
    c, constraint = ("u64", "l") if wide else ("u32", "r")
    got = convert(
        run,
        f'{c} r; asm("{op} %0, %1;" : "={constraint}"(r) : "f"(p.x[i])); p.out[i] = r;',
        {"x": x},
        np.uint64 if wide else np.uint32,
    )
    function = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}[rounding]
    # NaN converts to 0 in 32 bits and to the top bit alone in 64.
    nan = 1 << 63 if wide else 0
    rounded = [function(np.float64(v)) for v in x]
    mask = 2 ** (64 if wide else 32) - 1
    expected = [
        nan if np.isnan(v) else (high if v >= high else low if v <= low else int(v)) & mask for v in rounded
    ]
    check(got, np.array(expected, dtype=got.dtype), x)


@pytest.mark.parametrize("rounding", ["rn", "rz", "rm", "rp"])
@pytest.mark.parametrize("kind", ["s32", "u32"])
def test_integer_to_f32(run: Any, rng: np.random.Generator, kind: str, rounding: str) -> None:
    x = pad(
        np.concatenate(
            [
                np.uint32(
                    [0, 1, 2**24, 2**24 + 1, 2**24 + 3, 2**25 + 2, 2**31 - 1, 2**31, 2**32 - 1, 2**32 - 129]
                ),
                rng.integers(0, 2**32, 4096, dtype=np.uint32),
            ]
        ).astype(np.uint32)
    )
    got = convert(
        run,
        f'float r; asm("cvt.{rounding}.f32.{kind} %0, %1;" : "=f"(r) : "r"(p.x[i])); p.out[i] = r;',
        {"x": x},
        np.float32,
    )
    exact = x.view(np.int32).astype(np.float64) if kind == "s32" else x.astype(np.float64)
    nearest = exact.astype(np.float32)
    down = np.where(nearest.astype(np.float64) > exact, np.nextafter(nearest, np.float32(-np.inf)), nearest)
    up = np.where(nearest.astype(np.float64) < exact, np.nextafter(nearest, np.float32(np.inf)), nearest)
    expected = {"rn": nearest, "rm": down, "rp": up, "rz": np.where(exact < 0, up, down)}[rounding]
    check(bits(got), bits(expected), x)


@pytest.mark.parametrize(
    ("op", "expected"),
    [
        ("cvt.u32.u8", lambda x: x & 0xFF),
        ("cvt.s32.s8", lambda x: (x & 0xFF).astype(np.uint8).view(np.int8).astype(np.int32).view(np.uint32)),
        ("cvt.u32.u16", lambda x: x & 0xFFFF),
        (
            "cvt.s32.s16",
            lambda x: (x & 0xFFFF).astype(np.uint16).view(np.int16).astype(np.int32).view(np.uint32),
        ),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_integer_widths(run: Any, rng: np.random.Generator, op: str, expected: Any) -> None:
    x = rng.integers(0, 2**32, 1024, dtype=np.uint32)
    source = op.split(".")[-1]
    text = (
        f'u32 r; asm("{{.reg .b16 h; .reg .b{source[1:]} t; cvt.u16.u32 h, %1; mov.b16 h, h; '
        f'cvt.{source}.u32 t, %1; {op} %0, t;}}" : "=r"(r) : "r"(p.x[i])); p.out[i] = r;'
    )
    check(convert(run, text, {"x": x}, np.uint32), expected(x).astype(np.uint32), x)


ROUND_TO_INTEGRAL = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


@pytest.mark.parametrize("rounding", list(ROUND_TO_INTEGRAL))
def test_round_to_integral(run: Any, rng: np.random.Generator, rounding: str) -> None:
    x = pad(
        np.concatenate(
            [np.arange(-600, 600, dtype=np.float32) / 8, rng.standard_normal(2000).astype(np.float32) * 1e5]
        )
    )
    got = convert(run, f'float r; asm("cvt.{rounding}.f32.f32 %0, %1;" : "=f"(r) : "f"(p.x[i])); p.out[i] = r;', {"x": x},
                  np.float32)  # fmt: skip
    check(bits(got), bits(ROUND_TO_INTEGRAL[rounding](x)), x)


@pytest.mark.parametrize("rounding", list(ROUND_TO_INTEGRAL))
@pytest.mark.parametrize("kind", ["s32", "u32", "s16", "u16"])
def test_f16_to_integer(run: Any, kind: str, rounding: str) -> None:
    """Every half."""
    codes = np.arange(65536, dtype=np.uint16)
    half = f'asm("{{.reg .{kind} t; cvt.{rounding}.{kind}.f16 t, %1; cvt.{kind[0]}32.{kind} %0, t;}}"'
    if kind.endswith("32"):
        half = f'asm("cvt.{rounding}.{kind}.f16 %0, %1;"'
    got = convert(run, f'u32 r; {half} : "=r"(r) : "h"(p.x[i])); p.out[i] = r;', {"x": codes}, np.uint32)
    low, high = (-(2**31), 2**31 - 1) if kind == "s32" else (0, 2**32 - 1) if kind == "u32" else (
        (-(2**15), 2**15 - 1) if kind == "s16" else (0, 2**16 - 1))  # fmt: skip
    with np.errstate(invalid="ignore"):
        value = ROUND_TO_INTEGRAL[rounding](codes.view(np.float16).astype(np.float64))
    expected = np.clip(np.where(np.isnan(value), 0, value), low, high).astype(np.int64)
    check(got, (expected & 0xFFFFFFFF).astype(np.uint32), codes)


@pytest.mark.parametrize("rounding", ["rn", "rz"])
@pytest.mark.parametrize("target", ["f16", "bf16"])
def test_integer_to_16_bit_float(run: Any, rng: np.random.Generator, target: str, rounding: str) -> None:
    x = pad(np.concatenate([np.arange(-5000, 5000), rng.integers(-(2**31), 2**31, 6000)]).astype(np.int32))
    got = convert(run, f'u16 r; asm("cvt.{rounding}.{target}.s32 %0, %1;" : "=h"(r) : "r"(p.x[i])); p.out[i] = r;', {"x": x},
                  np.uint16)  # fmt: skip
    check(got, {"f16": F16, "bf16": BF16}[target].encode(x.astype(np.float64), rounding), x)


def test_saturating_conversion_to_the_unit_interval(run: Any, rng: np.random.Generator) -> None:
    x = pad(
        np.concatenate(
            [
                np.float32([0, -0.0, 1, 0.5, -3, 7, np.inf, -np.inf, np.nan]),
                rng.standard_normal(2000).astype(np.float32),
            ]
        )
    )
    got = convert(
        run,
        'float r; asm("cvt.sat.f32.f32 %0, %1;" : "=f"(r) : "f"(p.x[i])); p.out[i] = r;',
        {"x": x},
        np.float32,
    )
    expected = np.where(np.isnan(x) | (x <= 0), np.float32(0), np.minimum(x, np.float32(1)))
    check(bits(got), bits(expected), x)


@pytest.mark.parametrize("kind", ["u8", "s8", "u16", "s16"])
def test_saturating_narrowing(run: Any, rng: np.random.Generator, kind: str) -> None:
    x = pad(
        np.concatenate(
            [np.arange(-300, 300), rng.integers(-(2**31), 2**31, 2000), [2**31 - 1, -(2**31)]]
        ).astype(np.int32)
    )
    text = f'asm("{{.reg .{kind} t; cvt.sat.{kind}.s32 t, %1; cvt.{kind[0]}32.{kind} %0, t;}}" : "=r"(r) : "r"(p.x[i]));'
    got = convert(run, f"u32 r; {text} p.out[i] = r;", {"x": x}, np.uint32)
    limits = np.iinfo(kind.replace("s", "int").replace("u", "uint"))
    check(got, np.clip(x, limits.min, limits.max).astype(np.int32).view(np.uint32), x)
