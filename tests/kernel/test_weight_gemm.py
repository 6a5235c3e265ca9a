"""The large-batch form of linear(): every layout against float64 and against the small-batch form, edges first; rows that
depend on nothing but themselves.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from kernel.test_gemv import (
    BF16,
    OUTPUTS,
    check,
    on,
    placed,
    poison,
    random_weight,
    random_x,
    run,
    same_bits,
)
from reference import gemv as reference
from reference import quant

import deep_gemm
from deep_gemm import WeightGemmSpec
from deep_gemm.demo.arrays import put, take
from deep_gemm.quantized import FORMATS, QuantizedMatrix

Array = np.ndarray[Any, np.dtype[Any]]

SERVED = [name for name in FORMATS if not name.startswith("q8")]


def stage_k(w: str) -> int:
    return 128 * 8 // int(FORMATS[w]["element_bits"])


def kind_of(w: str) -> str:
    """What x is beside such weights."""
    return "fp16" if w == "fp16" else "bf16"


def spec_of(w: str, k: int, y: str = "fp32", **fields: Any) -> WeightGemmSpec:
    """A kernel with few stages, so that its rings turn."""
    short = {"block_m": 16, "token_stages": 4, "weight_stages": 2, "whole_scales": k % stage_k(w) == 0}
    return WeightGemmSpec(w=w, x=kind_of(w), y=y, **(short | fields))


def aligned_k(w: str, k: int) -> int:
    """The next K whose rows of W are multiples of 16 bytes."""
    unit = 32 if FORMATS[w]["element_bits"] == 4 else 16
    return -(-k // unit) * unit


ARRANGEMENTS: list[dict[str, Any]] = [
    {},
    {"block_m": 32, "cluster": 2},
    {"block_m": 64, "warpgroups": 1},
]


@pytest.mark.parametrize("arrangement", ARRANGEMENTS, ids=str)
@pytest.mark.parametrize("w", SERVED)
def test_layouts(device: Any, w: str, arrangement: dict[str, Any]) -> None:
    """Several blocks with tails of tokens and rows; several stages of weights."""
    rng = np.random.default_rng(1)
    k = 2 * stage_k(w)
    matrix = deep_gemm.quantize(random_weight(rng, 200, k), w)
    tokens = random_x(rng, 70, k, kind_of(w))
    check(run(device, tokens, matrix, spec=spec_of(w, k, **arrangement)), tokens, matrix)


@pytest.mark.parametrize("w", SERVED)
def test_edges(device: Any, w: str) -> None:
    """Odd N and M, K that ends within a stage, a block of scales or a step of 16."""
    rng = np.random.default_rng(2)
    for n, m, k in ((1, 17, 16), (15, 3, 48), (65, 33, 144), (129, 1, 272), (33, 20, 400)):
        k = aligned_k(w, k)
        matrix = deep_gemm.quantize(random_weight(rng, n, k), w)
        tokens = random_x(rng, m, k, kind_of(w))
        check(run(device, tokens, matrix, spec=spec_of(w, k)), tokens, matrix)


def test_rows_further_apart_than_k(emulator: Any) -> None:
    """K need not be a multiple of anything where rows start at multiples of 16 bytes; what lies between is not read."""
    rng = np.random.default_rng(3)
    for w, k in (("fp8_row", 201), ("mxfp4", 203), ("int8_row", 31), ("nvfp4", 77)):
        matrix = deep_gemm.quantize(random_weight(rng, 40, k), w)
        row = matrix.data.view(np.uint8)
        wide = np.full((40, -(-row.shape[1] // 16) * 16 + 16), 0x7F, np.uint8)  # NaN, 127, 6: never a zero
        wide[:, : row.shape[1]] = row
        data = wide[:, : row.shape[1]].view(matrix.data.dtype)
        matrix = QuantizedMatrix(w, 40, k, data, matrix.scales, None, matrix.global_scale)
        tokens = np.full((20, -(-k // 8) * 8 + 8), np.nan, BF16)
        tokens[:, :k] = random_x(rng, 20, k, "bf16")
        tokens = tokens[:, :k]
        full = run(emulator, tokens, matrix, spec=spec_of(w, k))
        check(full, tokens, matrix)
        # The stride of a single row means nothing; E4M3 scales start anywhere.
        assert same_bits(run(emulator, tokens[:1], matrix, spec=spec_of(w, k)), full[:1])
        if w == "nvfp4":
            assert matrix.scales is not None
            odd = np.zeros(matrix.scales.size + 1, np.int8)[1:].reshape(matrix.scales.shape)
            odd[...] = matrix.scales
            moved = QuantizedMatrix(w, 40, k, data, odd, None, matrix.global_scale)
            assert same_bits(run(emulator, tokens, moved, spec=spec_of(w, k)), full)


@pytest.mark.parametrize("y", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize(("n", "offset"), [(200, 0), (77, 0), (64, 3)])
def test_outputs(device: Any, y: str, n: int, offset: int) -> None:
    """Rounded once; rows of y at any address; nothing beside them is written."""
    rng = np.random.default_rng(4)
    matrix = deep_gemm.quantize(random_weight(rng, n, 256), "fp8_row")
    tokens = random_x(rng, 37, 256, "bf16")
    exact = run(device, tokens, matrix, spec=spec_of("fp8_row", 256))
    spec = spec_of("fp8_row", 256, y=y, block_m=32)
    if device.emulated and offset:
        host = np.full((37, n + 2 * offset), np.nan, OUTPUTS[y])
        wide = put(device, host)
        out = wide[:, offset : offset + n]
        deep_gemm.linear(on(device, tokens), placed(device, matrix), out, spec=spec, device=device)
        got = take(wide)
        assert np.isnan(got[:, :offset].astype(np.float32)).all()
        assert np.isnan(got[:, offset + n :].astype(np.float32)).all()
        got = np.ascontiguousarray(got[:, offset : offset + n])
    else:
        got = run(device, tokens, matrix, y, spec=spec)
    assert same_bits(got, exact.astype(OUTPUTS[y]))


@pytest.mark.parametrize("y", ["bf16", "fp32"])
def test_bias_and_residual(device: Any, y: str) -> None:
    rng = np.random.default_rng(5)
    matrix = deep_gemm.quantize(random_weight(rng, 70, 256), "int4_64")
    tokens = random_x(rng, 20, 256, "bf16")
    bias = rng.standard_normal(70).astype(OUTPUTS[y])
    residual = rng.standard_normal((20, 70)).astype(OUTPUTS[y])
    exact = run(device, tokens, matrix, spec=spec_of("int4_64", 256))
    out = put(device, residual.copy())
    deep_gemm.linear(
        on(device, tokens), placed(device, matrix), out, bias=put(device, bias), residual=out,
        spec=spec_of("int4_64", 256, y=y), device=device,
    )  # fmt: skip
    expected = (exact + bias.astype(np.float32)) + residual.astype(np.float32)
    assert same_bits(take(out), expected.astype(OUTPUTS[y]))


def test_matrices_of_different_heights(device: Any) -> None:
    rng = np.random.default_rng(6)
    tokens = random_x(rng, 20, 512, "bf16")
    matrices = [deep_gemm.quantize(random_weight(rng, n, 512), "mxfp4") for n in (33, 1, 130)]
    spec = spec_of("mxfp4", 512)
    alone = [run(device, tokens, matrix, spec=spec) for matrix in matrices]
    outs = [put(device, np.full((20, m.n), np.nan, np.float32)) for m in matrices]
    deep_gemm.linear(
        on(device, tokens), [placed(device, m) for m in matrices], outs, spec=spec, device=device
    )
    for one, out in zip(alone, outs, strict=True):
        assert same_bits(take(out), one)


@pytest.mark.parametrize(("w", "y"), [("fp8_128x128", "fp32"), ("nvfp4", "bf16"), ("bf16", "bf16")])
def test_swiglu(device: Any, w: str, y: str) -> None:
    """Of the sums that separate launches give; residual and bias come after it. Tails of rows and tokens."""
    rng = np.random.default_rng(15)
    k = 2 * stage_k(w)
    gate, up = (deep_gemm.quantize(random_weight(rng, 150, k), w) for _ in range(2))
    tokens = random_x(rng, 70, k, "bf16")
    g, u = (run(device, tokens, one, spec=spec_of(w, k)).astype(np.float64) for one in (gate, up))
    bias = rng.standard_normal(150).astype(OUTPUTS[y])
    out = put(device, rng.standard_normal((70, 150)).astype(OUTPUTS[y]))
    residual = take(out).astype(np.float64)
    deep_gemm.swiglu_linear(
        on(device, tokens), placed(device, gate), placed(device, up), out, limit=3.0, bias=put(device, bias),
        residual=out, spec=spec_of(w, k, y=y, epilogue="swiglu", block_m=64), device=device,
    )  # fmt: skip
    expected = reference.silu(np.minimum(g, 3)) * np.clip(u, -3, 3) + bias.astype(np.float64) + residual
    rounding = 2.0**-22 if y == "fp32" else 2.0**-8
    assert (np.abs(take(out) - expected) <= rounding * (np.abs(expected) + 8)).all()


# ---- The seam, and what a row depends on


def ulps_of_bf16(a: Array, b: Array, slack: Array) -> float:
    """The largest distance of two bf16 arrays in units of the last place, beyond `slack`: what fp32 sums of two orders
    may differ by, which shows where they cancel.
    """
    x, y = a.astype(np.float64), b.astype(np.float64)
    largest = np.maximum(np.maximum(np.abs(x), np.abs(y)), 1e-30)
    ulp = np.exp2(np.floor(np.log2(largest)) - 7)
    return float((np.maximum(np.abs(x - y) - slack, 0) / ulp).max())


@pytest.mark.parametrize("w", SERVED)
def test_both_forms_agree(device: Any, w: str) -> None:
    """Within one unit in the last place of bf16, at each side of the seam's lower end."""
    rng = np.random.default_rng(7)
    k = 3 * stage_k(w)
    matrix = deep_gemm.quantize(random_weight(rng, 96, k), w)
    tokens = random_x(rng, 17, k, kind_of(w))
    large = run(device, tokens, matrix, "bf16", spec=spec_of(w, k, y="bf16"))
    small = run(device, tokens, matrix, "bf16", invariant=True)
    magnitude = np.abs(quant.activations(tokens)) @ np.abs(quant.dequantize(matrix)).T
    assert ulps_of_bf16(large, small, magnitude * 2.0**-20) <= 1


