"""Arithmetic and logic against closed forms, edge values included. One kernel per instruction; operands are every pair
(or random triples) of a list that holds the edges of the type.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import pytest

Array = np.ndarray[Any, np.dtype[Any]]

CONSTRAINTS = {
    "u32": "r",
    "s32": "r",
    "u64": "l",
    "s64": "l",
    "f32": "f",
    "f64": "d",
    "b32": "r",
    "b64": "l",
    "b16": "h",
}
DTYPES = {
    "u32": np.uint32, "s32": np.int32, "u64": np.uint64, "s64": np.int64, "f32": np.float32, "f64": np.float64,
    "b32": np.uint32, "b64": np.uint64, "b16": np.uint16,
}  # fmt: skip
C_TYPES = {"u32": "u32", "s32": "i32", "u64": "u64", "s64": "i64", "f32": "float", "f64": "double"}
C_TYPES |= {"b32": "u32", "b64": "u64", "b16": "u16"}


@dataclass(frozen=True)
class Op:
    text: str  # "add.s32", or a whole statement with its operands: "lop3.b32 %0, %1, %2, %3, 0x96;"
    signature: str  # "s32 s32 s32": result first
    expected: Callable[..., Any]
    tolerance: float = 0.0  # relative, for the .approx instructions

    def __str__(self) -> str:
        return self.text.replace(" ", "")


def edges(kind: str, rng: np.random.Generator) -> Array:
    dtype = DTYPES[kind]
    if np.dtype(dtype).kind == "f":
        values = [
            0.0,
            -0.0,
            1.0,
            -1.0,
            0.5,
            1.5,
            3.0,
            -7.25,
            1e-3,
            1e10,
            -1e30,
            1e38,
            3e-39,
            -1e-45,
            1e-20,
            16777217.0,
        ]
        special = [np.inf, -np.inf, np.nan]
        with np.errstate(all="ignore"):
            return np.concatenate([np.array(values + special), rng.standard_normal(13) * 10.0]).astype(dtype)
    info = np.iinfo(dtype)
    values = [
        0,
        1,
        2,
        3,
        7,
        31,
        32,
        33,
        255,
        256,
        0x7FFF,
        0x8000,
        0xFFFF,
        0x12345678,
        info.max,
        info.max - 1,
        info.min,
    ]
    if info.min < 0:
        values += [-1, -2, -31, -32768, info.min + 1]
    unsigned = np.uint32 if info.bits == 32 else np.uint64
    random = rng.integers(0, 2**info.bits, 32 - len(values), dtype=unsigned).view(dtype)
    return np.concatenate([np.array([v & (2**info.bits - 1) for v in values], unsigned).view(dtype), random])


def operands(kinds: list[str], rng: np.random.Generator) -> list[Array]:
    """All pairs of the first two operands' edges; further operands drawn from theirs."""
    lists = [edges(kind, rng) for kind in kinds]
    if len(lists) == 1:
        return lists
    first, second = np.meshgrid(lists[0], lists[1], indexing="ij")
    rest = [values[rng.integers(0, len(values), first.size)] for values in lists[2:]]
    return [first.ravel(), second.ravel(), *rest]


def execute(run: Any, op: Op, inputs: list[Array]) -> Array:
    result, *kinds = op.signature.split()
    names = "abcd"[: len(kinds)]
    literal = "%" in op.text
    text = op.text if literal else op.text + " " + ", ".join(f"%{i}" for i in range(len(kinds) + 1)) + ";"
    # asm text uses braces for scopes; "<" and ">" stand for them in the tables.
    text = text.replace("<", "{").replace(">", "}")
    sources = ", ".join(f'"{CONSTRAINTS[k]}"(p.{n}[i])' for k, n in zip(kinds, names, strict=True))
    n = len(inputs[0])
    out = np.zeros(n, DTYPES[result])
    body = (
        f"for (u32 i = threadIdx.x; i < p.n; i += blockDim.x) {{ {C_TYPES[result]} r; "
        f'asm volatile("{text}" : "={CONSTRAINTS[result]}"(r) : {sources}); p.out[i] = r; }}'
    )
    run(body, {**dict(zip(names, inputs, strict=True)), "out": out, "n": n}, block=128)
    return out


