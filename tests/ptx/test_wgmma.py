"""wgmma: every n, every operand type, layout and modifier. Small integers are exact in every accumulator, so those
results are compared for equality; the short FP8 accumulator has its own tests against its definition.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from reference.hopper import fused_sum

Array = np.ndarray[Any, np.dtype[Any]]

DTYPES = {
    "e4m3": ml_dtypes.float8_e4m3fn, "e5m2": ml_dtypes.float8_e5m2, "bf16": ml_dtypes.bfloat16, "f16": np.float16,
    "tf32": np.float32, "s8": np.int8, "u8": np.uint8,
}  # fmt: skip
SWIZZLE_MODES = {0: 0, 128: 1, 64: 2, 32: 3}
SWIZZLE_MASKS = {0: 0, 128: 0x70, 64: 0x30, 32: 0x10}


@dataclass(frozen=True)
class Shape:
    n: int = 64
    a: str = "e4m3"
    b: str = "e4m3"
    d: str = "f32"
    swizzle: int = 128
    a_in_registers: bool = False
    trans_a: bool = False  # MN-major
    trans_b: bool = False
    scale_a: int = 1
    scale_b: int = 1
    steps: int = 4  # of 32 bytes of k

    @property
    def element_bytes(self) -> int:
        return np.dtype(DTYPES[self.a]).itemsize

    @property
    def k(self) -> int:
        return 32 * self.steps // self.element_bytes

    def __str__(self) -> str:
        parts = [f"n{self.n}", self.a, self.b, self.d, f"s{self.swizzle}"]
        parts += ["rs"] * self.a_in_registers + ["ta"] * self.trans_a + ["tb"] * self.trans_b
        parts += [f"scale{self.scale_a},{self.scale_b}"] * (
            self.scale_a * self.scale_b * min(self.scale_a, self.scale_b) < 0
        )
        return "-".join(parts)


@dataclass(frozen=True)
class Placement:
    """Where the 16-byte chunks of an operand lie, and the descriptor fields that say so."""

    bytes: Array
    leading: int
    stride: int
    step: int  # address increment of one k step


def place_k_major(matrix: Array, swizzle: int) -> Placement:
    """[rows, k] with k contiguous. Swizzled: atoms of 8 rows x span; further atoms along k follow the whole column of atoms."""
    raw = np.ascontiguousarray(matrix).view(np.uint8)
    rows, k_bytes = raw.shape
    row, byte = np.indices(raw.shape)
    if swizzle:
        offset = (
            byte // swizzle * rows * swizzle + row // 8 * 8 * swizzle + row % 8 * swizzle + byte % swizzle
        )
        step = 32 if swizzle > 32 else rows * swizzle
        leading, stride = 16, 8 * swizzle
    else:
        # Core matrices of 8 rows x 16 bytes: 128 bytes apart along k, then along the rows.
        leading, stride = 128, 8 * k_bytes
        offset = row // 8 * stride + byte // 16 * leading + row % 8 * 16 + byte % 16
        step = 2 * leading
    out = np.zeros(rows * -(-k_bytes // max(swizzle, 16)) * max(swizzle, 16), np.uint8)
    out[offset ^ (offset >> 3 & SWIZZLE_MASKS[swizzle])] = raw
    return Placement(out, leading, stride, step)


def place_mn_major(matrix: Array, swizzle: int) -> Placement:
    """[rows, k] of 16-bit elements with the rows contiguous."""
    rows, k = matrix.shape
    raw = np.ascontiguousarray(matrix).view(np.uint16)
    row, column = np.indices(raw.shape)
    if swizzle:
        span = swizzle // 2  # elements
        leading, stride = k * swizzle, 8 * swizzle
        offset = row // span * leading + column // 8 * stride + column % 8 * swizzle + 2 * (row % span)
        step = 2 * stride
    else:
        leading, stride = rows // 8 * 128, 128
        offset = column // 8 * leading + row // 8 * stride + column % 8 * 16 + 2 * (row % 8)
        step = 2 * leading
    out = np.zeros(-(-rows * 2 // max(swizzle, 16)) * max(swizzle, 16) * k, np.uint8)
    for half in (0, 1):
        at = offset + half
        out[at ^ (at >> 3 & SWIZZLE_MASKS[swizzle])] = raw >> (8 * half) & 0xFF
    return Placement(out, leading, stride, step)


def place(matrix: Array, transposed: bool, swizzle: int) -> Placement:
    return place_mn_major(matrix, swizzle) if transposed else place_k_major(matrix, swizzle)


def descriptor(placement: Placement, swizzle: int) -> int:
    return placement.leading >> 4 << 16 | placement.stride >> 4 << 32 | SWIZZLE_MODES[swizzle] << 62


def instruction(shape: Shape, num_registers: int) -> str:
    """asm statement on registers d[], descriptors a, b and the predicate scale_d; RS operands are ra[0..3]."""
    k = 32 // shape.element_bytes
    kind = "+f" if shape.d == "f32" else "+r"
    d = ", ".join(f"%{i}" for i in range(num_registers))
    outputs = ", ".join(f'"{kind}"(d[{i}])' for i in range(num_registers))
    at = num_registers
    if shape.a_in_registers:
        a, a_inputs = (
            "{" + ", ".join(f"%{at + i}" for i in range(4)) + "}",
            ", ".join(f'"r"(ra[{i}])' for i in range(4)),
        )
        at += 4
    else:
        a, a_inputs = f"%{at}", '"l"(a)'
        at += 1
    tail = "" if shape.a in ("s8", "u8") else f", {shape.scale_a}, {shape.scale_b}"
    if shape.a in ("bf16", "f16"):
        tail += (
            f", {int(shape.trans_b)}"
            if shape.a_in_registers
            else f", {int(shape.trans_a)}, {int(shape.trans_b)}"
        )
    return (
        f'asm volatile("{{.reg .pred q; setp.ne.b32 q, %{at + 1}, 0; wgmma.mma_async.sync.aligned.m64n{shape.n}k{k}.{shape.d}.'
        f'{shape.a}.{shape.b} {{{d}}}, {a}, %{at}, q{tail};}}" : {outputs} : {a_inputs}, "l"(b), "r"(scale_d));'
    )


def multiply(
    run: Any, shape: Shape, a: Array, b: Array, d: Array | None = None, promote: bool = False
) -> Array:
    """D [64, n] = a [64, k] b [n, k]^T (+ d), through shared memory laid out as the shape says."""
    size = shape.element_bytes
    placed_a, placed_b = place(a, shape.trans_a, shape.swizzle), place(b, shape.trans_b, shape.swizzle)
    a_bytes = -(-placed_a.bytes.size // 1024) * 1024
    tiles = np.zeros(a_bytes + -(-placed_b.bytes.size // 1024) * 1024, np.uint8)
    tiles[: placed_a.bytes.size] = placed_a.bytes
    tiles[a_bytes : a_bytes + placed_b.bytes.size] = placed_b.bytes
    halves = 2 if shape.d == "f16" else 1
    num_registers = shape.n // 2 // halves
    element = {"f32": "float", "f16": "u32", "s32": "i32"}[shape.d]
    dtype = {"f32": np.float32, "f16": np.float16, "s32": np.int32}[shape.d]
    # Register r of lane l of warp w holds these elements of D.
    reg, thread, half = np.indices((num_registers, 128, halves))
    value = reg * halves + half
    row = thread // 32 * 16 + thread % 32 // 4 + 8 * (value // 2 % 2)
    col = value // 4 * 8 + thread % 4 * 2 + value % 2
    start = np.zeros((64, shape.n), dtype) if d is None else d.astype(dtype)
    registers = np.ascontiguousarray(start[row, col])
    registers = registers.view(np.uint32).reshape(num_registers, 128) if halves == 2 else registers[..., 0]
    ra = np.zeros((shape.steps, 4, 128), np.uint32)
    if shape.a_in_registers:
        words = np.ascontiguousarray(a).view(np.uint32)  # 8 words a step
        step, r, t = np.indices(ra.shape)
        ra = words[t // 32 * 16 + t % 32 // 4 + 8 * (r & 1), 8 * step + 4 * (r >> 1) + t % 4]
    out = np.zeros_like(registers)
    steps_loop = (
        f"for (u32 s = 0; s < {shape.steps}; ++s) {{ u32 ra[4]; for (u32 i = 0; i < 4; ++i) ra[i] = p.ra[(4 * s + i) * 128 + tid];"
        f"  const u64 a = p.da + ((tile + s * {placed_a.step}) >> 4), b = p.db + ((tile + {a_bytes} + s * {placed_b.step}) >> 4);"
        f"  wgmma_fence(); {instruction(shape, num_registers)} wgmma_commit(); wgmma_wait<0>(); scale_d = 1; "
        + ("for (u32 i = 0; i < N; ++i) { sum[i] += d[i]; } scale_d = 0; " if promote else "")
        + "}"
    )
    body = (
        f"constexpr u32 N = {num_registers}; const u32 tile = dynamic_smem(), tid = threadIdx.x;"
        f"for (u32 i = 4 * tid; i < {tiles.size}; i += 512) "
        'asm volatile("st.shared.u32 [%0], %1;" :: "r"(tile + i), "r"(*(const u32*)(p.tiles + i)) : "memory");'
        f"fence_proxy_async(); __syncthreads(); {element} d[N], sum[N]; u32 scale_d = (u32)p.scale_d;"
        f"for (u32 i = 0; i < N; ++i) {{ d[i] = p.d[i * 128 + tid]; sum[i] = 0; }}"
        f'_Pragma("unroll 1") {steps_loop}'
        f"for (u32 i = 0; i < N; ++i) p.out[i * 128 + tid] = {'sum[i]' if promote else 'd[i]'};"
    )
    assert size * a.shape[1] == 32 * shape.steps
    run(body, {"tiles": tiles, "d": registers, "ra": ra.astype(np.uint32), "out": out, "da": descriptor(placed_a, shape.swizzle),
               "db": descriptor(placed_b, shape.swizzle), "scale_d": int(d is not None)},
        block=128, smem_bytes=tiles.size)  # fmt: skip
    result = np.zeros((64, shape.n), dtype)
    result[row, col] = out.view(np.float16).reshape(row.shape) if halves == 2 else out[..., None]
    return result


def integers(rng: np.random.Generator, shape: tuple[int, int], kind: str, limit: int = 4) -> Array:
    low = 0 if kind == "u8" else -limit
    return rng.integers(low, limit + 1, shape).astype(np.float32).astype(DTYPES[kind])


def check_exact(run: Any, rng: np.random.Generator, shape: Shape, accumulate: bool = False) -> None:
    a, b = integers(rng, (64, shape.k), shape.a), integers(rng, (shape.n, shape.k), shape.b)
    d = rng.integers(-100, 100, (64, shape.n)).astype(np.float64) if accumulate else None
    got = multiply(run, shape, a, b, d)
    product = a.astype(np.float64) @ b.astype(np.float64).T
    expected = (0 if d is None else d) + shape.scale_a * shape.scale_b * product
    np.testing.assert_array_equal(got.astype(np.float64), expected)


@pytest.mark.parametrize("kind", ["e4m3", "bf16"])
@pytest.mark.parametrize("n", range(8, 257, 8))
def test_every_n(run: Any, rng: np.random.Generator, n: int, kind: str) -> None:
    check_exact(run, rng, Shape(n=n, a=kind, b=kind, steps=2), accumulate=n % 16 == 0)


TYPES = [
    Shape(a="e5m2", b="e5m2"), Shape(a="e4m3", b="e5m2"), Shape(a="e5m2", b="e4m3"), Shape(a="f16", b="f16"),
    Shape(a="tf32", b="tf32"), Shape(a="s8", b="s8", d="s32"), Shape(a="u8", b="s8", d="s32"), Shape(a="u8", b="u8", d="s32"),
    Shape(a="f16", b="f16", d="f16"), Shape(a="e4m3", b="e4m3", d="f16"), Shape(scale_a=-1), Shape(a="bf16", b="bf16", scale_b=-1),
    Shape(a="bf16", b="bf16", scale_a=-1, scale_b=-1),
]  # fmt: skip


@pytest.mark.parametrize("accumulate", [False, True], ids=["", "accumulate"])
@pytest.mark.parametrize("shape", TYPES, ids=str)
def test_types_and_modifiers(run: Any, rng: np.random.Generator, shape: Shape, accumulate: bool) -> None:
    check_exact(run, rng, shape, accumulate)


LAYOUTS = [
    *(Shape(n=n, a=kind, b=kind, swizzle=s) for n in (24, 64) for kind in ("e4m3", "bf16") for s in (0, 32, 64)),
    *(Shape(n=n, a="bf16", b="bf16", swizzle=s, trans_a=ta, trans_b=tb) for s in (0, 32, 64, 128) for n in (64, 128)
      for ta, tb in ((True, False), (False, True), (True, True))),
    *(Shape(n=n, a=kind, b=kind, a_in_registers=True) for n in (8, 64, 256) for kind in ("e4m3", "bf16", "tf32")),
    Shape(a="bf16", b="bf16", a_in_registers=True, trans_b=True),
]  # fmt: skip
# Both operands along their rows, part of a chunk of 64 and several: what the GEMM kernels of BF16 use.
CHUNKS = [
    Shape(n=n, a="bf16", b="bf16", trans_a=ta, trans_b=True)
    for n in (8, 16, 32, 48, 128, 192, 256)
    for ta in (False, True)
]


@pytest.mark.parametrize("shape", LAYOUTS, ids=str)
def test_layouts(run: Any, rng: np.random.Generator, shape: Shape) -> None:
    check_exact(
        run, rng, replace(shape, steps=128 // max(shape.swizzle, 32) if shape.trans_a != shape.trans_b else 2)
    )


@pytest.mark.parametrize("shape", CHUNKS, ids=str)
def test_chunks_of_rows(run: Any, rng: np.random.Generator, shape: Shape) -> None:
    check_exact(run, rng, shape)


def test_descriptor_of_rows(run: Any) -> None:
    """wgmma_descriptor_mn_major says where place_mn_major puts 64 k of 128 rows."""
    out = np.zeros(1, np.uint64)
    run("if (threadIdx.x == 0) p.out[0] = wgmma_descriptor_mn_major(0x4000, 8192);", {"out": out}, block=32)
    placed = place_mn_major(np.zeros((128, 64), DTYPES["bf16"]), 128)
    assert (placed.leading, placed.stride, placed.step) == (8192, 1024, 2048)
    assert int(out[0]) == descriptor(placed, 128) | 0x4000 >> 4


# ---- The accumulator


@pytest.mark.parametrize("kind", ["e4m3", "e5m2", "bf16", "f16"])
def test_accumulator_model(run: Any, rng: np.random.Generator, kind: str) -> None:
    """Random data, four instructions: bit-equal to the published model of the tensor core."""
    shape = Shape(n=32, a=kind, b=kind)
    a = (rng.standard_normal((64, shape.k)) * 3).astype(np.float32).astype(DTYPES[kind])
    b = (rng.standard_normal((32, shape.k)) * 3).astype(np.float32).astype(DTYPES[kind])
    start = (rng.standard_normal((64, 32)) * 10).astype(np.float32)
    expected = start.astype(np.float64)
    per_step = shape.k // shape.steps
    for s in range(shape.steps):
        k = slice(s * per_step, (s + 1) * per_step)
        expected = fused_sum(a[:, k], b[:, k], expected, kind)
    got = multiply(run, shape, a, b, start)
    np.testing.assert_array_equal(got.astype(np.float64), expected)


def test_fp32_accumulator_option(runners: Callable[..., Any], rng: np.random.Generator) -> None:
    """accumulator=fp32 sums in the order of k, each step rounded to nearest."""
    shape = Shape(n=16)
    a = rng.standard_normal((64, shape.k)).astype(np.float32).astype(DTYPES["e4m3"])
    b = rng.standard_normal((16, shape.k)).astype(np.float32).astype(DTYPES["e4m3"])
    expected = np.zeros((64, 16), np.float32)
    for k in range(shape.k):
        expected += np.outer(a[:, k].astype(np.float32), b[:, k].astype(np.float32))
    np.testing.assert_array_equal(
        multiply(runners("emulator:sm_90a", accumulator="fp32"), shape, a, b), expected
    )


def test_missing_promotion_shows(run: Any, rng: np.random.Generator) -> None:
    """The error of an unpromoted FP8 sum grows with K; adding each instruction's sum in fp32 keeps it small."""
    errors = {}
    for steps in (4, 16, 64):
        shape = Shape(n=8, steps=steps, swizzle=32)
        a = np.abs(rng.standard_normal((64, shape.k))).astype(np.float32).astype(DTYPES["e4m3"])
        b = np.abs(rng.standard_normal((8, shape.k))).astype(np.float32).astype(DTYPES["e4m3"])
        exact = a.astype(np.float64) @ b.astype(np.float64).T
        plain = multiply(run, shape, a, b)
        promoted = multiply(run, shape, a, b, promote=True)
        errors[steps] = np.abs(plain / exact - 1).mean()
        assert np.abs(promoted / exact - 1).mean() < 1e-3
    assert errors[4] < errors[16] < errors[64]
    assert errors[64] > 2e-3


def test_not_a_number_and_infinity(run: Any, rng: np.random.Generator) -> None:
    a, b = integers(rng, (64, 64), "bf16"), integers(rng, (32, 64), "bf16")
    b[b == 0] = 1
    a[3, 5], a[7, 9], a[20, 0] = np.nan, np.inf, 1e30
    b[4, 1] = 1e38
    got = multiply(run, Shape(n=32, a="bf16", b="bf16"), a, b)
    clean = [r for r in range(64) if r not in (3, 7, 20)]
    expected = a.astype(np.float64) @ b.astype(np.float64).T
    assert np.isnan(got[3]).all()
    assert np.isinf(got[7, [n for n in range(32) if n != 4]]).all()
    columns = [n for n in range(32) if n != 4]
    np.testing.assert_array_equal(got[np.ix_(clean, columns)], expected[np.ix_(clean, columns)])
    np.testing.assert_allclose(got[20, columns], expected[20, columns], rtol=1e-6)
    assert math.isclose(float(got[0, 4]), float(np.float32(expected[0, 4])), rel_tol=1e-5)
