"""Quantisation on the device, bit for bit the reference, edges first; rows alone, gathered rows, bad arguments."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from certificate import assert_batch_invariant
from reference import quantize as reference

from deep_gemm import _C, fp4_formats, utils
from deep_gemm.demo.arrays import put, take

Array = np.ndarray[Any, np.dtype[Any]]
BF16 = ml_dtypes.bfloat16


def matrix(m: int, k: int, dtype: Any, seed: int = 0) -> Array:
    """Rows of very different sizes; zeros, ties, tiny and huge numbers, infinities and NaN in some of them."""
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((m, k)) * np.exp2(rng.integers(-20, 20, (m, 1)))).astype(np.float32)
    special = [
        lambda row: np.zeros_like(row),
        lambda row: rng.integers(-28, 29, k) * np.float32(0.25),
        lambda row: row * np.float32(2.0**-100),
        lambda row: np.where(np.arange(k) == k // 2, np.float32(np.nan), row),
        lambda row: np.where(np.arange(k) == k // 2, np.float32(-np.inf), row),
        lambda row: -np.zeros_like(row),
        lambda row: row / np.abs(row).max() * np.float32(3.3e38),  # whose E2M1 scale would be 2^126
    ]
    for i, change in enumerate(special[: m - 1]):
        x[i + 1] = change(x[i + 1])
    return x.astype(dtype)


def run(device: Any, x: Array, recipe: str, rule: str, given: Array | None = None) -> tuple[Array, ...]:
    """quantize_into with poisoned outputs."""
    m, k = x.shape
    fp8 = recipe.startswith("fp8")
    block = {"fp8_128": 128, "fp8_row": k, "mxfp4": 32, "nvfp4": 16}[recipe]
    codes = put(
        device,
        np.full((m, k if fp8 else k // 2), 0xA5, np.uint8).view(ml_dtypes.float8_e4m3fn if fp8 else np.uint8),
    )
    poison = (
        np.full((m, -(-k // block)), np.nan, np.float32) if fp8 else np.full((m, k // block), 0xA5, np.uint8)
    )
    scales = put(device, poison[:, 0].copy() if recipe == "fp8_row" else poison)
    shared = None
    if recipe == "nvfp4":
        shared = put(device, np.full(m, np.nan, np.float32) if given is None else given)
    _C.quantize_into(recipe, rule, put(device, x), codes, scales, shared, given is not None, device=device)
    out = (take(codes).view(np.uint8), take(scales))
    return out if shared is None else (*out, take(shared))


def same(got: Array, expected: Array) -> bool:
    if got.dtype == np.float32:
        nan = np.isnan(expected)
        return bool((np.isnan(got) == nan).all() and (got[~nan] == expected[~nan]).all())
    return got.shape == expected.shape and bool((got == expected).all())


@pytest.mark.parametrize("recipe", ["fp8_128", "fp8_row", "mxfp4", "nvfp4"])
def test_rows_are_independent(device: Any, recipe: str) -> None:
    rule = "exact" if recipe == "nvfp4" else "up"

    def call(rows: dict[str, Array]) -> dict[str, Array]:
        return {str(i): part for i, part in enumerate(run(device, rows["x"], recipe, rule))}

    assert_batch_invariant(call, {"x": matrix(7, 128, BF16)})


SHAPES = [(1, 16), (1, 128), (7, 400), (3, 2064), (40, 256)]


@pytest.mark.parametrize("rule", ["exact", "up", "nearest"])
@pytest.mark.parametrize("dtype", [BF16, np.float32], ids=["bf16", "fp32"])
@pytest.mark.parametrize(("m", "k"), SHAPES)
@pytest.mark.parametrize("recipe", ["fp8_128", "fp8_row"])
def test_fp8(device: Any, m: int, k: int, dtype: Any, rule: str, recipe: str) -> None:
    x = matrix(m, k, dtype)
    codes, scales = run(device, x, recipe, rule)
    expected = getattr(reference, recipe)(x.astype(np.float32), rule)
    assert same(scales, expected[1])
    nan = expected[0] & 0x7F == 0x7F  # a NaN may have either sign
    assert same(np.where(nan, codes & 0x7F, codes), np.where(nan, 0x7F, expected[0]))


@pytest.mark.parametrize("rule", ["exact", "up"])
def test_fp8_is_what_the_cast_gives(device: Any, rule: str) -> None:
    x = np.random.default_rng(5).standard_normal((9, 336)).astype(BF16)
    codes, scales = run(device, x, "fp8_128", rule)
    expected = utils.per_token_cast_to_fp8(x, rule == "up")
    assert (codes == expected[0].view(np.uint8)).all() and (scales == expected[1]).all()


@pytest.mark.parametrize("rule", ["up", "nearest"])
@pytest.mark.parametrize("dtype", [BF16, np.float32], ids=["bf16", "fp32"])
@pytest.mark.parametrize(("m", "k"), [(1, 32), (7, 416), (3, 2080), (40, 256)])
def test_mxfp4(device: Any, m: int, k: int, dtype: Any, rule: str) -> None:
    x = matrix(m, k, dtype)
    got, expected = run(device, x, "mxfp4", rule), reference.mxfp4(x.astype(np.float32), rule)
    assert same(got[1], expected[1])
    assert same(got[0], expected[0])
    host = fp4_formats.quantize_mxfp4(x, rule=rule)
    assert same(host[0], expected[0]) and same(host[1], expected[1])


@pytest.mark.parametrize("given", [None, 0.37])
@pytest.mark.parametrize("dtype", [BF16, np.float32], ids=["bf16", "fp32"])
@pytest.mark.parametrize(("m", "k"), SHAPES)
def test_nvfp4(device: Any, m: int, k: int, dtype: Any, given: float | None) -> None:
    x = matrix(m, k, dtype)
    shared = None if given is None else np.float32([given])
    got = run(device, x, "nvfp4", "exact", shared)
    expected = reference.nvfp4(x.astype(np.float32), None if given is None else np.float32(given))
    assert given is not None or same(got[2], expected[2])
    assert same(got[1] & 0x7F, expected[1] & 0x7F) and same(got[0], expected[0])


@pytest.mark.parametrize("recipe", ["fp8_128", "fp8_row", "mxfp4", "nvfp4"])
def test_a_row_alone_gives_the_same_bits(device: Any, recipe: str) -> None:
    x = matrix(12, 288, BF16)
    rule = "up" if recipe == "mxfp4" else "exact"
    whole = run(device, x, recipe, rule)
    for row in range(len(x)):
        alone = run(device, x[row : row + 1], recipe, rule)
        for part, single in zip(whole, alone, strict=True):
            assert (part[row].reshape(-1).view(np.uint8) == single[0].reshape(-1).view(np.uint8)).all()


@pytest.mark.parametrize("recipe", ["fp8_128", "nvfp4"])
def test_gathered_rows(device: Any, recipe: str) -> None:
    rng = np.random.default_rng(2)
    x = rng.standard_normal((5, 144)).astype(BF16)
    source = np.array([8, -1, 3, 0, 9, 4, 7, -1], np.int32)  # of ten pairs, two to a row
    fp8 = recipe == "fp8_128"
    codes = put(
        device,
        np.full((8, 144 if fp8 else 72), 0xA5, np.uint8).view(ml_dtypes.float8_e4m3fn if fp8 else np.uint8),
    )
    scales = put(device, np.full((8, 2), np.nan, np.float32) if fp8 else np.full((8, 9), 0xA5, np.uint8))
    shared = None if fp8 else put(device, np.full(8, np.nan, np.float32))
    _C.quantize_into(recipe, "exact", put(device, x), codes, scales, shared, False, put(device, source),
                     put(device, np.array([6], np.int32)), 2, device=device)  # fmt: skip
    got_codes, got_scales = take(codes).view(np.uint8), take(scales)
    expected = reference.fp8_128(x.astype(np.float32)) if fp8 else reference.nvfp4(x.astype(np.float32))
    for row, pair in enumerate(source):
        if pair < 0 or row >= 6:
            assert (got_codes[row] == 0xA5).all()
        else:
            assert (got_codes[row] == expected[0][pair // 2]).all()
            assert (got_scales[row] == expected[1][pair // 2]).all()


def test_strided_scales_and_rows(emulator: Any) -> None:
    wide = matrix(6, 512, BF16)
    x = wide[:, :256]
    scales = utils.get_mn_major_tma_aligned_tensor(np.zeros((6, 2), np.float32))
    codes = np.zeros((6, 384), ml_dtypes.float8_e4m3fn)
    _C.quantize_into("fp8_128", "exact", x, codes[:, :256], scales, device=emulator)
    expected = reference.fp8_128(x.astype(np.float32))
    assert same(scales, expected[1]) and (codes.view(np.uint8)[:, 256:] == 0).all()


@pytest.mark.parametrize("recipe", ["fp8_128", "mxfp4", "nvfp4"])
def test_outputs_are_made_where_x_is(emulator: Any, recipe: str) -> None:
    x = matrix(6, 96, BF16)
    rule = "up" if recipe == "mxfp4" else "exact"
    for made, given in zip(
        fp4_formats.quantize_tokens(x, recipe, device=emulator), run(emulator, x, recipe, rule), strict=True
    ):
        assert (made.view(np.uint8) == given.view(np.uint8)).all()


def test_empty(emulator: Any) -> None:
    for m, k in ((0, 128), (3, 0)):
        codes, scales = fp4_formats.quantize_tokens(np.zeros((m, k), BF16), device=emulator)
        assert codes.shape == (m, k) and scales.shape == (m, -(-k // 128))


def good(**changes: Any) -> dict[str, Any]:
    arguments = {
        "recipe": "fp8_128",
        "scale_rule": "exact",
        "x": np.zeros((4, 128), BF16),
        "codes": np.zeros((4, 128), ml_dtypes.float8_e4m3fn),
        "scales": np.full((4, 1), 7, np.float32),
    }
    return arguments | changes


BAD: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    ("recipe", {"recipe": "fp8"}, ValueError, "got 'fp8', expected one of fp8_128, fp8_row, mxfp4, nvfp4"),
    ("rule", {"scale_rule": "down"}, ValueError, "got 'down', expected one of exact"),
    ("x of fp16", {"x": np.zeros((4, 128), np.float16)}, TypeError, "x is fp16, expected bf16 or fp32"),
    ("x of one dimension", {"x": np.zeros(128, BF16)}, ValueError, r"x has shape [128], expected [any, any]"),
    ("odd k", {"x": np.zeros((4, 120), BF16)}, ValueError, "x has 120 columns, expected a multiple of 16"),
    ("x transposed", {"x": np.zeros((128, 4), BF16).T}, ValueError, "x has stride 4 along its last dimension"),
    ("codes too small", {"codes": np.zeros((3, 128), ml_dtypes.float8_e4m3fn)}, ValueError, "expected [4, 128]"),
    ("codes of bytes", {"codes": np.zeros((4, 128), np.int8)}, TypeError, "codes is int8, expected fp8_e4m3"),
    ("scales of another shape", {"scales": np.zeros((1, 4), np.float32)}, ValueError, "expected [4, 1]"),
    ("global scale", {"global_scale": np.zeros(4, np.float32)}, ValueError, "expected none for fp8_128"),
    ("exact mxfp4", {"recipe": "mxfp4", "codes": np.zeros((4, 64), np.uint8), "scales": np.zeros((4, 4), np.uint8)},
     ValueError, "powers of two"),
    ("only one of the index arrays", {"source_rows": np.zeros(4, np.int32)}, ValueError, "expected both"),
    ("divisor", {"source_rows": np.zeros(4, np.int32), "num_rows": np.zeros(1, np.int32), "divisor": 0}, ValueError,
     "divisor is 0"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "error", "text"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_bad_input(emulator: Any, changes: dict[str, Any], error: type[Exception], text: str) -> None:
    arguments = good(**changes)
    with pytest.raises(error) as raised:
        _C.quantize_into(**arguments, device=emulator)
    assert text in str(raised.value)
    assert "scales" in changes or (arguments["scales"] == 7).all()


def test_unknown_recipe_and_shape(emulator: Any) -> None:
    with pytest.raises(ValueError, match="expected one of fp8_128"):
        fp4_formats.quantize_tokens(np.zeros((2, 32), BF16), "fp4", device=emulator)
    with pytest.raises(ValueError, match=r"expected \[m, k\]"):
        fp4_formats.quantize_tokens(np.zeros(32, BF16), device=emulator)
