"""Sums of the FP4 kernel for many tokens that stay in the tensor core over all of K (fast_accumulation)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from fp4_cases import Case, run_contiguous, run_dense, run_gathered, run_masked

import deep_gemm

WIDE = {
    "wide": True,
    "warpgroups": 2,
    "k_blocks": 1,
    "stages": 4,
    "block_m": 64,
    "fragment_sets": 2,
    "cluster": 2,
}
FAST = WIDE | {"fast_accumulation": True}


def fast(*arguments: Any, spec: dict[str, Any] = FAST, **options: Any) -> Case:
    return Case(*arguments, per_token=True, fast=True, spec=spec, **options)


@pytest.mark.parametrize(
    "case",
    [
        fast(66, 160, m=33),
        fast(130, 1056, m=70, d="fp32"),
        fast(66, 384, m=20, accumulate=True),
        fast(66, 512, m=33, span=(106, 120), form="mx_e5m2"),
        fast(66, 512, m=33, form="nv_single"),
        fast(64, 768, m=200, spec=FAST | {"block_m": 208, "stages": 3, "cluster": 1}),
        fast(200, 512, m=70, spec=FAST | {"warpgroups": 3}),
        fast(256, 512, m=40, spec=FAST | {"warpgroups": 4, "block_m": 48}),
    ],
    ids=str,
)
def test_dense(device: Any, case: Case) -> None:
    run_dense(device, case)


def test_groups(device: Any) -> None:
    run_masked(device, fast(66, 384, m=75, rows=(0, 75, 1, 9)))
    run_contiguous(device, fast(64, 384, rows=(100, 9)))
    run_contiguous(device, fast(64, 384, rows=(100, 9)), psum=True)
    run_gathered(device, fast(66, 384, rows=(0, 3, 0, 70, 1)), launches=2)


def test_a_permission_not_a_demand(device: Any) -> None:
    """Few tokens, scales along K and weights of several runs are promoted as ever."""
    for case in (
        Case(66, 384, m=3, per_token=True),
        Case(66, 384, m=70, spec=WIDE),
        Case(
            66, 288, m=40, span=(106, 135), form="mx_e4m3", per_token=True, spec=WIDE | {"fragment_sets": 1}
        ),
    ):
        plain = run_dense(device, case)
        assert plain.tobytes() == run_dense(device, replace(case, fast=True)).tobytes()


def test_the_plan() -> None:
    problem = "fp4_gemm gathered groups=256 m=49152 n=4096 k=4096 per_token"
    assert not deep_gemm.plan_fp4(problem, "90a:132")["spec"].to_dict()["fast_accumulation"]
    assert deep_gemm.plan_fp4(f"{problem} fast_accumulation", "90a:132")["spec"].to_dict()[
        "fast_accumulation"
    ]
    few = "fp4_gemm gathered groups=256 m=384 n=4096 k=4096 per_token fast_accumulation"
    assert not deep_gemm.plan_fp4(few, "90a:132")["spec"].to_dict()["wide"]