@pytest.mark.parametrize("w", ["bf16", "fp8_128x128", "int4_32", "nvfp4", "int8_row"])
def test_rows_have_the_same_bits_in_every_kernel(device: Any, w: str) -> None:
    """Whatever the number of rows, the block, the cluster, the depth of the rings: the sum's order is the layout's."""
    rng = np.random.default_rng(8)
    k = 2 * stage_k(w)
    matrix = deep_gemm.quantize(random_weight(rng, 70, k), w)
    tokens = random_x(rng, 70, k, kind_of(w))
    full = run(device, tokens, matrix, spec=spec_of(w, k, block_m=64))
    for m, fields in (
        (1, {}),
        (33, {"block_m": 32, "cluster": 2, "token_stages": 3}),
        (70, {"warpgroups": 1, "weight_stages": 3}),
        (48, {"block_m": 96, "whole_scales": False}),
    ):
        got = run(device, tokens[:m], matrix, spec=spec_of(w, k, **fields))
        assert same_bits(got, np.ascontiguousarray(full[:m])), f"{m} rows, {fields}"
    order = rng.permutation(70)
    assert same_bits(run(device, tokens[order], matrix, spec=spec_of(w, k, block_m=64)), full[order])


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("w", ["fp8_128x128", "mxfp4"])
def test_neighbours_do_not_leak(device: Any, w: str, value: float) -> None:
    rng = np.random.default_rng(9)
    matrix = deep_gemm.quantize(random_weight(rng, 70, 288), w)
    tokens = random_x(rng, 20, 288, "bf16")
    clean = run(device, tokens, matrix, spec=spec_of(w, 288))
    got = run(device, poison(tokens, 7, value), matrix, spec=spec_of(w, 288))
    others = np.arange(20) != 7
    assert same_bits(got[others], clean[others])
    assert not np.isfinite(got[7]).any()