def same(got: Array, expected: Array, tolerance: float) -> Array:
    if got.dtype.kind != "f":
        return got == expected.astype(got.dtype)
    both_nan = np.isnan(got) & np.isnan(expected)
    if tolerance == 0.0:
        unsigned = np.uint32 if got.dtype.itemsize == 4 else np.uint64
        return both_nan | (got.view(unsigned) == expected.astype(got.dtype).view(unsigned))
    with np.errstate(all="ignore"):
        close = np.abs(got.astype(np.float64) - expected) <= tolerance * np.maximum(np.abs(expected), 1e-30)
    return both_nan | (got == expected) | close


def check(run: Any, op: Op, rng: np.random.Generator) -> None:
    inputs = operands(op.signature.split()[1:], rng)
    got = execute(run, op, inputs)
    with np.errstate(all="ignore"):
        expected = np.asarray(op.expected(*inputs))
    bad = np.flatnonzero(~same(got, expected, op.tolerance))
    shown = [
        f"{op.text}({', '.join(str(x[i]) for x in inputs)}) = {got[i]}, expected {expected[i]}"
        for i in bad[:6]
    ]
    assert not len(bad), f"{len(bad)} of {len(got)}: " + "; ".join(shown)


def wrap(values: Any, bits: int, signed: bool) -> Array:
    """Python integers to a type, modulo 2^bits."""
    unsigned = {32: np.uint32, 64: np.uint64}[bits]
    array = np.array([int(v) & (2**bits - 1) for v in values], unsigned)
    return array.view({32: np.int32, 64: np.int64}[bits]) if signed else array


def big(function: Callable[..., Any], kind: str) -> Callable[..., Array]:
    """An integer operation in unbounded Python integers, then wrapped."""
    return lambda *xs: wrap(
        [function(*(int(v) for v in row)) for row in zip(*xs, strict=True)], int(kind[1:]), kind[0] == "s"
    )


def mask(x: int) -> int:
    return x & 0xFFFFFFFF


def signed(x: int, bits: int = 32) -> int:
    x &= 2**bits - 1
    return x - 2**bits if x >> (bits - 1) else x


