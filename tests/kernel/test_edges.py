"""Edges that the case lists do not reach: prefix-sum layouts whose rows end before the alignment, and forced specs with
impossible fields, which must be refused by name.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from gemm_cases import Case, check_close
from reference import gemm as reference

import deep_gemm
from deep_gemm import _C
from deep_gemm.demo.arrays import put, take


@pytest.mark.parametrize(("m", "ends"), [(10, (10,)), (10, (10, 10)), (40, (33,)), (200, (70, 200))])
@pytest.mark.parametrize("n", [64, 65])
def test_psum_rows_end_before_the_alignment(device: Any, m: int, ends: tuple[int, ...], n: int) -> None:
    rng = np.random.default_rng(0)
    a = rng.standard_normal((m, 256)).astype(ml_dtypes.bfloat16)
    b = rng.standard_normal((len(ends), n, 256)).astype(ml_dtypes.bfloat16)
    out = put(device, np.full((m, n), np.nan, np.float32))
    layout = put(device, np.array(ends, np.int32))
    deep_gemm.m_grouped_bf16_gemm_nt_contiguous(
        put(device, a), put(device, b), out, layout, use_psum_layout=True, device=device
    )
    group_of_row = reference.groups_of_psum(np.array(ends), m)
    got = take(out)
    check_close(got, reference.contiguous(a, b, group_of_row), Case(m, n, 256, ab="bf16", d="fp32"))
    assert not got[group_of_row < 0].any(), "rows between an end and the next multiple of 128 are zeros"


FIELDS = ["block_m", "block_n", "stages", "warpgroups", "k_warpgroups", "split_k", "cluster_m", "cluster_n"]


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("value", [0, 2**16, 2**31])
@pytest.mark.parametrize("swap_ab", [False, True])
def test_impossible_spec_fields_are_refused(field: str, value: int, swap_ab: bool) -> None:
    spec = _C.GemmSpec(**{"swap_ab": swap_ab, field: value})
    a = np.zeros((16, 128), ml_dtypes.bfloat16)
    d = np.zeros((16, 128), np.float32)
    with pytest.raises(ValueError, match="spec"):
        deep_gemm.bf16_gemm_nt(a, np.zeros((128, 128), ml_dtypes.bfloat16), d, spec=spec)
