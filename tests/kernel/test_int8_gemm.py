"""Signed bytes times signed bytes: the sums are integers, so results are compared for equality."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from kernel.test_gemv import OUTPUTS, placed, run, same_bits

import deep_gemm
from deep_gemm import WeightGemmSpec
from deep_gemm.demo.arrays import put, take
from deep_gemm.quantized import QuantizedMatrix

Array = np.ndarray[Any, np.dtype[Any]]


def problem(rng: np.random.Generator, m: int, n: int, k: int) -> tuple[Any, QuantizedMatrix, Array]:
    """x as a pair, W, and the one right fp32 y."""
    x, w = (rng.integers(-128, 128, (rows, k)).astype(np.int8) for rows in (m, n))
    x_scale, w_scale = (rng.random((rows, 1)).astype(np.float32) + 0.5 for rows in (m, n))
    sums = (x.astype(np.int64) @ w.astype(np.int64).T).astype(np.float32)
    return (x, x_scale), QuantizedMatrix("int8_row", n, k, w, w_scale), sums * (w_scale.T * x_scale)


def spec_of(y: str = "fp32", **fields: Any) -> WeightGemmSpec:
    short = {"block_m": 16, "token_stages": 3, "weight_stages": 3}
    return WeightGemmSpec(w="int8_row", x="int8_row", y=y, **(short | fields))


@pytest.mark.parametrize(
    "fields",
    [{}, {"block_m": 64, "cluster": 2}, {"block_m": 96, "warpgroups": 1, "ctas_per_sm": 2}, {"token_stages": 2, "weight_stages": 4}],
    ids=str,
)  # fmt: skip
def test_sums_are_exact(device: Any, fields: dict[str, Any]) -> None:
    x, w, expected = problem(np.random.default_rng(0), 70, 200, 784)
    assert same_bits(run(device, x, w, spec=spec_of(**fields)), expected)


def test_edges(device: Any) -> None:
    """Any number of rows of either, K down to the 16 bytes of a row; as the plan has it."""
    rng = np.random.default_rng(1)
    for m, n, k in ((1, 1, 16), (3, 65, 48), (17, 15, 144), (129, 33, 128), (2, 129, 2064)):
        x, w, expected = problem(rng, m, n, k)
        assert same_bits(run(device, x, w), expected)


def test_the_largest_sums(device: Any) -> None:
    """All products 2^14 or -127 * 128: int32 holds 131071 of them, fp32 rounds once."""
    k = 131056
    x = np.full((2, k), -128, np.int8)
    data = np.full((2, k), -128, np.int8)
    data[1] = 127
    ones = np.ones((2, 1), np.float32)
    got = run(device, (x, ones), QuantizedMatrix("int8_row", 2, k, data, ones))
    np.testing.assert_array_equal(got, np.array([[k * 16384.0, -k * 16256.0]] * 2, np.float32))


@pytest.mark.parametrize("y", ["bf16", "fp16", "fp32"])
def test_outputs_bias_and_residual(device: Any, y: str) -> None:
    rng = np.random.default_rng(2)
    x, w, exact = problem(rng, 20, 70, 256)
    x = x[0] // 16, x[1]
    exact = run(device, x, w)
    bias, residual = (rng.standard_normal(shape).astype(OUTPUTS[y]) for shape in ((70,), (20, 70)))
    out = put(device, residual.copy())
    pair = tuple(put(device, part) for part in x)
    deep_gemm.linear(pair, placed(device, w), out, bias=put(device, bias), residual=out, device=device)
    expected = (exact + bias.astype(np.float32)) + residual.astype(np.float32)
    assert same_bits(take(out), expected.astype(OUTPUTS[y]))


def test_rows_do_not_depend_on_the_batch(device: Any) -> None:
    """There is one form for every number of rows, `strict` and `invariant` included: integers have no order."""
    x, w, expected = problem(np.random.default_rng(3), 40, 70, 256)
    deep_gemm.reset_dispatch_counts()
    for options in ({}, {"strict": True}, {"invariant": True}):
        for m in (1, 16, 17, 40):
            rows = x[0][:m], x[1][:m]
            assert same_bits(run(device, rows, w, **options), np.ascontiguousarray(expected[:m]))
    assert {(row["x"], row["form"]) for row in deep_gemm.dispatch_counts()} == {("int8_row", "large")}


def test_a_scale_that_is_nan_reaches_its_row_alone(device: Any) -> None:
    x, w, expected = problem(np.random.default_rng(4), 20, 70, 256)
    x[1][7] = np.nan
    assert w.scales is not None
    w.scales[3] = np.inf
    got = run(device, x, w)
    assert not np.isfinite(got[7]).any() and not np.isfinite(got[:, 3]).any()
    rows, columns = np.arange(20) != 7, np.arange(70) != 3
    assert same_bits(got[np.ix_(rows, columns)], expected[np.ix_(rows, columns)])


def test_quantised_tokens(device: Any) -> None:
    """quantize() makes the pair; the whole product is then within what the two roundings cost."""
    rng = np.random.default_rng(5)
    wide, tokens = (
        rng.standard_normal((96, 512)).astype(np.float32),
        rng.standard_normal((40, 512)).astype(np.float32),
    )
    x = deep_gemm.quantize(tokens, "int8_row")
    y = run(device, (x.data, x.scales), deep_gemm.quantize(wide, "int8_row"))
    exact = tokens @ wide.T
    assert np.linalg.norm(y - exact) <= 0.015 * np.linalg.norm(exact)


def refused(
    words: str, x: Any, w: QuantizedMatrix, kind: type[Exception] = ValueError, **options: Any
) -> None:
    out = np.full((x[0].shape[0], w.n), -7, np.float32)
    with pytest.raises(kind, match=words):
        deep_gemm.linear(x, w, out, device=options.pop("device", "emulator:sm_90a,sms=4"), **options)
    assert (out == -7).all()


def test_what_is_refused() -> None:
    x, w, _ = problem(np.random.default_rng(6), 4, 20, 256)
    refused("multiples of 16 bytes", (np.zeros((4, 264), np.int8)[:, 4:260], x[1]), w)
    refused("for sm_90a", x, w, device="emulator:sm_100a,sms=4")
    refused(r"x_scale has shape \[4, 2\], expected \[4, 1\]", (x[0], np.ones((4, 2), np.float32)), w)
    refused("scales of fp16", (x[0], x[1].astype(np.float16)), w, TypeError)
    refused("for bf16 tokens|int8_row weights, bf16 tokens", x, w, spec=spec_of().replace(x="bf16"))
    long = np.zeros((1, 131072), np.int8), np.ones((1, 1), np.float32)
    refused("holds k of 131071", long, QuantizedMatrix("int8_row", 1, 131072, long[0], long[1]))
    fp8 = deep_gemm.quantize(np.ones((20, 256), np.float32), "fp8_row")
    refused("x is int8, expected fp8_e4m3 beside fp8_row", x, fp8, TypeError)
    with pytest.raises(ValueError, match="int8 activations are for int8 weights"):
        deep_gemm._C.weight_gemm_source(spec_of().replace(w="fp8_row"))