def trunc_div(a: int, b: int) -> int:
    return -1 if b == 0 else int(abs(a) // abs(b)) * (1 if (a < 0) == (b < 0) else -1)


def lop3(a: int, b: int, c: int, table: int) -> int:
    out = 0
    for k in range(8):
        if table >> k & 1:
            out |= (a if k & 4 else ~a) & (b if k & 2 else ~b) & (c if k & 1 else ~c)
    return mask(out)


def prmt(a: int, b: int, selector: int) -> int:
    data, out = a | b << 32, 0
    for i in range(4):
        nibble = selector >> (4 * i) & 15
        byte = data >> (8 * (nibble & 7)) & 255
        out |= ((255 if byte & 128 else 0) if nibble & 8 else byte) << (8 * i)
    return out


def bfe(a: int, position: int, length: int, is_signed: bool) -> int:
    position, length = position & 255, length & 255
    if length == 0:
        return 0
    value = (signed(a) if is_signed else a) >> min(position, 31 if is_signed else 63)
    if is_signed:
        if length >= 32 or position + length >= 32:
            return mask(value)
        return mask(signed(value << (32 - length)) >> (32 - length))
    return mask(value & (2**length - 1))


def bfi(a: int, b: int, position: int, length: int) -> int:
    position, length = position & 255, length & 255
    field = mask((2**length - 1) << position)
    return mask((b & ~field) | ((a << position) & field))


def byte(x: int, i: int, is_signed: bool) -> int:
    value = x >> (8 * i) & 255
    return value - 256 if is_signed and value & 128 else value


def dp4a(sa: bool, sb: bool) -> Callable[[int, int, int], int]:
    return lambda a, b, c: c + sum(byte(a, i, sa) * byte(b, i, sb) for i in range(4))


def clz(x: int) -> int:
    return 32 - x.bit_length()


INTEGER = [
    *(Op(f"add.{k}", f"{k} {k} {k}", big(lambda a, b: a + b, k)) for k in ("s32", "u32", "s64", "u64")),
    *(Op(f"sub.{k}", f"{k} {k} {k}", big(lambda a, b: a - b, k)) for k in ("s32", "u32", "s64", "u64")),
    *(Op(f"mul.lo.{k}", f"{k} {k} {k}", big(lambda a, b: a * b, k)) for k in ("s32", "u32", "s64", "u64")),
    *(Op(f"mul.hi.{k}", f"{k} {k} {k}", big(lambda a, b, n=int(k[1:]): a * b >> n, k)) for k in ("s32", "u32", "s64", "u64")),
    Op("mul.wide.s32", "s64 s32 s32", big(lambda a, b: a * b, "s64")),
    Op("mul.wide.u32", "u64 u32 u32", big(lambda a, b: a * b, "u64")),
    Op("mul24.lo.s32", "s32 s32 s32", big(lambda a, b: signed(a, 24) * signed(b, 24), "s32")),
    Op("mad.lo.s32", "s32 s32 s32 s32", big(lambda a, b, c: a * b + c, "s32")),
    Op("mad.lo.u64", "u64 u64 u64 u64", big(lambda a, b, c: a * b + c, "u64")),
    Op("mad.wide.u32", "u64 u32 u32 u64", big(lambda a, b, c: a * b + c, "u64")),
    Op("mad.wide.s32", "s64 s32 s32 s64", big(lambda a, b, c: a * b + c, "s64")),
    Op("mad.hi.u32", "u32 u32 u32 u32", big(lambda a, b, c: (a * b >> 32) + c, "u32")),
    *(Op(f"min.{k}", f"{k} {k} {k}", np.minimum) for k in ("s32", "u32", "s64", "u64")),
    *(Op(f"max.{k}", f"{k} {k} {k}", np.maximum) for k in ("s32", "u32", "s64", "u64")),
    Op("add.sat.s32", "s32 s32 s32", big(lambda a, b: max(-(2**31), min(2**31 - 1, a + b)), "s32")),
    Op("sub.sat.s32", "s32 s32 s32", big(lambda a, b: max(-(2**31), min(2**31 - 1, a - b)), "s32")),
    Op("abs.s32", "s32 s32", big(abs, "s32")),
    Op("neg.s32", "s32 s32", big(lambda a: -a, "s32")),
    Op("sad.s32", "u32 s32 s32 u32", big(lambda a, b, c: c + abs(a - b), "u32")),
    Op("and.b32", "b32 b32 b32", np.bitwise_and),
    Op("or.b64", "b64 b64 b64", np.bitwise_or),
    Op("xor.b32", "b32 b32 b32", np.bitwise_xor),
    Op("not.b32", "b32 b32", np.invert),
    Op("shl.b32", "b32 b32 u32", big(lambda a, s: a << min(s, 32), "u32")),
    Op("shl.b64", "b64 b64 u32", big(lambda a, s: a << min(s, 64), "u64")),
    Op("shr.u32", "u32 u32 u32", big(lambda a, s: a >> min(s, 32), "u32")),
    Op("shr.s32", "s32 s32 u32", big(lambda a, s: a >> min(s, 31), "s32")),
    Op("shr.u64", "u64 u64 u32", big(lambda a, s: a >> min(s, 64), "u64")),
    Op("shr.s64", "s64 s64 u32", big(lambda a, s: a >> min(s, 63), "s64")),
    Op("shf.l.wrap.b32", "b32 b32 b32 u32", big(lambda a, b, s: ((b << 32 | a) << (s & 31)) >> 32, "u32")),
    Op("shf.l.clamp.b32", "b32 b32 b32 u32", big(lambda a, b, s: ((b << 32 | a) << min(s, 32)) >> 32, "u32")),
    Op("shf.r.wrap.b32", "b32 b32 b32 u32", big(lambda a, b, s: (b << 32 | a) >> (s & 31), "u32")),
    Op("shf.r.clamp.b32", "b32 b32 b32 u32", big(lambda a, b, s: (b << 32 | a) >> min(s, 32), "u32")),
    Op("popc.b32", "u32 b32", big(int.bit_count, "u32")),
    Op("popc.b64", "u32 b64", big(int.bit_count, "u32")),
    Op("clz.b32", "u32 b32", big(clz, "u32")),
    Op("brev.b32", "b32 b32", big(lambda a: int(f"{a:032b}"[::-1], 2), "u32")),
    Op("bfind.u32", "u32 u32", big(lambda a: a.bit_length() - 1, "u32")),
    Op("bfind.shiftamt.u32", "u32 u32", big(lambda a: -1 if a == 0 else clz(a), "u32")),
    Op("bfe.u32", "u32 u32 u32 u32", big(lambda a, p, n: bfe(a, p, n, False), "u32")),
    Op("bfe.s32", "s32 s32 u32 u32", big(lambda a, p, n: bfe(mask(a), p, n, True), "s32")),
    Op("bfi.b32", "b32 b32 b32 u32 u32", big(bfi, "u32")),
    *(Op(f"lop3.b32 %0, %1, %2, %3, {t};", "b32 b32 b32 b32", big(lambda a, b, c, t=t: lop3(a, b, c, t), "u32"))
      for t in (0x00, 0x01, 0x3C, 0x80, 0x96, 0xCA, 0xE8, 0xFE, 0xFF)),
    Op("prmt.b32", "b32 b32 b32 b32", big(prmt, "u32")),
    Op("dp4a.s32.s32", "s32 s32 s32 s32", big(lambda a, b, c: dp4a(True, True)(mask(a), mask(b), c), "s32")),
    Op("dp4a.u32.u32", "u32 u32 u32 u32", big(dp4a(False, False), "u32")),
    Op("dp4a.s32.u32", "s32 s32 u32 s32", big(lambda a, b, c: dp4a(True, False)(mask(a), b, c), "s32")),
    Op("dp4a.u32.s32", "s32 u32 s32 s32", big(lambda a, b, c: dp4a(False, True)(a, mask(b), c), "s32")),
    Op("<add.cc.u32 %0, %1, %2; addc.u32 %0, %0, %2;>", "u32 u32 u32",
       big(lambda a, b: mask(a + b) + b + (a + b >> 32), "u32")),
    Op("<sub.cc.u32 %0, %1, %2; subc.u32 %0, %0, 0;>", "u32 u32 u32", big(lambda a, b: mask(a - b) - (a < b), "u32")),
]  # fmt: skip

NONZERO = [
    *(Op(f"div.{k}", f"{k} {k} {k}", big(trunc_div, k)) for k in ("s32", "u32", "s64", "u64")),
    *(
        Op(f"rem.{k}", f"{k} {k} {k}", big(lambda a, b: a - b * trunc_div(a, b), k))
        for k in ("s32", "u32", "s64", "u64")
    ),
]


@pytest.mark.parametrize("op", INTEGER, ids=str)
def test_integer(run: Any, rng: np.random.Generator, op: Op) -> None:
    check(run, op, rng)


@pytest.mark.parametrize("op", NONZERO, ids=str)
def test_division(run: Any, rng: np.random.Generator, op: Op) -> None:
    kind = op.signature.split()[1]
    a, b = operands([kind, kind], rng)
    keep = (b != 0) & ~((b == np.array(-1).astype(b.dtype)) & (kind[0] == "s"))
    got = execute(run, op, [a[keep], b[keep]])
    np.testing.assert_array_equal(got, op.expected(a[keep], b[keep]))


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


COMPARES = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}


