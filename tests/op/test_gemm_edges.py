"""Sizes of nothing, and groups that lie beyond the tensor: what is written, and what is not."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from gemm_cases import (
    Case,
    argument,
    check_close,
    launched_by,
    poisoned,
    random_operand,
    run_contiguous,
    run_masked,
    unchecked,
)
from reference import gemm as reference

import deep_gemm
from deep_gemm.demo.arrays import put, strided, take

BF16 = ml_dtypes.bfloat16

# m, n, k, groups: each is nothing once, in every form and type.
NOTHING = [(0, 64, 128, 2), (128, 0, 128, 2), (128, 64, 0, 2), (128, 64, 128, 0), (0, 0, 0, 0)]


def run(device: Any, form: str, ab: str, m: int, n: int, k: int, groups: int) -> Any:
    """D, which was full of NaN."""
    rng, case = np.random.default_rng(0), Case(m, n, k, ab=ab)
    masked = form == "masked"
    left, right, out = (
        (groups, m, k) if masked else (m, k),
        (groups, n, k),
        (groups, m, n) if masked else (m, n),
    )
    right = right[1:] if form == "dense" else right
    a, b = (
        argument(device, random_operand(rng, shape, case, rows)) for shape, rows in ((left, 1), (right, 128))
    )
    d = put(device, poisoned(out, case))
    name = "fp8" if ab == "fp8_e4m3" else ab
    if form == "dense":
        getattr(deep_gemm, f"{name}_gemm_nt")(a, b, d, device=device)
    elif form == "masked":
        counts = put(device, np.full(groups, m, np.int32))
        getattr(deep_gemm, f"m_grouped_{name}_gemm_nt_masked")(a, b, d, counts, m, device=device)
    else:
        psum = form == "psum"
        layout = np.full(groups, m, np.int32) if psum else np.full(m, -1 if groups == 0 else 0, np.int32)
        operation = getattr(deep_gemm, f"m_grouped_{name}_gemm_nt_contiguous")
        operation(a, b, d, put(device, layout), use_psum_layout=psum, device=device)
    return take(d)


@pytest.mark.parametrize("sizes", NOTHING, ids=lambda s: "m={} n={} k={} groups={}".format(*s))
@pytest.mark.parametrize("form", ["dense", "contiguous", "psum", "masked"])
@pytest.mark.parametrize("ab", ["fp8_e4m3", "bf16"])
def test_nothing(device: Any, ab: str, form: str, sizes: tuple[int, int, int, int]) -> None:
    """Without rows or columns nothing happens; without products D becomes zeros, and no kernel is launched."""
    if form == "dense" and 0 not in sizes[:3]:
        sizes = (0, *sizes[1:])  # has no groups
    results: list[Any] = []
    assert launched_by(lambda: results.append(run(device, form, ab, *sizes))) is None
    assert (results[0].view(np.uint16) == 0).all()


@pytest.mark.parametrize("ab", ["fp8_e4m3", "bf16"])
@pytest.mark.parametrize("padding", [0, 5])
def test_no_products_give_zeros(device: Any, ab: str, padding: int) -> None:
    case = Case(6, 40, 0, ab=ab, d_padding=padding)
    rng = np.random.default_rng(0)
    a, b = random_operand(rng, (6, 0), case, 1), random_operand(rng, (40, 0), case, 128)
    d = put(device, poisoned((6, 40), case))
    operation = deep_gemm.bf16_gemm_nt if ab == "bf16" else deep_gemm.fp8_gemm_nt
    operation(argument(device, a), argument(device, b), d, device=device)
    assert (take(d).view(np.uint16) == 0).all()


@pytest.mark.parametrize("ab", ["fp8_e4m3", "bf16"])
def test_no_products_give_c(device: Any, ab: str) -> None:
    case, rng = Case(6, 40, 0, ab=ab, d="fp32"), np.random.default_rng(0)
    a, b = random_operand(rng, (6, 0), case, 1), random_operand(rng, (40, 0), case, 128)
    c = rng.standard_normal((6, 40)).astype(np.float32)
    d = put(device, poisoned((6, 40), case))
    operation = deep_gemm.bf16_gemm_nt if ab == "bf16" else deep_gemm.fp8_gemm_nt
    operation(argument(device, a), argument(device, b), d, c=put(device, c), device=device)
    assert (take(d) == c).all()


def test_group_indices_out_of_range_give_zero_rows(device: Any) -> None:
    rng = np.random.default_rng(2)
    a = random_operand(rng, (256, 128), Case(0, 64, 128), 1)
    b = random_operand(rng, (2, 64, 128), Case(0, 64, 128), 128)
    layout = np.zeros(256, np.int32)
    layout[128:192], layout[192:] = 2, -7
    d = put(device, poisoned((256, 64), Case(256, 64, 128)))
    right = argument(device, b)
    deep_gemm.m_grouped_fp8_gemm_nt_contiguous(
        argument(device, a), right, d, put(device, layout), device=device
    )
    expected = reference.contiguous(a, b, np.where(layout == 0, 0, -1))
    check_close(take(d), expected, Case(256, 64, 128))
    assert (take(d)[128:].view(np.uint16) == 0).all()


def guarded(device: Any, shape: tuple[int, ...], case: Case, guards: int) -> tuple[Any, Any]:
    """(all of a poisoned tensor, its view without the last `guards` along the first dimension)."""
    whole = put(device, poisoned((shape[0] + guards, *shape[1:]), case))
    strides = [int(np.prod(shape[i + 1 :])) for i in range(len(shape))]
    return whole, strided(whole, shape, tuple(strides))


def untouched(values: Any) -> bool:
    return bool((np.ascontiguousarray(values).view(np.uint8) == 0xFF).all())


@pytest.mark.parametrize("ab", ["fp8_e4m3", "bf16"])
def test_masked_counts_beyond_the_tensor_are_clamped(device: Any, ab: str) -> None:
    """1000 rows of 20 are 20, -3 are none; neither the next group nor what follows D is written."""
    case, rng, device = Case(20, 64, 128, ab=ab), np.random.default_rng(3), unchecked(device)
    a, b = random_operand(rng, (3, 20, 128), case, 1), random_operand(rng, (3, 64, 128), case, 128)
    whole, d = guarded(device, (3, 20, 64), case, 1)
    rows = put(device, np.array([1000, -3, 2**31 - 1], np.int32))
    name = "bf16" if ab == "bf16" else "fp8"
    operation = getattr(deep_gemm, f"m_grouped_{name}_gemm_nt_masked")
    operation(argument(device, a), argument(device, b), d, rows, 16, device=device)
    got = take(whole)
    expected, error = reference.masked(a, b, np.array([20, 0, 20]))
    for group in (0, 2):
        check_close(got[group], (expected[group], error[group]), case)
    assert untouched(got[1]) and untouched(got[3])


def prefix_sums(device: Any, ends: tuple[int, ...]) -> tuple[Any, Any, Any]:
    """a, b and all of D, whose last 128 rows are beyond what the operation was given."""
    case, rng, device = (
        Case(256, 64, 128, ab="bf16", d="fp32"),
        np.random.default_rng(4),
        unchecked(device),
    )
    a, b = random_operand(rng, (256, 128), case, 1), random_operand(rng, (2, 64, 128), case, 128)
    whole, d = guarded(device, (256, 64), case, 128)
    layout = put(device, np.array(ends, np.int32))
    deep_gemm.m_grouped_bf16_gemm_nt_contiguous(
        argument(device, a), argument(device, b), d, layout, use_psum_layout=True, device=device
    )
    return a, b, take(whole)


CLAMPED_ENDS = [
    # ends, the rows of each group, rows of zeros
    ((100, 1000), [(0, 100), (128, 256)], (100, 128)),
    ((2**31 - 1, 2**31 - 1), [(0, 256), (0, 0)], (0, 0)),
    ((-5, 200), [(0, 0), (0, 200)], (200, 256)),
]


@pytest.mark.parametrize(("ends", "groups", "zeros"), CLAMPED_ENDS, ids=[str(c[0]) for c in CLAMPED_ENDS])
def test_ends_outside_the_tensor_are_clamped(device: Any, ends: Any, groups: Any, zeros: Any) -> None:
    a, b, got = prefix_sums(device, ends)
    for group, rows in enumerate(slice(*r) for r in groups):
        check_close(got[rows], reference.gemm(a[rows], b[group]), Case(256, 64, 128, ab="bf16", d="fp32"))
    assert (got[slice(*zeros)] == 0).all() and untouched(got[256:])


@pytest.mark.parametrize("ends", [(200, 100), (300, 50), (100, -1)], ids=str)
def test_ends_that_fall_stay_in_the_tensor(device: Any, ends: tuple[int, ...]) -> None:
    """They mean nothing: no row has a promise, and nothing but rows of D is written."""
    assert untouched(prefix_sums(device, ends)[2][256:])


def test_row_scales_of_groups(device: Any) -> None:
    """(1, 128) x (1, 128), which the tests of the kernels have for the other forms."""
    run_masked(device, Case(40, 96, 384, rows=(33, 0, 7), scale_b="per_row_128"))
    run_contiguous(device, Case(0, 96, 256, rows=(120, 60), scale_b="per_row_128"), psum=True)
