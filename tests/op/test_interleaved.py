"""A D whose groups are interleaved: buffer[m, groups, n].transpose(1, 0, 2), each row with a part for every group."""

from __future__ import annotations

from typing import Any

import fp4_cases
import numpy as np
import pytest
from gemm_cases import Array, Case, argument, check_close, forced_spec, poisoned, random_operand
from reference import gemm as reference

import deep_gemm
from deep_gemm.demo.arrays import put, strided, take

ROWS = (0, 140, 1, 65)
GROUPS, M = len(ROWS), 140
BY_TMA = {"block_m": 128, "block_n": 128, "warpgroups": 2, "stages": 4, "split_k": 1, "swap_ab": False}


def interleaved(device: Any, case: Any, n: int, pitch: int) -> tuple[Any, Any]:
    """All of a poisoned buffer [m, groups + 1, pitch], and d [groups, m, n] in it; nobody owns the last part."""
    buffer = put(device, poisoned((M, GROUPS + 1, pitch), Case(0, 0, 0, d=case.d)))
    return buffer, strided(buffer, (GROUPS, M, n), (pitch, (GROUPS + 1) * pitch, 1))


def check_gaps(buffer: Array, n: int) -> None:
    for gap in (buffer[:, GROUPS], buffer[:, :, n:]):
        assert (np.ascontiguousarray(gap).view(np.uint8) == 0xFF).all(), "written beyond a group's own part"


@pytest.mark.parametrize(
    ("case", "pitch"),
    [
        (Case(M, 136, 400, spec=BY_TMA), 136),
        (Case(M, 136, 400), 144),
        (Case(M, 131, 400), 133),  # no place for TMA to start at
        (Case(M, 131, 400, ab="bf16", d="fp32"), 131),
    ],
    ids=["by TMA", "gaps", "unaligned", "bf16"],
)
def test_masked(device: Any, case: Case, pitch: int) -> None:
    rng = np.random.default_rng(0)
    a = random_operand(rng, (GROUPS, M, case.k), case, 1)
    b = random_operand(rng, (GROUPS, case.n, case.k), case, 128)
    buffer, d = interleaved(device, case, case.n, pitch)
    name = "bf16" if case.ab == "bf16" else "fp8"
    getattr(deep_gemm, f"m_grouped_{name}_gemm_nt_masked")(
        argument(device, a),
        argument(device, b),
        d,
        put(device, np.array(ROWS, np.int32)),
        50,
        spec=forced_spec(case, "masked"),
        device=device,
    )
    got = take(buffer)
    check_gaps(got, case.n)
    expected, error = reference.masked(a, b, np.array(ROWS))
    for group, count in enumerate(ROWS):
        check_close(got[:count, group, : case.n], (expected[group, :count], error[group, :count]), case)


def test_no_products(device: Any) -> None:
    case = Case(M, 136, 0, ab="bf16")
    buffer, d = interleaved(device, case, 136, 136)
    a, b = (put(device, np.zeros((GROUPS, rows, 0), poisoned((1,), case).dtype)) for rows in (M, 136))
    deep_gemm.m_grouped_bf16_gemm_nt_masked(a, b, d, put(device, np.array(ROWS, np.int32)), 50, device=device)
    check_gaps(take(buffer), 136)
    assert (take(buffer)[:, :GROUPS].astype(np.float32) == 0).all()


def test_fp4(device: Any) -> None:
    case = fp4_cases.Case(66, 160, m=M, rows=ROWS)
    data = fp4_cases.make_data(case, (GROUPS, M), 0)
    buffer, d = interleaved(device, case, case.n, 70)
    deep_gemm.m_grouped_fp8_fp4_gemm_nt_masked(
        fp4_cases.activations(device, data),
        fp4_cases.on_device(device, data.weights),
        d,
        put(device, np.array(ROWS, np.int32)),
        50,
        device=device,
    )
    got = take(buffer)
    check_gaps(got, case.n)
    for group, count in enumerate(ROWS):
        fp4_cases.check(got[:count, group, : case.n], data.rows[group, :count], data.matrices[group], case)


@pytest.mark.parametrize(
    ("strides", "apart"),
    [
        ((64, 128, 1), "64 elements apart and rows 128"),  # room for two groups of three
        ((100, 64, 1), "100 elements apart and rows 64"),
        ((32, 1000, 1), "32 elements apart and rows 1000"),
    ],
)
def test_groups_that_share_elements(emulator: Any, strides: tuple[int, ...], apart: str) -> None:
    d = strided(np.zeros(16384, np.float32), (3, 8, 64), strides)
    a, b = (np.zeros((3, rows, 128), poisoned((1,), Case(0, 0, 0)).dtype) for rows in (8, 64))
    with pytest.raises(
        ValueError, match=f"groups of d are {apart}, expected groups that do not overlap"
    ) as raised:
        deep_gemm.m_grouped_bf16_gemm_nt_masked(a, b, d, np.zeros(3, np.int32), 4, device=emulator)
    assert "or interleaved, with rows at least" in str(raised.value)
    assert str(raised.value).endswith("allocate d contiguous")