@pytest.mark.parametrize("kind", ["s32", "u32", "s64", "u64", "f32"])
@pytest.mark.parametrize("compare", list(COMPARES))
def test_setp_selp(run: Any, rng: np.random.Generator, compare: str, kind: str) -> None:
    ordered = COMPARES[compare]
    text = f"<.reg .pred q; setp.{compare}.{kind} q, %1, %2; selp.u32 %0, 1, 0, q;>"
    # An ordered comparison with a NaN is false, ne included.
    expected = (lambda a, b: ordered(a, b) & ~np.isnan(a) & ~np.isnan(b)) if kind == "f32" else ordered
    check(run, Op(text, f"u32 {kind} {kind}", expected), rng)


@pytest.mark.parametrize("compare", ["equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan"])
def test_setp_unordered(run: Any, rng: np.random.Generator, compare: str) -> None:
    def expected(a: Array, b: Array) -> Array:
        unordered = np.isnan(a) | np.isnan(b)
        if compare in ("num", "nan"):
            return unordered if compare == "nan" else ~unordered
        return unordered | COMPARES[compare[:2]](a, b)

    text = f"<.reg .pred q; setp.{compare}.f32 q, %1, %2; selp.u32 %0, 1, 0, q;>"
    check(run, Op(text, "u32 f32 f32", expected), rng)


@pytest.mark.parametrize("boolean", ["and", "or", "xor"])
def test_setp_combines(run: Any, rng: np.random.Generator, boolean: str) -> None:
    combine = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}[boolean]
    text = (
        f"<.reg .pred q, s; setp.gt.s32 s, %3, 0; setp.lt.{boolean}.s32 q, %1, %2, !s; selp.u32 %0, 1, 0, q;>"
    )
    check(run, Op(text, "u32 s32 s32 s32", lambda a, b, c: combine(a < b, ~(c > 0))), rng)
