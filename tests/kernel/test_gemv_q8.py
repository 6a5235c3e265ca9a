"""Q8_0, bit by bit: the kernels compute what reference.gemv says in the order it says, at any number of blocks and tokens,
and an order that is not that one gives other bits.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from kernel.test_gemv import placed, run, same_bits
from reference import gemv as reference
from reference import quant

import deep_gemm
from deep_gemm import _C
from deep_gemm.demo.arrays import put, take
from deep_gemm.quantized import QuantizedMatrix

Array = np.ndarray[Any, np.dtype[Any]]

BLOCKS = (1, 2, 31, 32, 33, 64, 127, 128, 129, 224, 448, 1024)


def random_blocks(rng: np.random.Generator, n: int, blocks: int) -> Array:
    """Any bytes and scales that fp16 has, small ones mostly: [n, 34 * blocks]."""
    whole = rng.integers(-128, 128, (n, blocks, 34)).astype(np.int8)
    scales = (rng.standard_normal((n, blocks)) * 1e-2).astype(np.float16)
    whole[:, :, :2] = scales.view(np.int8).reshape(n, blocks, 2)
    return whole.reshape(n, -1)


def adversarial(rng: np.random.Generator, n: int, blocks: int) -> Array:
    """One huge block, zeros, subnormal scales, and neighbours that cancel."""
    data = random_blocks(rng, n, blocks).reshape(n, blocks, 34)
    scales = np.ascontiguousarray(data[:, :, :2]).view(np.float16)[:, :, 0]
    scales[:, blocks // 2] = 60000
    scales[0::5, :] = 0
    scales[1::5, ::2] = 6e-8  # the smallest subnormal
    if blocks > 1:
        data[2::5, 1::2, 2:] = -data[2::5, : blocks - blocks % 2 : 2, 2:]
        scales[2::5, 1::2] = scales[2::5, : blocks - blocks % 2 : 2]
    data[:, :, :2] = scales.view(np.int8).reshape(n, blocks, 2)
    return data.reshape(n, -1)


def tokens_of(rng: np.random.Generator, m: int, k: int) -> tuple[Array, Array]:
    values, scales = reference.q8_activations(rng.standard_normal((m, k)).astype(np.float32))
    return values.reshape(m, -1), scales


def expected_bits(w: QuantizedMatrix, x: tuple[Array, Array]) -> Array:
    codes, scales = quant.q8_0_blocks(w.data)
    return reference.q8_rows(codes, scales, x[0].reshape(x[0].shape[0], -1, 32), x[1])


@pytest.mark.parametrize("make", [random_blocks, adversarial])
@pytest.mark.parametrize("blocks", BLOCKS)
def test_bits_at_any_block_count(device: Any, blocks: int, make: Any) -> None:
    rng = np.random.default_rng(blocks)
    matrix = QuantizedMatrix("q8_0", 9, 32 * blocks, make(rng, 9, blocks))
    x = tokens_of(rng, 4, 32 * blocks)
    expected = expected_bits(matrix, x)
    for m in (1, 2, 3, 4):
        got = run(device, (x[0][:m], x[1][:m]), matrix)
        assert same_bits(got, expected[:m]), f"{m} tokens"


@pytest.mark.parametrize("n", [1, 7, 8, 9, 300])
def test_any_number_of_rows(device: Any, n: int) -> None:
    rng = np.random.default_rng(n)
    matrix = QuantizedMatrix("q8_0", n, 1088, random_blocks(rng, n, 34))
    x = tokens_of(rng, 13, 1088)
    expected = expected_bits(matrix, x)
    for m in (1, 5, 8, 13):
        assert same_bits(run(device, (x[0][:m], x[1][:m]), matrix), expected[:m])
    assert same_bits(run(device, x, matrix, strict=True), expected)


def test_split_blocks_are_the_same_numbers(device: Any) -> None:
    rng = np.random.default_rng(0)
    for k in (32, 1056, 1072):
        whole = QuantizedMatrix("q8_0", 9, k, random_blocks(rng, 9, -(-k // 32)))
        codes, scales = quant.q8_0_blocks(whole.data)
        flat = np.ascontiguousarray(codes.reshape(9, -1)[:, :k])
        split = QuantizedMatrix("q8_0_split", 9, k, flat, np.ascontiguousarray(scales))
        x = tokens_of(rng, 3, k)
        assert same_bits(run(device, x, split), run(device, x, whole))


@pytest.mark.parametrize("k", [1, 31, 32, 33, 200])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16], ids=str)
def test_activations(device: Any, k: int, dtype: Any) -> None:
    """Bit-equal to the definition, row by row; zeros beyond k."""
    rng = np.random.default_rng(k)
    x = rng.standard_normal((5, k)).astype(dtype)
    x[2] = 0
    values = put(device, np.full((5, -(-k // 32) * 32), 99, np.int8))
    scales = put(device, np.full((5, -(-k // 32)), np.nan, np.float32))
    deep_gemm.quantize_activations(put(device, x), "q8", (values, scales), device=device)
    expected = reference.q8_activations(x.astype(np.float32))
    assert same_bits(take(values), expected[0].reshape(5, -1))
    assert same_bits(take(scales), expected[1])


@pytest.mark.parametrize("to", ["fp8_128", "fp8_32"])
def test_fp8_activations(device: Any, to: str) -> None:
    """Bit-equal to utils.per_token_cast_to_fp8, over every magnitude that E4M3 has and beyond."""
    rng = np.random.default_rng(1)
    x = (rng.standard_normal((7, 300)) * np.exp2(rng.integers(-30, 4, (7, 300)))).astype(np.float32)
    x[3] = 0
    block = int(to.rpartition("_")[2])
    values = put(device, np.zeros((7, 300), ml_dtypes.float8_e4m3fn))
    scales = put(device, np.zeros((7, -(-300 // block)), np.float32))
    deep_gemm.quantize_activations(put(device, x), to, (values, scales), device=device)
    expected = deep_gemm.per_token_cast_to_fp8(x, gran_k=block)
    assert same_bits(take(scales), expected[1])
    assert same_bits(take(values).view(np.uint8), expected[0].view(np.uint8))


def test_bad_numbers_are_not_hidden(device: Any) -> None:
    """NaN or infinity among the activations: its row of y is NaN, the others are as they were."""
    rng = np.random.default_rng(2)
    matrix = deep_gemm.quantize(rng.standard_normal((6, 96)).astype(np.float32), "q8_0")
    x = rng.standard_normal((4, 96)).astype(np.float32)
    clean = run(device, x, matrix)
    for value in (np.nan, np.inf):
        bad = x.copy()
        bad[1, 40] = value
        got = run(device, bad, matrix)
        assert np.isnan(got[1]).all()
        assert same_bits(got[[0, 2, 3]], clean[[0, 2, 3]])


def test_quantised_inside_or_before_is_the_same(device: Any) -> None:
    rng = np.random.default_rng(3)
    matrix = deep_gemm.quantize(rng.standard_normal((12, 200)).astype(np.float32), "q8_0")
    x = rng.standard_normal((3, 200)).astype(ml_dtypes.bfloat16)
    values, scales = reference.q8_activations(x.astype(np.float32))
    assert same_bits(run(device, x, matrix), run(device, (values.reshape(3, -1), scales), matrix))


def test_another_order_gives_other_bits(device: Any) -> None:
    """The comparison has teeth: a block's 256 threads and a tree through shared memory, as kernels without this contract
    add, agree to rounding and not to the bit.
    """
    rng = np.random.default_rng(4)
    matrix = QuantizedMatrix("q8_0", 64, 4096, random_blocks(rng, 64, 128))
    x = tokens_of(rng, 2, 4096)
    codes, scales = quant.q8_0_blocks(matrix.data)
    dot = np.einsum("mbi,nbi->mnb", x[0].reshape(2, -1, 32).astype(int), codes.astype(int)).astype(np.float32)
    terms = x[1][:, None] * scales.astype(np.float32) * dot
    while terms.shape[2] > 1:
        terms = terms[:, :, : terms.shape[2] // 2] + terms[:, :, terms.shape[2] // 2 :]
    got = run(device, x, matrix, strict=True)
    np.testing.assert_allclose(got, terms[:, :, 0], rtol=1e-4, atol=1e-3)
    assert (got != terms[:, :, 0]).any()
    assert placed(device, matrix).format == "q8_0"


@pytest.mark.parametrize(("n", "blocks"), [(24, 36), (16, 33), (40, 68), (32, 67), (24, 66), (24, 31)])
@pytest.mark.parametrize("m", [1, 3])
def test_bulk_copies_around_rows(device: Any, n: int, blocks: int, m: int) -> None:
    """Rows at multiples of 8, 4 and 2 bytes whose matrix begins and ends at multiples of 16: bulk copies bring what is
    around each visit of a row, the last one too."""
    k = blocks * 32
    assert "bulk=true" in deep_gemm.explain_linear(f"linear w=q8_0 m=3 n={n} k={k}")
    rng = np.random.default_rng(blocks)
    matrix = QuantizedMatrix("q8_0", n, k, random_blocks(rng, n, blocks))
    x = tokens_of(rng, m, k)
    out = put(device, np.full((m, n), np.nan, np.float32))
    values, scales = (put(device, part) for part in x)
    tuning = (1, 3, 1, 1, 3)  # two tiles of rows for one group of warps
    _C.linear(values, scales, [placed(device, matrix).parts], [out], [], [], False, 0.0, False, False, None, device, None, tuning)  # fmt: skip
    assert same_bits(take(out), expected_bits(matrix, x))


def test_bulk_copies_around_paired_rows(device: Any) -> None:
    """Rows of two matrices at multiples of 2: swiglu by bulk copies has the bits of the kernel of one row."""
    n, blocks = 24, 65
    k = blocks * 32
    assert "bulk=true" in deep_gemm.explain_linear(f"linear w=q8_0 m=3 n={n} k={k} swiglu")
    rng = np.random.default_rng(6)
    gate, up = (
        placed(device, QuantizedMatrix("q8_0", n, k, random_blocks(rng, n, blocks))) for _ in range(2)
    )
    x = tuple(put(device, part) for part in tokens_of(rng, 3, k))
    outs = []
    for strict in (False, True):
        out = put(device, np.full((3, n), np.nan, np.float32))
        deep_gemm.swiglu_linear(x, gate, up, out, strict, device=device)
        outs.append(take(out))
    assert not np.isnan(outs[0]).any() and same_bits(*outs)
