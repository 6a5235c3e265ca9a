"""Harness of the arithmetic tests: one kernel per instruction, on every pair of its type's edge values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

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
