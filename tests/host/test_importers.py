"""Checkpoint layouts against decoders that read them as their formats describe them, and the host quantisers."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from reference import quantize as reference

from deep_gemm import fp4_formats, utils

Array = np.ndarray[Any, np.dtype[Any]]


def random_bytes(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def exponents(*shape: int) -> Array:
    return np.random.default_rng(1).integers(100, 150, shape, dtype=np.uint8)


def test_deepseek() -> None:
    weight, scale = random_bytes(5, 48).view(np.int8), exponents(5, 3).view(ml_dtypes.float8_e8m0fnu)
    codes, scales = fp4_formats.from_deepseek(weight, scale)
    assert codes.dtype == scales.dtype == np.uint8
    assert (fp4_formats.dequantize_mxfp4(codes, scales) == reference.deepseek(weight, scale)).all()


@pytest.mark.parametrize("reciprocal", [False, True])
def test_nvfp4(reciprocal: bool) -> None:
    weight = random_bytes(5, 24)
    scale = (random_bytes(5, 3, seed=2) % 0x7F).view(ml_dtypes.float8_e4m3fn)
    shared = np.float32(0.25 if reciprocal else 4.0)
    codes, scales, total = fp4_formats.from_nvfp4(weight, scale, shared, reciprocal=reciprocal)
    assert (
        fp4_formats.dequantize_nvfp4(codes, scales, total) == reference.nvfp4_checkpoint(weight, scale, 4.0)
    ).all()


def test_nvfp4_one_global_scale_for_each_expert() -> None:
    weight, scale = random_bytes(3, 5, 24), (random_bytes(3, 5, 3) % 0x7F).view(ml_dtypes.float8_e4m3fn)
    shared = np.float32([0.5, 1.0, 8.0])
    values = fp4_formats.dequantize_nvfp4(*fp4_formats.from_nvfp4(weight, scale, shared))
    for expert in range(3):
        expected = reference.nvfp4_checkpoint(weight[expert], scale[expert], shared[expert])
        assert (values[expert] == expected).all()


def test_gguf() -> None:
    blocks = random_bytes(4, 3 * 17)
    blocks[:, ::17] = exponents(4, 3)
    codes, scales = fp4_formats.from_gguf_mxfp4(blocks)
    assert codes.shape == (4, 48) and scales.shape == (4, 3)
    assert (fp4_formats.dequantize_mxfp4(codes, scales) == reference.gguf_mxfp4(blocks)).all()


@pytest.mark.parametrize("groups", [3, 4, 5])
@pytest.mark.parametrize("mn_major", [False, True])
def test_deepgemm(groups: int, mn_major: bool) -> None:
    packed = random_bytes(4, groups * 16).view(np.int32)
    sf = exponents(4, -(-groups // 4) * 4).view(np.int32)
    given = np.asfortranarray(sf) if mn_major else sf
    for codes_in in (packed, packed.view(np.int8)):
        codes, scales = fp4_formats.from_deepgemm(codes_in, given)
        assert scales.shape == (4, groups)
        assert (fp4_formats.dequantize_mxfp4(codes, scales) == reference.deepgemm(packed, sf)).all()


def test_deepgemm_reads_what_the_cast_makes() -> None:
    x = np.random.default_rng(3).standard_normal((6, 96)).astype(np.float32)
    packed, sf = utils.per_token_cast_to_fp4(x, True, 32, use_packed_ue8m0=True)
    values = fp4_formats.dequantize_mxfp4(*fp4_formats.from_deepgemm(packed, sf))
    back = utils.cast_back_from_fp4(packed, sf, 32, use_packed_ue8m0=True)
    assert (values == back).all()


@pytest.mark.parametrize("shape", [(128, 4), (1, 1), (130, 7), (300, 12)])
def test_swizzled_scales(shape: tuple[int, int]) -> None:
    scales = random_bytes(*shape)
    moved = fp4_formats.swizzle_scales(scales)
    assert moved.shape == (-(-shape[0] // 128), -(-shape[1] // 4), 32, 4, 4)
    for m, k in [(0, 0), (shape[0] - 1, shape[1] - 1), (shape[0] // 2, shape[1] // 2)]:
        assert moved[m // 128, k // 4, m % 32, m // 32 % 4, k % 4] == scales[m, k]
    assert (fp4_formats.unswizzle_scales(moved, *shape) == scales).all()
    assert int(moved.astype(np.int64).sum()) == int(scales.astype(np.int64).sum())  # padding is zero


def matrix(rows: int, k: int, seed: int = 0) -> Array:
    """Rows of very different sizes, zeros, ties, and numbers around fp32's smallest."""
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((rows, k)) * np.exp2(rng.integers(-20, 20, (rows, 1)))).astype(np.float32)
    x[0] = 0
    x[1, : k // 2] = -0.0
    x[2] = rng.integers(-28, 29, k) * np.float32(0.25)
    x[3] *= np.float32(2.0**-110)
    return x


@pytest.mark.parametrize("rule", ["up", "nearest"])
def test_quantize_mxfp4(rule: str) -> None:
    x = matrix(8, 256)
    codes, scales = fp4_formats.quantize_mxfp4(x, rule=rule)
    expected = reference.mxfp4(x, rule)
    assert (codes == expected[0]).all() and (scales == expected[1]).all()
    back = fp4_formats.dequantize_mxfp4(codes, scales)
    limit = np.repeat(np.exp2(scales.astype(np.float64) - 127), 32, axis=-1) * (1 if rule == "up" else 2.5)
    assert (np.abs(back - x) <= limit).all()
    again = fp4_formats.quantize_mxfp4(back, rule="up")
    assert (fp4_formats.dequantize_mxfp4(*again) == back).all()


@pytest.mark.parametrize("scope", ["token", "tensor", "given"])
def test_quantize_nvfp4(scope: str) -> None:
    x = matrix(8, 256)
    given = np.float32(0.01) if scope == "given" else None
    codes, scales, shared = fp4_formats.quantize_nvfp4(
        x, scope="token" if scope == "given" else scope, global_scale=given
    )
    known = given if scope == "given" else (np.abs(x).max() / np.float32(2688) if scope == "tensor" else None)
    expected = reference.nvfp4(x, known)
    assert (shared == expected[2]).all() and (scales == expected[1]).all() and (codes == expected[0]).all()
    if scope == "token":
        rms = np.linalg.norm(fp4_formats.dequantize_nvfp4(codes, scales, shared)[4:] - x[4:], axis=1)
        assert (rms <= 0.11 * np.linalg.norm(x[4:], axis=1)).all()


def test_block_of_32_and_tokens_alone() -> None:
    x = matrix(6, 64)
    codes, scales, shared = fp4_formats.quantize_nvfp4(x, scope="token", block=32)
    assert scales.shape == (6, 2)
    assert fp4_formats.dequantize_nvfp4(codes, scales, shared, block=32).shape == x.shape
    for row in range(6):
        alone = fp4_formats.quantize_nvfp4(x[row : row + 1], scope="token", block=32)
        assert (alone[0][0] == codes[row]).all() and (alone[1][0] == scales[row]).all()


def test_nan_reaches_the_scale() -> None:
    x = np.ones((1, 64), np.float32)
    x[0, 40] = np.nan
    assert fp4_formats.quantize_mxfp4(x)[1].tolist() == [[124 + 1, 255]]
    scales = fp4_formats.quantize_nvfp4(x, global_scale=np.float32(1))[1]
    assert scales[0, 2] == 0x7F and scales[0, 0] != 0x7F


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: fp4_formats.from_deepseek(np.zeros((2, 8)), np.zeros((2, 1), np.uint8)), TypeError, "one byte"),
        (lambda: fp4_formats.from_deepseek(random_bytes(2, 16), random_bytes(2, 2)), ValueError, "multiple of 32"),
        (lambda: fp4_formats.from_gguf_mxfp4(random_bytes(2, 18)), ValueError, "multiple of 17"),
        (lambda: fp4_formats.from_deepgemm(random_bytes(2, 16), np.zeros((2, 2), np.int32)), ValueError, "128"),
        (lambda: fp4_formats.from_deepgemm(random_bytes(2, 16), random_bytes(2, 4)), TypeError, "int32"),
        (lambda: fp4_formats.from_nvfp4(random_bytes(2, 8), random_bytes(2, 1), np.ones(3)), ValueError, "each matrix"),
        (lambda: fp4_formats.quantize_mxfp4(np.zeros((2, 33))), ValueError, "multiple of 32"),
        (lambda: fp4_formats.quantize_mxfp4(np.zeros((2, 32)), rule="down"), ValueError, "'down'"),
        (lambda: fp4_formats.quantize_nvfp4(np.zeros((2, 32)), scope="row"), ValueError, "'row'"),
        (lambda: fp4_formats.quantize_nvfp4(np.zeros((2, 32)), block=8), ValueError, "16 or 32"),
        (lambda: fp4_formats.quantize_nvfp4(np.zeros((2, 32)), global_scale=np.ones(3)), ValueError, "(3,)"),
        (lambda: fp4_formats.unswizzle_scales(random_bytes(512), 129, 4), ValueError, "1024 bytes"),
    ],
)  # fmt: skip
def test_bad_input(call: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error) as raised:
        call()
    assert text in str(raised.value)
