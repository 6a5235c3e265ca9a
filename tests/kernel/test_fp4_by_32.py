"""FP8 activations with a scale for each 32 along K: each group of 32 has tensor-core sums of its own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from fp4_cases import Case, run_contiguous, run_dense, run_gathered, run_masked

import deep_gemm
from deep_gemm import _C

BY_32 = {"by_32": True}
DENSE = [
    Case(64, 256, m=1, **BY_32),
    Case(66, 160, m=9, **BY_32),
    Case(2, 64, m=3, d="fp32", **BY_32),
    Case(130, 1312, m=33, d="fp32", **BY_32),
    Case(96, 256, m=17, accumulate=True, **BY_32),
    Case(66, 288, m=9, span=(106, 135), **BY_32),
    Case(130, 256, m=20, span=(70, 140), **BY_32),
    Case(64, 256, m=9, form="nv_single", **BY_32),
    Case(66, 176, m=20, form="nv_exact", span=(1, 0x7F), **BY_32),
]
SPECS: list[dict[str, Any]] = [
    {"block_m": 8, "k_blocks": 2, "stages": 3, "ctas_per_sm": 3},
    {"block_m": 16, "k_blocks": 1, "stages": 4, "warpgroups": 3},
    {"block_m": 24, "k_blocks": 2, "stages": 3, "warpgroups": 2, "load_warps": 2},
    {"block_m": 32, "k_blocks": 1, "stages": 4, "warpgroups": 2, "load_warps": 4},
]


@pytest.mark.parametrize("case", DENSE, ids=str)
def test_dense(device: Any, case: Case) -> None:
    run_dense(device, case)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_specs(device: Any, spec: dict[str, Any]) -> None:
    """Items of all numbers of columns: words of one are not left over for the next."""
    run_gathered(device, Case(130, 160, rows=(33, 1, 9, 20), spec=spec, **BY_32), launches=2)


def test_groups(device: Any) -> None:
    run_masked(device, Case(66, 160, m=40, rows=(0, 40, 1, 9), **BY_32))
    run_contiguous(device, Case(66, 160, rows=(100, 128, 130), **BY_32))
    run_contiguous(device, Case(66, 160, rows=(100, 9), **BY_32), psum=True)


def test_a_row_does_not_depend_on_its_batch() -> None:
    device = _C.Device("emulator:sm_90a,sms=4")
    case = Case(96, 672, m=45, d="fp32", **BY_32)
    whole = run_dense(device, case).view(np.uint32)
    for rows in (slice(0, 1), slice(7, 8), slice(44, 45), slice(3, 20)):
        assert (run_dense(device, case, rows=rows).view(np.uint32) == whole[rows]).all(), rows
    for block_m in (8, 32):
        forced = replace(case, spec={"block_m": block_m, "stages": 3})
        assert (run_dense(device, forced).view(np.uint32) == whole).all(), block_m


def operands(k: int) -> tuple[Any, ...]:
    rng = np.random.default_rng(0)
    a = rng.standard_normal((4, k)).astype(ml_dtypes.float8_e4m3fn)
    codes = rng.integers(0, 256, (64, k // 2), np.uint8)
    b = deep_gemm.pack_fp4_weights(codes, np.full((64, k // 32), 127, np.uint8))
    return a, b, np.full((4, 64), 7, np.float32)


def test_equal_scales_are_those_of_a_longer_block(emulator: Any) -> None:
    """Scales that do not change along K, or within 128 of it, whichever way they are said."""
    a, b, d = operands(256)
    scales = np.exp2(np.arange(8, dtype=np.float32)).reshape(4, 2)
    results = []
    for given in (scales, np.repeat(scales, 4, 1)):
        deep_gemm.fp8_fp4_gemm_nt((a, given), b, d, device=emulator)
        results.append(d.copy())
    assert np.allclose(*results, rtol=2e-3, atol=1.0)
    one = np.lib.stride_tricks.as_strided(np.ones(4, np.float32), (4, 8), (4, 0))
    deep_gemm.fp8_fp4_gemm_nt((a, one), b, d, device=emulator)
    plan = deep_gemm.last_fp4_plan()
    assert plan is not None and plan["spec"].to_dict()["per_token"] and not plan["spec"].to_dict()["by_32"]


@pytest.mark.parametrize(
    ("columns", "recipe"),
    [
        (8, {}),
        (8, {"recipe": (1, 1, 32)}),
        (8, {"recipe_a": (1, 32), "recipe_b": (1, 32)}),
        (2, {}),
        (2, {"recipe_a": (1, 128), "recipe_b": (1, 32)}),
    ],
    ids=str,
)
def test_recipes(emulator: Any, columns: int, recipe: dict[str, Any]) -> None:
    a, b, d = operands(256)
    deep_gemm.fp8_fp4_gemm_nt((a, np.ones((4, columns), np.float32)), b, d, **recipe, device=emulator)
    plan = deep_gemm.last_fp4_plan()
    assert plan is not None and plan["spec"].to_dict()["by_32"] == (columns == 8)


@pytest.mark.parametrize(
    ("columns", "recipe", "words"),
    [
        (4, {}, r"\[4, 2\] \(one scale for each row and 128 elements of K\), or one for each 32"),
        (2, {"recipe": (1, 1, 32)}, r"expected \[4, 8\] \(one scale for each row and 32"),
        (8, {"recipe_a": (1, 128)}, r"expected \[4, 2\] \(one scale for each row and 128"),
        (
            8,
            {"recipe_a": (1, 64)},
            r"recipe_a is \(1, 64\), expected scales per \(1, 128\) or \(1, 32\) of a",
        ),
        (8, {"recipe_b": (1, 16)}, r"recipe_b is \(1, 16\), expected .* \(1, 32\) of b"),
        (8, {"recipe": (1, 1, 128)}, r"recipe is \(1, 1, 128\), expected"),
        (8, {"recipe": (1, 1, 32), "recipe_b": (1, 32)}, "expected one or the other"),
    ],
    ids=str,
)
def test_recipes_that_do_not_fit(emulator: Any, columns: int, recipe: dict[str, Any], words: str) -> None:
    a, b, d = operands(256)
    with pytest.raises(ValueError, match=words):
        deep_gemm.fp8_fp4_gemm_nt((a, np.ones((4, columns), np.float32)), b, d, **recipe, device=emulator)
    assert (d == 7).all()
