"""Conversions between integers of 16, 32 and 64 bits and to and from f64, and that every conversion which a shipped
kernel uses has a table here or beside. References are exact: Python integers, and fp64 whose roundings are looked at.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from emulator.gemm_launch import BF16_DENSE
from ptx.number_formats import LOOP, check

from deep_gemm import _C

Array = np.ndarray[Any, np.dtype[Any]]

KINDS = ("u16", "s16", "u32", "s32", "u64", "s64")
INTEGERS = [f"cvt.{to}.{of}" for to, of in product(KINDS, KINDS) if to[1:] != of[1:]]
# The emulator refuses 64-bit integers with a directed rounding.
TO_FLOAT = [f"cvt.{r}.{to}.{of}" for r, to, of in product(("rn", "rz", "rm", "rp"), ("f32", "f64"), KINDS[2:])
            if r == "rn" or of.endswith("32")]  # fmt: skip
FROM_DOUBLE = [f"cvt.{r}.{to}.f64" for r, to in product(("rni", "rzi", "rmi", "rpi"), KINDS[2:])]
TO_SINGLE = [f"cvt.{r}.f32.f64" for r in ("rn", "rz", "rm", "rp")]

# What has a table, and the test that holds it.
TABLES = {
    r"cvt\.[us](16|32|64)\.[us](16|32|64)": "test_convert_wide.test_integer_to_integer",
    r"cvt\.r[nzmp]\.f(32|64)\.[us]32|cvt\.rn\.f(32|64)\.[us]64": "test_convert_wide.test_integer_to_float",
    r"cvt\.f64\.f32|cvt\.r[nzmp]\.f32\.f64": "test_convert_wide.test_between_f32_and_f64",
    r"cvt\.r[nzmp]i\.[us](32|64)\.f64": "test_convert_wide.test_f64_to_integer",
    r"cvt\.r[nzmp]i\.[us](32|64)\.f32": "test_convert_integer.test_f32_to_integer",
    r"cvt\.[us]32\.[us]8": "test_convert_integer.test_integer_widths",
    r"cvt\.r[nzmp]i\.f32\.f32": "test_convert_integer.test_round_to_integral",
    r"cvt\.r[nzmp]i\.[us](16|32)\.f16": "test_convert_integer.test_f16_to_integer",
    r"cvt\.r[nz]\.(bf16|f16)\.s32": "test_convert_integer.test_integer_to_16_bit_float",
    r"cvt\.sat\.f32\.f32": "test_convert_integer.test_saturating_conversion_to_the_unit_interval",
    r"cvt\.sat\.[us](8|16)\.s32": "test_convert_integer.test_saturating_narrowing",
    r"cvt\.rn\.satfinite(\.relu)?\.e(4m3|5m2)x2\.f32": "test_convert.test_f32_to_fp8",
    r"cvt\.r[nz](\.relu)?\.b?f16x2\.f32": "test_convert.test_f32_to_16_bit_pairs",
    r"cvt\.r[nz]\.b?f16\.f32": "test_convert.test_f32_to_16_bit",
    r"cvt\.(rna|rn|rz)\.tf32\.f32": "test_convert.test_f32_to_tf32",
    r"cvt\.rn(\.relu)?\.f16x2\.e(4m3|5m2)x2": "test_convert.test_fp8_to_f16",
    r"cvt\.f32\.b?f16": "test_convert.test_16_bit_to_f32",
    r"cvt\.rn\.satfinite(\.relu)?\.e(4m3|5m2)x2\.f16x2": "test_convert.test_f16_to_fp8",
}


def convert_all(run: Any, forms: list[str], x: Array) -> Array:
    """[forms, values]: the bits of each result, extended with zeros, for the low bits of each x."""
    body = ""
    for index, form in enumerate(forms):
        to, of = form.split(".")[-2:]
        to_bits, of_bits = int(to[1:]), int(of[1:])
        take = (
            "mov.b64 a, %1;"
            if of_bits == 64
            else f"{{.reg .b{of_bits} t; cvt.u{of_bits}.u64 t, %1; mov.b{of_bits} a, t;}}"
        )
        give = (
            "mov.b64 %0, d;"
            if to_bits == 64
            else f"{{.reg .b{to_bits} t; mov.b{to_bits} t, d; cvt.u64.u{to_bits} %0, t;}}"
        )
        registers = f".reg .{of if of[0] == 'f' else f'b{of_bits}'} a; .reg .{to if to[0] == 'f' else f'b{to_bits}'} d;"
        body += f'{{ u64 r; asm("{{{registers} {take} {form} d, a; {give}}}" : "=l"(r) : "l"(p.x[i])); p.out[{index} * p.n + i] = r; }}\n'
    out = np.zeros((len(forms), len(x)), np.uint64)
    run(f"{LOOP} {{ {body} }}", {"x": x, "out": out, "n": len(x)}, grid=1, block=256)
    return out


def integers(rng: np.random.Generator) -> Array:
    """Around powers of two, ties of both significands, and patterns of every length."""
    edges = [(1 << e) + d for e in range(64) for d in (-1, 0, 1)]
    ties = [
        (odd << e) + d
        for p in (24, 53)
        for e in range(1, 64 - p)
        for odd in ((1 << p) + 1, (1 << p) + 3)
        for d in (-1, 0, 1)
    ]
    values = np.array([v % 2**64 for v in edges + ties], np.uint64)
    random = rng.integers(0, 2**64, 256, np.uint64) >> rng.integers(0, 64, 256, np.uint64)
    return np.concatenate([values, ~values, random])


def as_integers(x: Array, kind: str) -> list[int]:
    width = int(kind[1:])
    low = [int(v) % 2**width for v in x]
    return [v - 2**width if kind[0] == "s" and v >> (width - 1) else v for v in low]


def rounded(value: int, digits: int, rounding: str) -> float:
    """To so many binary digits, as an exact fp64."""
    magnitude = abs(value)
    shift = max(magnitude.bit_length() - digits, 0)
    kept, rest = divmod(magnitude, 1 << shift)
    half = (1 << shift) / 2
    away = {"rn": rest > half or (rest == half and rest > 0 and kept % 2 == 1), "rz": False, "rp": rest > 0 < value,
            "rm": rest > 0 > value}[rounding]  # fmt: skip
    return float((kept + away) << shift) * (-1 if value < 0 else 1)


def test_integer_to_integer(run: Any, rng: np.random.Generator) -> None:
    x = integers(rng)
    for form, got in zip(INTEGERS, convert_all(run, INTEGERS, x), strict=True):
        to, of = form.split(".")[1:]
        check(got, np.array([v % 2 ** int(to[1:]) for v in as_integers(x, of)], np.uint64), x)


def test_integer_to_float(run: Any, rng: np.random.Generator) -> None:
    x = integers(rng)
    for form, got in zip(TO_FLOAT, convert_all(run, TO_FLOAT, x), strict=True):
        _, rounding, to, of = form.split(".")
        exact = np.array([rounded(v, 24 if to == "f32" else 53, rounding) for v in as_integers(x, of)])
        expected = exact.astype(np.float32).view(np.uint32) if to == "f32" else exact.view(np.uint64)
        check(got, expected.astype(np.uint64), x)


def doubles(rng: np.random.Generator) -> Array:
    """Integers and halves around the ranges' ends, values next to singles and between them, special ones, patterns."""
    ends = [
        s * (2.0**e + d) for s in (1, -1) for e in (0, 8, 31, 32, 52, 63, 64) for d in (-1, -0.5, 0, 0.5, 1)
    ]
    singles = rng.integers(0, 2**32, 256, np.uint32).view(np.float32).astype(np.float64)
    steps = np.nextafter(singles, np.inf)
    halfway = (singles.view(np.uint64) | np.uint64(1 << 28)).view(np.float64)
    special = [
        0.0,
        -0.0,
        np.inf,
        -np.inf,
        np.nan,
        1e300,
        -1e300,
        5e-324,
        2.0**-149,
        2.0**-150,
        -(2.0**-151),
        3.4028235677973366e38,
    ]
    patterns = rng.integers(0, 2**64, 256, np.uint64).view(np.float64)
    return np.concatenate([np.arange(-40, 40) / 8, ends, singles, steps, halfway, special, patterns])


