"""Packing FP4 weights: what comes out of the blobs is what went in, whatever the exponents."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from reference import fp4

import deep_gemm


def random_weights(
    rng: np.random.Generator, experts: int, n: int, k: int, low: int = 110, high: int = 125
) -> tuple[np.ndarray, np.ndarray]:
    """All codes, -0 included, and scales with exponents from `low` to below `high`."""
    codes = rng.integers(0, 256, (experts, n, k // 2), np.uint8)
    return codes, rng.integers(low, high, (experts, n, k // 32)).astype(np.uint8)


@pytest.mark.parametrize("form", [None, "mx_e4m3", "mx_e5m2"])
@pytest.mark.parametrize(
    "shape", [(1, 64, 256), (2, 128, 512), (1, 1, 32), (3, 40, 160), (2, 130, 288)], ids=str
)
@pytest.mark.parametrize(
    "span", [(0, 1), (120, 121), (110, 125), (112, 141), (100, 130), (0, 255), (253, 255)], ids=str
)
def test_every_weight_comes_back(
    shape: tuple[int, int, int], span: tuple[int, int], form: str | None
) -> None:
    codes, scales = random_weights(np.random.default_rng(3), *shape, *span)
    weights = deep_gemm.pack_fp4_weights(codes, scales, form=form)
    assert (fp4.unpack(weights) == fp4.dequantise(codes, scales)).all()
    assert np.isfinite(np.asarray(weights.row_scales)).all()
    assert (weights.experts, weights.n, weights.k) == shape


def test_the_report_counts_rows() -> None:
    """One row of each kind: narrow, beyond e4m3, beyond e5m2, and wide only in groups of zeros."""
    codes = np.full((1, 64, 64), 0x21, np.uint8)
    scales = np.full((1, 64, 4), 120, np.uint8)
    scales[0, 1, 0] = 120 - 14
    scales[0, 2, 0] = 120 - 15
    scales[0, 3, 0] = 120 - 29
    scales[0, 4, 0], codes[0, 4, :16] = 0, 0x80
    weights = deep_gemm.pack_fp4_weights(codes, scales)
    report = {"rows": 64, "rows_beyond_e4m3": 2, "rows_beyond_e5m2": 1, "extra_runs": 1, "widest": 30}
    assert weights.report == report
    assert weights.split and weights.form == "mx_e4m3"
    assert (fp4.unpack(weights) == fp4.dequantise(codes, scales)).all()


@pytest.mark.parametrize(
    ("wide_rows", "form", "split"), [(0, "mx_e4m3", False), (1, "mx_e4m3", True), (64, "mx_e5m2", False)]
)
def test_the_smaller_form_is_chosen(wide_rows: int, form: str, split: bool) -> None:
    """A block in 64 twice costs less than a byte for each offset; all of them do not."""
    codes = np.full((1, 64 * 64, 128), 0x21, np.uint8)
    scales = np.full((1, 64 * 64, 8), 120, np.uint8)
    scales[0, : wide_rows * 64 : 64, 0] = 100
    weights = deep_gemm.pack_fp4_weights(codes, scales)
    assert (weights.form, weights.split) == (form, split)


def test_powers_of_two_in_fp32_are_scales() -> None:
    rng = np.random.default_rng(0)
    codes, scales = random_weights(rng, 1, 64, 256)
    as_fp32 = np.ldexp(np.float32(1), scales.astype(np.int32) - 127).astype(np.float32)
    one = deep_gemm.pack_fp4_weights(codes[0], as_fp32[0])
    other = deep_gemm.pack_fp4_weights(codes, scales)
    assert (np.asarray(one.blobs) == np.asarray(other.blobs)).all()


BAD: list[tuple[Any, Any, type[Exception], str]] = [
    (np.zeros((64, 16), np.uint8), np.zeros((64, 2), np.uint8), ValueError, "multiple of 32"),
    (np.zeros((64, 15), np.uint8), np.zeros((64, 1), np.uint8), ValueError, "multiple of 32"),
    (np.zeros((2, 64, 16), np.uint8), np.zeros((64, 1), np.uint8), ValueError, "experts"),
    ([[0]], np.zeros((1, 1), np.uint8), TypeError, "got a list"),
    (np.zeros((64, 16), np.int32), np.zeros((64, 1), np.uint8), TypeError, "bytes"),
    (np.zeros((64, 16), np.uint8), np.zeros((64, 1), np.float64), TypeError, "UE8M0"),
    (np.zeros((64, 16), np.uint8), np.full((64, 1), 3.0, np.float32), ValueError, "powers of two"),
    (np.zeros((64, 16), np.uint8), np.zeros((64, 1), np.float32), ValueError, "1 for a group of zeros"),
    (np.zeros((64, 16), np.uint8), np.full((64, 1), 1, np.int32), TypeError, "got scales of int32"),
    (np.zeros((64, 0), np.uint8), np.zeros((64, 0), np.uint8), ValueError, "k is 0, expected a positive"),
    (np.zeros((64, 16), np.uint8), np.full((64, 1), 255, np.uint8), ValueError, "row 0, group 0 is 255"),
]


@pytest.mark.parametrize(("codes", "scales", "kind", "words"), BAD, ids=[bad[3] for bad in BAD])
def test_bad_weights_are_refused(codes: Any, scales: Any, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        deep_gemm.pack_fp4_weights(codes, scales)
