"""Integer arithmetic, logic, bit fields and comparisons against closed forms in unbounded Python integers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from ptx.alu import Array, Op, big, check, execute, operands


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