def test_f64_to_integer(run: Any, rng: np.random.Generator) -> None:
    """NaN becomes the top bit alone."""
    x = doubles(rng)
    functions = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}
    for form, got in zip(FROM_DOUBLE, convert_all(run, FROM_DOUBLE, x.view(np.uint64)), strict=True):
        _, rounding, to, _ = form.split(".")
        width = int(to[1:])
        low, high = (0, 2**width - 1) if to[0] == "u" else (-(2 ** (width - 1)), 2 ** (width - 1) - 1)
        expected = [1 << (width - 1) if np.isnan(v) else (low if v <= low else high if v >= high else int(v)) % 2**width
                    for v in functions[rounding](x)]  # fmt: skip
        check(got, np.array(expected, np.uint64), x)


def test_between_f32_and_f64(run: Any, rng: np.random.Generator) -> None:
    x = doubles(rng)
    number = ~np.isnan(x)
    with np.errstate(all="ignore"):
        nearest = x.astype(np.float32)
        down = np.where(nearest > x, np.nextafter(nearest, np.float32(-np.inf)), nearest)
        up = np.where(nearest < x, np.nextafter(nearest, np.float32(np.inf)), nearest)
    expected = {"rn": nearest, "rm": down, "rp": up, "rz": np.where(x < 0, up, down)}
    for form, got in zip(TO_SINGLE, convert_all(run, TO_SINGLE, x.view(np.uint64)), strict=True):
        single = got.astype(np.uint32)
        check(single[number], expected[form.split(".")[1]].view(np.uint32)[number], x[number])
        assert np.isnan(single.view(np.float32)[~number]).all()
    (wide,) = convert_all(run, ["cvt.f64.f32"], nearest.view(np.uint32).astype(np.uint64))
    number = ~np.isnan(nearest)
    check(wide[number], nearest.astype(np.float64).view(np.uint64)[number], nearest[number])
    assert np.isnan(wide.view(np.float64)[~number]).all()


def shipped_texts() -> Iterable[str]:
    """PTX of one kernel built here, and the newest of each name in the cache: where the suite has run, all of them."""
    launch = BF16_DENSE.launch()
    yield _C.compile(BF16_DENSE.source(), [launch.entry], arch="90a", kind="ptx").image.decode()
    newest: dict[str, Path] = {}
    for root in _C.cache_roots():
        for folder in Path(root).glob("kernels/*-compute_90a.*"):
            name = folder.name.split("-compute_")[0]
            if name not in newest or folder.stat().st_mtime > newest[name].stat().st_mtime:
                newest[name] = folder
    for folder in newest.values():
        for image in folder.glob("**/image"):
            yield image.read_text(errors="ignore")


def test_every_shipped_conversion_has_a_table() -> None:
    forms = {form for text in shipped_texts() for form in re.findall(r"\bcvt\.[\w.]+", text)}
    assert {"cvt.rn.bf16x2.f32", "cvt.u32.u64"} <= forms
    bare = {form for form in forms if not any(re.fullmatch(table, form) for table in TABLES)}
    assert not bare, f"no table has {sorted(bare)}"
    for test in set(TABLES.values()):
        module, name = test.split(".")
        assert callable(getattr(importlib.import_module(f"ptx.{module}"), name))
