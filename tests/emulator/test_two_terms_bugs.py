"""Injected bugs of bf16 tokens as two E4M3 terms: of the kernel that makes them, and of both that multiply them."""

from __future__ import annotations

import struct
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from emulator.injection import Bug, Launch, check_caught, check_clean, flatten
from emulator.test_fp4_bugs import HASTY, SPEC, make_launch
from reference import fp4

from deep_gemm import _C

GROUPS, ROWS, K, PADDED_K = 2, 3, 4512, 4608  # more than a CTA holds in registers
AT_ONCE = 2  # rows of a group: a CTA has one more
COUNTS = (3, 2)
POISON = 0x5A


def rows() -> np.ndarray:
    """Rows of every size, one with a spread beyond the terms' range, zeros, and the largest at both of its borders."""
    rng = np.random.default_rng(3)
    x = rng.standard_normal((GROUPS, ROWS, K)) * 2.0 ** rng.integers(-90, 90, (GROUPS, ROWS, 1))
    x[0, 1] *= 2.0 ** rng.integers(-24, 1, K)
    x[0, 2] = 0
    x[1, 0] = np.clip(x[1, 0], -1.75, 1.75)
    x[1, 0, 4500] = 1.75
    x[1, 1, 4500] = np.abs(x[1, 1]).max() * 4
    return x.astype(ml_dtypes.bfloat16)


def make_terms() -> tuple[Launch, str]:
    x = rows()
    high, low, scale = fp4.two_terms(x)
    out = np.full((GROUPS, ROWS, 2, PADDED_K), POISON, np.uint8)
    scales = np.full((GROUPS, ROWS), -77, np.float32)
    expected, expected_scales = out.copy(), scales.copy()
    for group, count in enumerate(COUNTS):
        both = np.stack([high[group, :count], low[group, :count]], 1).astype(ml_dtypes.float8_e4m3fn)
        expected[group, :count] = 0
        expected[group, :count, :, :K] = both.view(np.uint8)
        expected_scales[group, :count] = scale[group, :count, 0]
    arrays = {"x": x, "counts": np.array(COUNTS, np.int32), "out": out, "scales": scales}

    def pack(_: Any, at: dict[str, int]) -> bytes:
        return struct.pack(
            "<6Q4I", *(at[name] for name in arrays), ROWS * K * 2, K * 2, ROWS, K, PADDED_K, AT_ONCE
        )

    # Zeros have either sign.
    launch = Launch("deep_gemm::two_terms<kSpec>", (GROUPS * AT_ONCE,), 256, 32, arrays, pack,
                    {"out": expected, "scales": expected_scales})  # fmt: skip
    code = "#include <deep_gemm/kernel/two_terms.cuh>\nusing namespace deep_gemm;\n"
    return launch, flatten(code + "constexpr TwoTermSpec kSpec{.groups = GroupMode::masked};\n")


TERMS_BUGS = [
    Bug("rows beyond a group's count", "rows = present < rows ? present : rows;", "", 8),
    Bug("maxima are overwritten before all have read them", "ptx::sync_threads();  // the warps' maxima have been read", ""),
    Bug("the largest of one warp", "ptx::ld_shared_f32(smem + warp * 4)", "ptx::ld_shared_f32(smem)", 8),
    Bug("warps do not meet", "* 4, amax);\n    ptx::sync_threads();", "* 4, amax);"),
    Bug("a power of two too small near its end", "(bits & 0x7fffff) > kOfMax ? 1 : 0", "0", 8),
    Bug("the rest is not enlarged", "kLowUnits = 1 << kLowTermShift", "kLowUnits = 1", 8),
    Bug("the rest of another element", "(x[1] - p.y) * kLowUnits", "(x[1] - p.x) * kLowUnits", 8),
    Bug("terms in each other's place", "out + padded_k + column,", "out + column,", 8),
    Bug("the padding is left", "if (column >= padded_k) return;", "if (column >= padded_k - 64) return;", 8),
    Bug("elements beyond the first ones do not count", "largest = ptx::max_nan_f32(largest, largest_of(load(x, p.k, column)));", ";", 8),
]  # fmt: skip

GEMM = SPEC.replace(block_m=8, token_terms=2, per_token=True)
GEMM_BUGS = [
    Bug("the second term is the first", "i % S.token_terms * (params_.a_stride_m / 2)", "0", 8),
    Bug("terms of neighbouring tokens", "row_of(item, column / S.token_terms)", "row_of(item, column)", 8),
    Bug("both terms have one unit", "kLowUnit = 1.0f / (1 << kLowTermShift)", "kLowUnit = 1.0f", 8),
    Bug("the low term is left out", "ptx::fma_rn(partial[i + 1], kLowUnit, partial[i])", "partial[i]", 8),
    Bug("rows of weights in each other's place", "promoted(ptx::fma_rn(partial[i + 1], kLowUnit, partial[i]), 1, i / 2 % 2);", "promoted(ptx::fma_rn(partial[i + 1 ^ 2], kLowUnit, partial[i]), 1, i / 2 % 2);", 8),
    Bug("a token's scale is left out", "sum = ptx::mul_rn(sum, token_scale);", ";", 8),
    Bug("half of the columns are brought", "if (eight * 8 >= columns_ * S.token_terms) break;", "if (eight * 8 >= columns_) break;", 8),
    Bug("results of other tokens", "const u32 token = j * 4 + ptx::lane_index() % 4;\n            u32 row = this->item_.first + token;\n            if constexpr (has_row_table(S)) {",
        "const u32 token = j + ptx::lane_index() % 4;\n            u32 row = this->item_.first + token;\n            if constexpr (has_row_table(S)) {", 8),
]  # fmt: skip


@pytest.fixture(scope="module")
def terms() -> tuple[Launch, str]:
    return make_terms()


def test_the_terms_are_clean(terms: tuple[Launch, str]) -> None:
    check_clean(*terms)


@pytest.mark.parametrize("bug", TERMS_BUGS, ids=lambda bug: bug.name)
def test_bugs_of_the_terms(terms: tuple[Launch, str], bug: Bug) -> None:
    check_caught(*terms, bug)


@pytest.fixture(scope="module")
def gemm() -> tuple[Launch, str]:
    return make_launch(GEMM, 768, 4), flatten(_C.fp4_kernel_source(GEMM).code)


def test_the_gemm_is_clean(gemm: tuple[Launch, str]) -> None:
    check_clean(*gemm)


@pytest.mark.parametrize("bug", GEMM_BUGS, ids=lambda bug: bug.name)
def test_bugs_of_the_gemm(gemm: tuple[Launch, str], bug: Bug) -> None:
    check_caught(*gemm, bug)


def test_the_hasty_gemm_is_clean() -> None:
    spec = HASTY.replace(block_m=8, token_terms=2)
    check_clean(make_launch(spec, 256, 1), flatten(_C.fp4_kernel_source(spec).code))