# ---- Codes and scales


@pytest.mark.parametrize("name", ["fp8_row", "int8_row", "fp8_32"])
def test_every_byte(device: Any, name: str) -> None:
    """All 256 codes, one a row, at each place of a word: W times one is the decoded byte, exactly."""
    row, codes = np.arange(1024), np.tile(np.arange(256, dtype=np.uint8), 4)
    data, place = np.zeros((1024, 128), np.uint8), (codes * 37 + row // 256) % 128
    data[row, place] = codes
    scales = np.ones((1024, 4 if name == "fp8_32" else 1), np.float32)
    matrix = QuantizedMatrix(name, 1024, 128, data.view(np.int8), scales)
    x = np.eye(128, dtype=np.float32).astype(BF16)
    got = run(device, x, matrix, spec=spec_of(name, 128, block_m=64))[place, row]
    expected = codes.view(np.int8) if name == "int8_row" else quant.e4m3(codes)
    np.testing.assert_array_equal(got, expected.astype(np.float32))


@pytest.mark.parametrize("name", ["mxfp4", "nvfp4", "nvfp4_32"])
def test_every_scale_times_every_nibble(device: Any, name: str) -> None:
    """As test_gemv's, with the codes in the second of two blocks."""
    block = 16 if name == "nvfp4" else 32
    codes = np.zeros((256, 2 * block), np.uint8)
    codes[:, block : block + 16] = np.arange(16)
    data = (codes[:, ::2] | codes[:, 1::2] << 4).view(np.int8)
    scales = np.full((256, 2), 56, np.uint8)  # 1 as E4M3, small as UE8M0
    matrix = QuantizedMatrix.from_parts(name, data, scales)
    scales[:, 1] = np.arange(256)
    matrix = replace(matrix, scales=scales.view(np.int8))
    x = np.zeros((16, 2 * block), BF16)
    x[:, block : block + 16] = np.eye(16)
    value = {"mxfp4": quant.ue8m0, "nvfp4": quant.e4m3, "nvfp4_32": quant.ue4m3}[name](scales)[:, 1]
    with np.errstate(over="ignore", invalid="ignore"):
        expected = (quant.E2M1[:, None] * value[None]).astype(np.float32)
    got = run(device, x, matrix, spec=spec_of(name, 2 * block))
    finite = np.isfinite(expected).all(axis=0)
    np.testing.assert_array_equal(got[:, finite], expected[:, finite])
    assert not np.isfinite(got[:, np.isnan(value)]).any()


def test_every_int4_code(device: Any) -> None:
    """All 16 codes at each place of two chunks of 128, beside all 16 zero points: a row for each shift and zero point."""
    zero, shift = np.arange(256) // 16, np.arange(256) % 16
    codes = ((np.arange(256) + shift[:, None]) % 16).astype(np.uint8)
    packed = (codes[:, ::2] | codes[:, 1::2] << 4).view(np.int8)
    scales, zeros = np.full((256, 4), 0.75, np.float16), zero[:, None].repeat(4, 1).astype(np.int8)
    matrix = QuantizedMatrix.from_parts("int4_zero_64", packed, scales, zeros)
    x = np.eye(256, dtype=np.float32).astype(BF16)
    got = run(device, x, matrix, spec=spec_of("int4_zero_64", 256, block_m=128))
    np.testing.assert_array_equal(got.T, (codes.astype(np.float32) - zero[:, None]) * np.float32(0.75))


EXTREMES = (
    1.0,
    0.0,
    -3.0,
    2.0**-149,
    1.5 * 2.0**-130,
    2.0**-60,
    2.0**60,
    1.25 * 2.0**100,
    1e-7,
    1e7,
    0.0,
    1.7,
)


@pytest.mark.parametrize("name", ["fp8_128x128", "fp8_32"])
def test_extreme_scales(device: Any, name: str) -> None:
    """Zero, negative, subnormal, huge: one block at a time speaks, the blocks around it have other scales."""
    block = 128 if name == "fp8_128x128" else 32
    k = block * len(EXTREMES)
    k = -(-k // 128) * 128
    rng = np.random.default_rng(10)
    data = rng.integers(-8, 9, (4, k)).astype(ml_dtypes.float8_e4m3fn)
    scales = np.resize(np.array(EXTREMES, np.float32), (1 if block == 128 else 4, k // block))
    matrix = QuantizedMatrix(name, 4, k, data, scales)
    x = np.zeros((k // block, k), BF16)
    for i in range(k // block):
        x[i, i * block : (i + 1) * block] = 1
    got = run(device, x, matrix, spec=spec_of(name, k))
    sums = data.astype(np.float64).reshape(4, -1, block).sum(2).T
    np.testing.assert_allclose(got, sums * scales[0][:, None], rtol=2e-6, atol=1e-44)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["fp8_128x128", "fp8_32", "int4_32", "int4_128"])
def test_scales_that_are_not_finite_reach_their_rows_alone(device: Any, name: str, bad: float) -> None:
    rng = np.random.default_rng(11)
    matrix = deep_gemm.quantize(random_weight(rng, 140, 512), name)
    tokens = random_x(rng, 17, 512, "bf16")
    spec = spec_of(name, 512)
    clean = run(device, tokens, matrix, spec=spec)
    assert matrix.scales is not None
    matrix.scales[1, 1] = bad
    got = run(device, tokens, matrix, spec=spec)
    hit = np.arange(140) >= 128 if name == "fp8_128x128" else np.arange(140) == 1
    assert not np.isfinite(got[:, hit]).any()
    assert same_bits(np.ascontiguousarray(got[:, ~hit]), np.ascontiguousarray(clean[:, ~hit]))


def test_blocks_without_scale_are_zeros(device: Any) -> None:
    """What quantisers leave of rows of zeros: fp16 scales of 0, in every place of a row."""
    rng = np.random.default_rng(12)
    for name in ("int4_32", "int4_zero_64", "int4_128", "fp8_32", "fp8_128x128"):
        matrix = deep_gemm.quantize(random_weight(rng, 20, 1024), name)
        assert matrix.scales is not None
        matrix.scales[:, ::3] = 0
        tokens = random_x(rng, 17, 1024, "bf16")
        check(run(device, tokens, matrix, spec=spec_of(name, 1024)), tokens, matrix)


def test_long_rows(device: Any) -> None:
    rng = np.random.default_rng(13)
    k = 131072
    for name in ("fp8_128x128", "int4_128"):
        matrix = deep_gemm.quantize(rng.standard_normal((3, k)).astype(np.float32), name)
        tokens = random_x(rng, 17, k, "bf16")
        got = run(device, tokens, matrix, spec=spec_of(name, k))
        expected = quant.activations(tokens) @ quant.dequantize(matrix).T
        # Every step of 16 cuts the sum below its last bit: half a bit on average, always towards zero.
        assert np.linalg.norm(got - expected) <= k / 16 * 2.0**-24 * np.linalg.norm(expected)
