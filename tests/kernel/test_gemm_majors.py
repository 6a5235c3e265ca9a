"""BF16 operands that are contiguous along their rows (M of a, N of b) instead of K, against float64.

Rows are padded with NaN to multiples of 16 bytes: what is past the last one must never be multiplied.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from gemm_cases import Case, run_contiguous, run_dense, run_masked
from kernel.test_gemm import NARROW, SPECS, THREE_WARPGROUPS, TWO_WARPGROUPS, WIDE

import deep_gemm

BF16 = ml_dtypes.bfloat16
MAJORS = ["mk", "km", "mm"]
WIDE_COLUMNS = {**WIDE, "block_m": 128, "block_n": 256, "warpgroups": 2, "stages": 2}
MAJOR_SPECS = [
    *SPECS,
    WIDE_COLUMNS,
    {**WIDE_COLUMNS, "cluster_m": 2},
    {**WIDE, "block_m": 128, "block_n": 192, "warpgroups": 2, "stages": 2, "cluster_m": 2},
    {**WIDE, "block_m": 192, "block_n": 128, "warpgroups": 3, "stages": 2, "cluster_n": 2},
    {**NARROW, "block_m": 48, "stages": 3},
]
SHAPES = [
    {"m": 1, "n": 8, "k": 16},
    {"m": 3, "n": 70, "k": 72},  # tails of rows, of columns and of K
    {"m": 65, "n": 131, "k": 200},
    {"m": 200, "n": 192, "k": 320},
    {"m": 70, "n": 131, "k": 200, "d": "fp32"},
    {"m": 40, "n": 96, "k": 256, "d": "fp32", "accumulate": True},
    {"m": 140, "n": 128, "k": 192, "accumulate": True},
    {"m": 40, "n": 96, "k": 128, "d_padding": 3},
]


def spec_name(spec: dict[str, Any]) -> str:
    return " ".join(f"{key}={value}" for key, value in spec.items())


@pytest.mark.parametrize("majors", MAJORS)
@pytest.mark.parametrize("shape", SHAPES, ids=spec_name)
def test_dense(device: Any, shape: dict[str, Any], majors: str) -> None:
    run_dense(device, Case(ab="bf16", majors=majors, **shape))


@pytest.mark.parametrize("majors", MAJORS)
@pytest.mark.parametrize("spec", MAJOR_SPECS, ids=spec_name)
def test_dense_specs(device: Any, spec: dict[str, Any], majors: str) -> None:
    run_dense(device, Case(150, 200, 5 * 64 + 16, ab="bf16", majors=majors, spec=spec))


@pytest.mark.parametrize("majors", MAJORS)
@pytest.mark.parametrize("spec", [{}, TWO_WARPGROUPS, {**THREE_WARPGROUPS, "cluster_n": 2}], ids=spec_name)
def test_contiguous(device: Any, spec: dict[str, Any], majors: str) -> None:
    run_contiguous(device, Case(0, 136, 192, rows=(100, 128, 5, 200), ab="bf16", majors=majors, spec=spec))


@pytest.mark.parametrize("majors", MAJORS)
@pytest.mark.parametrize("spec", [{}, THREE_WARPGROUPS, {**NARROW, "stages": 3}], ids=spec_name)
def test_psum(device: Any, spec: dict[str, Any], majors: str) -> None:
    run_contiguous(
        device, Case(0, 136, 192, rows=(3, 0, 5, 130), ab="bf16", majors=majors, spec=spec), psum=True
    )


@pytest.mark.parametrize("majors", MAJORS)
@pytest.mark.parametrize("spec", [{}, SPECS[2], {**NARROW, "block_m": 32, "stages": 3}], ids=spec_name)
def test_masked(device: Any, spec: dict[str, Any], majors: str) -> None:
    run_masked(device, Case(140, 136, 192, rows=(0, 140, 1, 65), ab="bf16", majors=majors, spec=spec))


@pytest.mark.parametrize("form", ["nt", "nn", "tn", "tt"])
def test_forms(emulator: Any, form: str) -> None:
    """Every form with operands that are contiguous as its letters say."""
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((40, 72)).astype(BF16), rng.standard_normal((96, 72)).astype(BF16)
    d = np.full((40, 96), np.nan, np.float32)
    left = a if form[0] == "n" else np.ascontiguousarray(a.T)
    right = b if form[1] == "t" else np.ascontiguousarray(b.T)
    getattr(deep_gemm, f"bf16_gemm_{form}")(left, right, d, device=emulator)
    np.testing.assert_allclose(d, a.astype(np.float64) @ b.astype(np.float64).T, rtol=1e-4, atol=1e-4)
    last = deep_gemm.last_plan()["spec"]
    assert (last.a_major == "mn", last.b_major == "mn") == (form[0] == "t", form[1] == "n")


@pytest.mark.parametrize("psum", [False, True])
def test_grouped_nn(emulator: Any, psum: bool) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((256, 72)).astype(BF16), rng.standard_normal((2, 72, 96)).astype(BF16)
    d = np.full((256, 96), np.nan, np.float32)
    layout = np.array([100, 256], np.int32) if psum else np.repeat(np.array([0, 1], np.int32), 128)
    deep_gemm.m_grouped_bf16_gemm_nn_contiguous(a, b, d, layout, use_psum_layout=psum, device=emulator)
    for rows, group in ((slice(0, 100), 0), (slice(128, 256), 1)):
        expected = a[rows].astype(np.float64) @ b[group].astype(np.float64)
        np.testing.assert_allclose(d[rows], expected, rtol=1e-4, atol=1e-4)


def test_one_row_may_have_any_order(emulator: Any) -> None:
    """A single row is contiguous along M whatever the distance of its elements."""
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((72, 8)).astype(BF16)[:, :1].T, rng.standard_normal((96, 72)).astype(BF16)
    d = np.full((1, 96), np.nan, np.float32)
    deep_gemm.bf16_gemm_nt(a, b, d, device=emulator)
    np.testing.assert_allclose(d, a.astype(np.float64) @ b.astype(np.float64).T, rtol=1e-4, atol=1e-4)


BAD = [
    ({"a": np.zeros((128, 32), BF16)[::2].T}, None),
    ({"a": np.zeros((64, 64), BF16)[:, ::2].T}, "a has stride 64 along K and 2 along M, expected 1 along one"),
    ({"b": np.zeros((64, 96), BF16)[:, ::2].T}, "b has stride 96 along K and 2 along N, expected 1 along one"),
    ({"a": np.zeros((64, 36), BF16)[:, :32].T}, "rows of a are 72 bytes apart, expected multiples of 16; pad M"),
    ({"b": np.zeros((64, 52), BF16)[:, :48].T}, "rows of b are 104 bytes apart, expected multiples of 16; pad N"),
    ({"a": np.zeros((64, 40), BF16)[:, 1:33].T}, "expected a multiple of 16 bytes"),
    ({"spec": deep_gemm.GemmSpec(ab="bf16", scale_b="none", a_major="mn")}, "contiguous along another dimension"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "sentence"), BAD)
def test_bad_input(emulator: Any, changes: dict[str, Any], sentence: str | None) -> None:
    arguments = {"a": np.zeros((32, 64), BF16), "b": np.zeros((48, 64), BF16)} | changes
    call = {"d": np.zeros((32, 48), BF16), "device": emulator, **arguments}
    if sentence is None:
        deep_gemm.bf16_gemm_nt(**call)
        return
    with pytest.raises(ValueError) as caught:
        deep_gemm.bf16_gemm_nt(**call)
    assert sentence in str(caught.value)


def test_fp8_is_contiguous_along_k() -> None:
    for field in ("a_major", "b_major"):
        reason = deep_gemm.GemmSpec(block_m=128, **{field: "mn"}).why_illegal
        assert reason is not None and "contiguous along K" in reason
    with pytest.raises(ValueError, match="no kernel serves"):
        deep_gemm.plan("gemm m=64 n=64 k=64 a_major=mn", "90a:132")
