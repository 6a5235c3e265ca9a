"""The small-batch kernels: every layout against float64, edges first, and the certificate: row i of a batch is bit-equal
to the row alone, whatever its neighbours hold.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from reference import gemv as reference
from reference import quant

import deep_gemm
from deep_gemm import _C
from deep_gemm.demo.arrays import put, take
from deep_gemm.quantized import FORMATS, QuantizedMatrix

Array = np.ndarray[Any, np.dtype[Any]]

BF16 = ml_dtypes.bfloat16
OUTPUTS = {"bf16": BF16, "fp16": np.float16, "fp32": np.float32}
WITH_FP8 = [
    ("fp8_128x128", "fp8_128"),
    ("fp8_32", "fp8_32"),
    ("fp8_32", "fp8_128"),
    ("fp8_row", "fp8_128"),
    ("int8_row", "fp8_128"),
    ("int4_64", "fp8_128"),
    ("mxfp4", "fp8_128"),
    ("nvfp4", "fp8_128"),
]
PLAIN = [(name, "fp16" if name == "fp16" else "q8" if name.startswith("q8") else "bf16") for name in FORMATS]
EDGES = (1, 15, 17, 31, 33, 127, 129)


def random_weight(rng: np.random.Generator, n: int, k: int) -> Array:
    """Magnitudes differ by block of rows and columns, so that a misplaced scale shows."""
    blocks = np.exp2(rng.integers(-3, 4, (-(-n // 8), -(-k // 16)))).repeat(8, 0)[:n].repeat(16, 1)[:, :k]
    return (rng.standard_normal((n, k)) * 0.1 * blocks).astype(np.float32)


def random_x(rng: np.random.Generator, m: int, k: int, kind: str) -> Any:
    """What linear() takes: a tensor, or values and scales."""
    x = rng.standard_normal((m, k)).astype(np.float32)
    if kind == "q8":
        values, scales = reference.q8_activations(x)
        return values.reshape(m, -1), scales
    if kind in ("fp8_128", "fp8_32"):
        return deep_gemm.per_token_cast_to_fp8(x, gran_k=int(kind.rpartition("_")[2]))
    return x.astype(np.float16 if kind == "fp16" else BF16)


def on(device: Any, x: Any) -> Any:
    return tuple(put(device, part) for part in x) if isinstance(x, tuple) else put(device, x)


def placed(device: Any, w: QuantizedMatrix) -> QuantizedMatrix:
    parts = [None if part is None else put(device, part) for part in (w.data, w.scales, w.zeros)]
    return QuantizedMatrix(w.format, w.n, w.k, *parts, w.global_scale)


def run(device: Any, x: Any, w: QuantizedMatrix, y: str = "fp32", **options: Any) -> Array:
    """linear() into a poisoned output."""
    m = (x[0] if isinstance(x, tuple) else x).shape[0]
    out = np.empty((m, w.n), OUTPUTS[y])
    out.view(np.uint8)[...] = 0xFF
    out = put(device, out)
    deep_gemm.linear(on(device, x), placed(device, w), out, device=device, **options)
    return take(out)


def rows(x: Any, index: Any) -> Any:
    return tuple(part[index] for part in x) if isinstance(x, tuple) else x[index]


def check(got: Array, x: Any, w: QuantizedMatrix, y: str = "fp32") -> None:
    left = quant.activations(x)[:, : w.k]
    expected, magnitude = reference.product(left, quant.dequantize(w))
    error = np.abs(got.astype(np.float64) - expected)
    wrong = ~(error <= reference.tolerance(expected, magnitude, y))
    assert not wrong.any(), (
        f"{int(wrong.sum())} of {wrong.size} are off, first at {np.argwhere(wrong)[0]}: {got[wrong][0]} for "
        f"{expected[wrong][0]}"
    )


def same_bits(a: Array, b: Array) -> bool:
    return a.shape == b.shape and a.tobytes() == b.tobytes()


@pytest.mark.parametrize(("w", "x"), PLAIN + WITH_FP8, ids=lambda name: name)
def test_layouts(device: Any, w: str, x: str) -> None:
    """Three tiles of rows with a tail, three visits of some warps with a tail."""
    rng = np.random.default_rng(1)
    matrix = deep_gemm.quantize(random_weight(rng, 37, 2208), w)
    tokens = random_x(rng, 5, 2208, x)
    check(run(device, tokens, matrix), tokens, matrix)


@pytest.mark.parametrize(("w", "x"), PLAIN, ids=lambda name: name)
def test_edges(device: Any, w: str, x: str) -> None:
    """Odd N and K; rows of W and x start anywhere."""
    rng = np.random.default_rng(2)
    for n, k in zip(EDGES, reversed(EDGES), strict=True):
        matrix = deep_gemm.quantize(random_weight(rng, n, k), w)
        tokens = random_x(rng, 2, k, x)
        check(run(device, tokens, matrix), tokens, matrix)


@pytest.mark.parametrize("k", [4095, 16392])
@pytest.mark.parametrize("w", ["bf16", "q8_0", "nvfp4"])
def test_long_rows(device: Any, w: str, k: int) -> None:
    """More than fits any staging of x; K not a multiple of a block."""
    rng = np.random.default_rng(3)
    matrix = deep_gemm.quantize(random_weight(rng, 5, k), w)
    tokens = random_x(rng, 1, k, dict(PLAIN)[w])
    check(run(device, tokens, matrix), tokens, matrix)


@pytest.mark.parametrize("k", [131040, 131071, 131072])
@pytest.mark.parametrize(("w", "x"), [("bf16", "bf16"), ("fp8_128x128", "fp8_128"), ("q8_0", "q8"), ("int4_zero_32", "bf16"), ("nvfp4", "bf16")])  # fmt: skip
def test_the_longest_rows(device: Any, w: str, x: str, k: int) -> None:
    """Right, and every row the row alone, where no plan holds x in shared memory."""
    rng = np.random.default_rng(13)
    matrix = deep_gemm.quantize(random_weight(rng, 3, k), w)
    tokens = random_x(rng, 9, k, x)
    got = run(device, tokens, matrix)
    check(got, tokens, matrix)
    assert same_bits(got[8:], run(device, rows(tokens, slice(8, 9)), matrix))


@pytest.mark.parametrize("y", ["bf16", "fp16"])
@pytest.mark.parametrize("w", ["bf16", "q8_0"])
def test_outputs_are_rounded_once(device: Any, w: str, y: str) -> None:
    rng = np.random.default_rng(4)
    matrix = deep_gemm.quantize(random_weight(rng, 20, 256), w)
    tokens = random_x(rng, 2, 256, dict(PLAIN)[w])
    got = run(device, tokens, matrix, y)
    check(got, tokens, matrix, y)
    assert same_bits(got, run(device, tokens, matrix).astype(OUTPUTS[y]))


def test_no_tokens_and_no_rows(device: Any) -> None:
    rng = np.random.default_rng(5)
    matrix = deep_gemm.quantize(random_weight(rng, 4, 32), "bf16")
    deep_gemm.reset_dispatch_counts()
    run(device, np.zeros((0, 32), BF16), matrix)
    run(device, np.zeros((2, 32), BF16), QuantizedMatrix("bf16", 0, 32, np.zeros((0, 32), BF16)))
    assert deep_gemm.dispatch_counts() == []


@pytest.mark.parametrize("misaligned", ["w", "x"])
@pytest.mark.parametrize("w", ["bf16", "fp8_128x128", "q8_0", "nvfp4", "int4_64"])
def test_alignment_does_not_change_a_bit(emulator: Any, w: str, misaligned: str) -> None:
    """The masked path adds the same numbers in the same order. (On the emulator: views of host memory.)"""
    rng = np.random.default_rng(6)
    matrix = deep_gemm.quantize(random_weight(rng, 19, 640), w)
    tokens = random_x(rng, 2, 640, dict(PLAIN)[w])
    expected = run(emulator, tokens, matrix)

    def shifted(a: Array) -> Array:
        wide = np.zeros((a.shape[0], a.shape[1] + 3), a.dtype)
        wide[:, 1 : 1 + a.shape[1]] = a
        return wide[:, 1 : 1 + a.shape[1]]

    if misaligned == "w":
        if w == "q8_0":  # even, as GGUF has it
            wide = np.zeros((19, matrix.data.shape[1] + 6), np.int8)
            wide[:, 2:-4] = matrix.data
            moved = wide[:, 2:-4]
        else:
            moved = shifted(matrix.data)
        matrix = QuantizedMatrix(w, 19, 640, moved, matrix.scales, matrix.zeros, matrix.global_scale)
    elif w == "q8_0":
        pytest.skip("Q8_0 activations are made by quantize_activations, which aligns them")
    else:
        tokens = shifted(tokens)
    assert same_bits(run(emulator, tokens, matrix), expected)


# ---- The certificate


@pytest.mark.parametrize(("w", "x"), PLAIN + WITH_FP8[:1], ids=lambda name: name)
def test_a_row_is_the_row_alone(device: Any, w: str, x: str) -> None:
    rng = np.random.default_rng(7)
    n, k, m = 21, 1056, 9 if w in ("bf16", "q8_0", "nvfp4") else 6
    matrix = deep_gemm.quantize(random_weight(rng, n, k), w)
    tokens = random_x(rng, m, k, x)
    alone = [run(device, rows(tokens, slice(i, i + 1)), matrix) for i in range(m)]
    for count in range(1, m + 1):
        got = run(device, rows(tokens, slice(0, count)), matrix)
        assert same_bits(got, np.concatenate(alone[:count])), f"{count} rows"
    order = rng.permutation(m)
    assert same_bits(run(device, rows(tokens, order), matrix), np.concatenate([alone[i] for i in order]))
    assert same_bits(run(device, tokens, matrix, strict=True), np.concatenate(alone))


@pytest.mark.parametrize("m", [16, 17, 33])
@pytest.mark.parametrize(("w", "x"), [("bf16", "bf16"), ("q8_0", "q8"), ("fp8_128x128", "fp8_128")], ids=str)
def test_larger_batches(device: Any, w: str, x: str, m: int) -> None:
    rng = np.random.default_rng(8)
    matrix = deep_gemm.quantize(random_weight(rng, 18, 288), w)
    tokens = random_x(rng, m, 288, x)
    got = run(device, tokens, matrix, invariant=True)
    check(got, tokens, matrix)
    assert same_bits(got, run(device, tokens, matrix, strict=True))


# Turns are a parameter, the others make a kernel of their own, whose compilation is what these tests cost.
RESIDENT = [(1, 2, 2, 2), (1, 4, 1, 3), (1, 4, 1, 10), (2, 2, 1, 2)]
RINGS = [(1, 4, 2, 1), (1, 4, 2, 2), (1, 2, 1, 3), (1, 2, 1, 10), (2, 3, 1, 1), (2, 3, 1, 2)]
# One format of each way to decode and to add; the others change tile, depth, groups and turns at once.
ALL_RINGS = [("bf16", "bf16"), ("fp8_128x128", "fp8_128"), ("q8_0", "q8"), ("nvfp4", "bf16")]


@pytest.mark.parametrize(
    ("w", "x", "k"),
    [("bf16", "bf16", 2336), ("fp16", "fp16", 2168), ("fp8_32", "fp8_32", 2336), ("fp8_128x128", "fp8_128", 2160),
     ("int8_row", "bf16", 2160), ("q8_0", "q8", 2336), ("q8_0", "q8", 2304), ("q8_0_split", "q8", 2336), ("int4_32", "bf16", 2176),
     ("int4_64", "bf16", 2176), ("int4_128", "bf16", 2560), ("int4_128", "bf16", 2432), ("int4_zero_64", "bf16", 2304), ("int4_zero_32", "fp8_128", 2304),
     ("int4_zero_128", "bf16", 2560), ("mxfp4", "bf16", 2176),
     ("nvfp4", "bf16", 2176), ("nvfp4_32", "bf16", 2176), ("nvfp4", "fp8_128", 2176)],
)  # fmt: skip
def test_plans_change_no_bit(emulator: Any, w: str, x: str, k: int) -> None:
    """Tiles of 16 or 32 rows, with x in shared memory or not, the depth of the ring, groups of warps, and how
    many tiles each of them takes."""
    rng = np.random.default_rng(12)
    matrix = deep_gemm.quantize(random_weight(rng, 150, k), w)
    m = 5  # more than a warp of Q8_0 takes by itself
    tokens = random_x(rng, m, k, x)
    values, scales = tokens if isinstance(tokens, tuple) else (tokens, None)
    results = []
    ring, resident = (RINGS, RESIDENT) if (w, x) in ALL_RINGS else (RINGS[-1:], RESIDENT[::3])
    forms = (2, 3) if w == "q8_0" and k % 256 == 0 else (2,)
    for tuning in [(*t, 1) for t in ring] + [(*t, form) for form in forms for t in resident]:
        y = np.full((m, 150), np.nan, np.float32)
        _C.linear(
            values,
            scales,
            [matrix.parts],
            [y],
            [],
            [],
            False,
            0.0,
            False,
            False,
            None,
            emulator,
            None,
            tuning,
        )
        results.append(y)
    check(results[0], tokens, matrix)
    assert all(same_bits(y, results[0]) for y in results[1:])


@pytest.mark.parametrize(
    ("w", "x"), [("bf16", "bf16"), ("fp8_128x128", "fp8_128"), ("nvfp4", "bf16"), ("int4_32", "fp8_128")]
)
def test_sixteen_tokens_in_shared_memory(emulator: Any, w: str, x: str) -> None:
    """Sums have one place then; each row is the row alone."""
    rng = np.random.default_rng(14)
    matrix = deep_gemm.quantize(random_weight(rng, 70, 1408), w)
    tokens = random_x(rng, 13, 1408, x)
    values, scales = tokens if isinstance(tokens, tuple) else (tokens, None)
    y = np.full((13, 70), np.nan, np.float32)
    arguments = ([], [], False, 0.0, False, False, None, emulator, None, (1, 2, 2, 1, 2))
    _C.linear(values, scales, [matrix.parts], [y], *arguments)
    check(y, tokens, matrix)
    for i in (0, 7, 12):
        assert same_bits(y[i : i + 1], run(emulator, rows(tokens, slice(i, i + 1)), matrix))


def poison(x: Any, row: int, value: float) -> Any:
    """x with one row (values and scales) set to NaN or infinity."""
    parts = [part.copy() for part in (x if isinstance(x, tuple) else (x,))]
    parts[-1][row] = value
    if isinstance(x, tuple) and parts[0].dtype != np.int8:
        parts[0][row] = np.nan  # E4M3 has no infinity
    return tuple(parts) if isinstance(x, tuple) else parts[0]


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(
    ("w", "x", "k"),
    [
        ("bf16", "bf16", 288),
        ("q8_0", "q8", 288),
        ("q8_0", "q8", 512),
        ("mxfp4", "bf16", 288),
        ("mxfp4", "bf16", 512),
        ("fp8_128x128", "fp8_128", 288),
        ("fp8_32", "fp8_32", 512),
        ("int8_row", "bf16", 512),
        ("int4_zero_32", "bf16", 512),
        ("int4_128", "bf16", 288),
        ("nvfp4", "fp8_128", 512),
    ],
    ids=str,
)
def test_neighbours_do_not_leak(device: Any, w: str, x: str, k: int, value: float) -> None:
    """In every way that tokens are read: from memory, decoded into shared memory, and at 512 of Q8_0 beside bulk copies."""
    rng = np.random.default_rng(9)
    matrix = deep_gemm.quantize(random_weight(rng, 17, k), w)
    tokens = random_x(rng, 5, k, x)
    clean = run(device, tokens, matrix)
    for bad in range(5):
        got = run(device, poison(tokens, bad, value), matrix)
        others = [i for i in range(5) if i != bad]
        assert same_bits(got[others], clean[others])
        assert not np.isfinite(got[bad]).any()


def test_neighbouring_rows_of_w_do_not_leak(device: Any) -> None:
    rng = np.random.default_rng(10)
    weight = random_weight(rng, 40, 512).astype(BF16)
    tokens = random_x(rng, 2, 512, "bf16")
    clean = run(device, tokens, QuantizedMatrix("bf16", 40, 512, weight))
    weight[7] = np.nan
    got = run(device, tokens, QuantizedMatrix("bf16", 40, 512, weight))
    others = np.arange(40) != 7
    assert same_bits(np.ascontiguousarray(got[:, others]), np.ascontiguousarray(clean[:, others]))
    assert np.isnan(got[:, 7]).all()
    shorter = run(device, tokens, QuantizedMatrix("bf16", 33, 512, np.ascontiguousarray(weight[:33])))
    assert same_bits(shorter, np.ascontiguousarray(got[:, :33]))


# ---- Codes


@pytest.mark.parametrize("name", ["fp8_row", "int8_row"])
def test_every_byte(device: Any, name: str) -> None:
    """All 256 codes, one a row, at each place of a word, subnormals and NaN included: W times ones is the decoded byte,
    exactly, where an architecture converts by instructions and where it does not."""
    codes = np.tile(np.arange(256, dtype=np.uint8), 4)
    wide = np.zeros((1024, 16), np.uint8)
    wide[np.arange(1024), 4 + np.arange(1024) // 256] = codes
    matrix = QuantizedMatrix(name, 1024, 16, wide.view(np.int8), np.ones((1024, 1), np.float32))
    x = np.ones((1, 16), BF16)
    expected = quant.e4m3(codes) if name == "fp8_row" else codes.view(np.int8)
    for where in (device, _C.Device("emulator:sm_80,sms=4")):
        np.testing.assert_array_equal(run(where, x, matrix)[0], expected.astype(np.float32))


@pytest.mark.parametrize("name", ["mxfp4", "nvfp4", "nvfp4_32"])
def test_every_scale_times_every_nibble(device: Any, name: str) -> None:
    """All 256 scale bytes (a row each) times all 16 codes (a token each picks one)."""
    block = 16 if name == "nvfp4" else 32
    codes = np.zeros((256, block), np.uint8)
    codes[:, :16] = np.arange(16)
    data = (codes[:, ::2] | codes[:, 1::2] << 4).view(np.int8)
    scales = np.arange(256, dtype=np.uint8).reshape(256, 1)
    one = np.full_like(scales, 56)
    matrix = replace(QuantizedMatrix.from_parts(name, data, one), scales=scales.view(np.int8))
    x = np.zeros((16, block), BF16)
    x[:, :16] = np.eye(16)
    value = {"mxfp4": quant.ue8m0, "nvfp4": quant.e4m3, "nvfp4_32": quant.ue4m3}[name](scales)[:, 0]
    with np.errstate(over="ignore", invalid="ignore"):
        expected = (quant.E2M1[:, None] * value[None]).astype(np.float32)
    # A scale that is NaN reaches every code of its block, through the zeros of x as well.
    expected[:, np.isnan(value)] = np.nan
    expected[np.isinf(expected)] = np.nan  # 2^128 and more times 0 of the other tokens' places
    got = run(device, x, matrix)
    finite = np.isfinite(expected).all(axis=0)
    np.testing.assert_array_equal(got[:, finite], expected[:, finite])
    assert not np.isfinite(got[:, np.isnan(value)]).any()
