"""Packing NVFP4 weights: the two terms are exact, the one is the nearest, and all codes decode alike everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from fp4_cases import on_device
from reference import fp4

import deep_gemm
from deep_gemm import _C, fp4_formats
from deep_gemm.demo.arrays import put, take

Array = np.ndarray[Any, np.dtype[Any]]
FORMS = ("nv_single", "nv_exact")
LOWEST, HIGHEST = 0x20, 0x5F  # codes of e4m3 that a packed scale may have
SCALES = range(1, 0x7F)  # bytes of a checkpoint's non-zero scales


def random_weights(
    rng: np.random.Generator, experts: int, n: int, k: int, low: int, high: int
) -> tuple[Array, Array]:
    """All codes, -0 included, and scale bytes from `low` to below `high`."""
    codes = rng.integers(0, 256, (experts, n, k // 2), np.uint8)
    return codes, rng.integers(low, high, (experts, n, k // 16)).astype(np.uint8)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "shape", [(1, 64, 256), (2, 128, 512), (1, 1, 16), (3, 40, 176), (2, 130, 288)], ids=str
)
@pytest.mark.parametrize(
    "span", [(0, 1), (1, 0x7F), (0, 0x7F), (0x30, 0x31), (1, 8), (0x28, 0x60), (0x70, 0x7F)], ids=str
)
def test_every_weight_comes_back(shape: tuple[int, int, int], span: tuple[int, int], form: str) -> None:
    """Whatever the scales: split into runs where they are further apart than the window is wide."""
    codes, scales = random_weights(np.random.default_rng(3), *shape, *span)
    weights = deep_gemm.pack_fp4_weights(codes, scales, np.float32(0.375), form=form)
    assert (fp4.unpack(weights) == fp4.nvfp4_of(form, codes, scales, 0.375)).all()
    assert (weights.experts, weights.n, weights.k) == shape and weights.form == form


@pytest.mark.parametrize("form", FORMS)
def test_python_and_cpp_agree_on_every_byte(form: str) -> None:
    """What a code becomes with a scale, of C++ and of ml_dtypes: e4m3 of two thirds, or a sum that is exact."""
    for code in range(LOWEST, HIGHEST + 1):
        scale = float(np.array([code], np.uint8).view(ml_dtypes.float8_e4m3fn)[0])
        high, low = (
            np.array([word], np.uint64).view(ml_dtypes.float8_e4m3fn) for word in _C.nvfp4_bytes(form, code)
        )
        if form == "nv_single":
            expected = (fp4.MAGNITUDES * scale / 1.5).astype(ml_dtypes.float8_e4m3fn)
            assert (high == expected).all() and not low.any()
            assert (high[[3, 5, 7]].astype(np.float64) * 1.5 == fp4.MAGNITUDES[[3, 5, 7]] * scale).all()
        else:
            assert (high.astype(np.float64) + low.astype(np.float64) == fp4.MAGNITUDES * scale).all()


@pytest.mark.parametrize("form", FORMS)
def test_the_kernel_decodes_every_code_with_every_scale(device: Any, form: str) -> None:
    """All 16 codes times all packed scale bytes, each multiplied by one, bit for bit what C++ says they become."""
    codes = np.arange(LOWEST, HIGHEST + 1)
    rows, k = 64, 256
    # Scale (row, group): each code of the window occurs in an even and an odd row and in both groups of a thread.
    row, group = np.arange(rows)[:, None], np.arange(k // 16)
    stored = codes[(row // 2 * 8 + group // 2 + row % 2 * 3 + group % 2 * 37) % len(codes)]
    places = {(int(stored[r, g]), r % 2, g % 2) for r, g in np.ndindex(rows, k // 16)}
    assert len(places) == 4 * len(codes)
    four_bits = (np.arange(k) + row * 3) % 16
    weights = deep_gemm.pack_fp4_weights(fp4.join_codes(four_bits), stored.astype(np.uint8), 1.0, form=form)
    assert not weights.split
    expected = np.empty((rows, k))
    for r, g in np.ndindex(rows, k // 16):
        high, low = (
            np.array([word], np.uint64).view(ml_dtypes.float8_e4m3fn).astype(np.float64)
            for word in _C.nvfp4_bytes(form, int(stored[r, g]))
        )
        code = four_bits[r, g * 16 : g * 16 + 16]
        expected[r, g * 16 : g * 16 + 16] = (high + low)[code & 7] * np.where(code & 8, -1, 1)
    ones = np.eye(k, dtype=np.float32).astype(ml_dtypes.float8_e4m3fn)
    out = put(device, np.full((k, rows), np.nan, np.float32))
    deep_gemm.fp8_fp4_gemm_nt(
        (put(device, ones), put(device, np.ones((k, 2), np.float32))),
        on_device(device, weights),
        out,
        device=device,
    )
    assert (expected * np.asarray(weights.row_scales, np.float64)[:, None] == take(out).T).all()


def test_one_term_is_at_most_one_in_26_off() -> None:
    """The largest error of all scales and codes, as the report and the documentation state it."""
    codes = np.tile(np.arange(16, dtype=np.uint8), (len(SCALES), 1))
    scales = np.array(SCALES, np.uint8)[:, None]
    exact = fp4.dequantise_nvfp4(fp4.join_codes(codes), scales, 1.0)
    error = np.abs(fp4.single_term(fp4.join_codes(codes), scales, 1.0) - exact)
    relative = error[exact != 0] / np.abs(exact[exact != 0])
    assert np.isclose(relative.max(), 1 / 26, rtol=1e-12) and (error[:, [3, 5, 7]] == 0).all()
    report = deep_gemm.pack_fp4_weights(fp4.join_codes(codes), scales, 3.0).report
    assert np.isclose(report["worst_error"], 1 / 26, rtol=1e-12)
    assert np.isclose(report["rms_error"], np.sqrt((error**2).sum() / (exact**2).sum()), rtol=1e-12)


def test_the_error_table_of_the_documentation() -> None:
    """docs/fp4.md states the error of each mantissa and magnitude."""
    page = (Path(__file__).parents[2] / "docs" / "fp4.md").read_text(encoding="utf-8")
    scale = np.arange(0x38, 0x40, dtype=np.uint8)[:, None]
    codes = fp4.join_codes(np.tile(np.arange(16, dtype=np.uint8), (8, 1)))
    exact = fp4.dequantise_nvfp4(codes, scale, 1.0)[:, 1:8]
    percent = 100 * (fp4.single_term(codes, scale, 1.0)[:, 1:8] - exact) / exact
    for names, columns in (("0.5, 1, 2, 4", [0, 1, 3, 5]), ("1.5, 3, 6", [2, 4, 6])):
        cells = next(line for line in page.splitlines() if line.startswith(f"| error of {names} in"))
        stated = np.array([float(cell) for cell in cells.split("|")[2:-1]])
        assert (np.abs(percent[:, columns] - stated[:, None]) < 0.006).all(), names


def test_rounding_of_a_gaussian_matrix() -> None:
    """1.4 % rms beside the 9.5 % of NVFP4 itself."""
    x = np.random.default_rng(0).standard_normal((256, 1024)).astype(np.float32)
    quantised = fp4_formats.quantize_nvfp4(x)
    single, exact = (deep_gemm.pack_fp4_weights(*quantised, form=form) for form in FORMS)
    assert (
        0.013 < single.report["rms_error"] < 0.015
        and exact.report["rms_error"] == exact.report["worst_error"] == 0
    )
    noise = np.linalg.norm(fp4.unpack(exact)[0] - x) / np.linalg.norm(x)
    total = np.linalg.norm(fp4.unpack(single)[0] - x) / np.linalg.norm(x)
    assert 0.09 < noise < 0.1 and total < noise * 1.02
    assert (np.asarray(single.blobs) == np.asarray(exact.blobs)).all()


def test_the_report_counts_rows() -> None:
    """One row of each kind: narrow, as wide as the window, wider, and wide only in groups of zeros."""
    codes = np.full((1, 64, 64), 0x21, np.uint8)
    scales = np.full((1, 64, 8), 0x58, np.uint8)
    scales[0, 1, 0], scales[0, 1, 1] = LOWEST + 8, HIGHEST + 8
    scales[0, 2, 0], scales[0, 2, 1] = LOWEST + 7, HIGHEST + 8
    scales[0, 3, 0] = 0
    scales[0, 4, 0], codes[0, 4, :8] = 1, 0x80
    weights = deep_gemm.pack_fp4_weights(codes, scales, 1.0, form="nv_exact")
    expected = {
        "rows": 64,
        "extra_runs": 1,
        "widest": 9,
        "rows_beyond_window": 1,
        "worst_error": 0,
        "rms_error": 0,
    }
    assert weights.report == expected and weights.split
    assert (fp4.unpack(weights) == fp4.dequantise_nvfp4(codes, scales, 1.0)).all()


@pytest.mark.parametrize("shared", [2.0**-100, 2.0**100, 0.1])
@pytest.mark.parametrize("form", FORMS)
def test_global_scales(shared: float, form: str) -> None:
    """Of everything, of each expert, of each row, at both ends of what is taken: only its own rounding is lost."""
    rng = np.random.default_rng(1)
    codes, scales = random_weights(rng, 2, 5, 64, 1, 0x7F)
    number = np.float32(shared)
    for value in (number, np.full(2, number), np.full((2, 5), number)):
        got = fp4.unpack(deep_gemm.pack_fp4_weights(codes, scales, value, form=form))
        assert np.allclose(got, fp4.nvfp4_of(form, codes, scales, number), rtol=2.0**-23, atol=0)
    apart = np.exp2(rng.integers(-20, 20, (2, 5))).astype(np.float32)
    got = fp4.unpack(deep_gemm.pack_fp4_weights(codes, scales, apart, form=form))
    assert (got == fp4.nvfp4_of(form, codes, scales, apart)).all()


def test_a_checkpoint_in_one_line() -> None:
    codes, scales = random_weights(np.random.default_rng(2), 3, 8, 64, 0x20, 0x50)
    shared = np.float32([0.5, 1, 8])
    imported = fp4_formats.from_nvfp4(codes, scales.view(ml_dtypes.float8_e4m3fn), shared)
    weights = deep_gemm.pack_fp4_weights(*imported, form="nv_exact")
    assert (fp4.unpack(weights) == fp4.dequantise_nvfp4(codes, scales, shared)).all()


GOOD: tuple[Any, ...] = (np.zeros((64, 16), np.uint8), np.full((64, 2), 0x38, np.uint8), 1.0)
BAD: list[tuple[Any, type[Exception], str]] = [
    ((np.zeros((64, 12), np.uint8), np.zeros((64, 1), np.uint8), 1.0), ValueError, "multiple of 16"),
    ((GOOD[0], np.zeros((64, 1), np.uint8), 1.0), ValueError, "scales (64, 2)"),
    (GOOD[:2], ValueError, "come with a global_scale"),
    ((np.zeros((2, 64, 16), np.uint8), *GOOD[1:]), ValueError, "experts"),
    ((GOOD[0].astype(np.int16), *GOOD[1:]), TypeError, "bytes"),
    ((GOOD[0], np.ones((64, 2), np.float32), 1.0), TypeError, "expected E4M3 bytes"),
    (
        (GOOD[0], np.full((64, 2), 0x7F, np.uint8), 1.0),
        ValueError,
        "row 0, group 0 is 127 (NaN), expected 0 to 126",
    ),
    ((GOOD[0], np.full((64, 2), 0xFF, np.uint8), 1.0), ValueError, "255 (NaN)"),
    ((GOOD[0], np.full((64, 2), 0xB8, np.uint8), 1.0), ValueError, "184 (a negative number)"),
    ((GOOD[0], np.full((64, 2), 0x80, np.uint8), 1.0), ValueError, "128 (a negative number)"),
    ((*GOOD[:2], np.ones(3)), ValueError, "got global_scale (3,), expected a number, () or (64,)"),
    ((*GOOD[:2], 0.0), ValueError, "global scale of expert 0, row 0 is 0, expected 2^-100 to 2^100"),
    ((*GOOD[:2], -1.0), ValueError, "is -1, expected"),
    ((*GOOD[:2], np.nan), ValueError, "is nan, expected"),
    ((*GOOD[:2], 1e35), ValueError, "expected 2^-100"),
]


@pytest.mark.parametrize(("arguments", "kind", "words"), BAD, ids=[bad[2] for bad in BAD])
def test_bad_weights_are_refused(arguments: Any, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind) as raised:
        deep_gemm.pack_fp4_weights(*arguments)
    assert words in str(raised.value)


@pytest.mark.parametrize("form", ["mx_e4m3", "nv_double"])
def test_forms_of_others_are_refused(form: str) -> None:
    with pytest.raises(ValueError, match=r"nv_single or nv_exact|'nv_single' or 'nv_exact'"):
        deep_gemm.pack_fp4_weights(*GOOD, form=form)
    with pytest.raises(ValueError, match="come with a global scale"):
        deep_gemm.pack_fp4_weights(GOOD[0], np.full((64, 1), 127, np.uint8), form="nv_exact")
