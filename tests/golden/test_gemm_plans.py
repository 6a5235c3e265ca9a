"""The plan of about a hundred problems on an H200, pinned: a change of the cost model shows as a change of choices.

`pytest tests/golden --update-golden` rewrites gemm_plans.txt; a missing file is a failure.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
from golden.pinned import check_pinned

import deep_gemm

GOLDEN = Path(__file__).parent / "gemm_plans.txt"
DEVICE = "90a:132"

DENSE_NK = [
    (2112, 7168),
    (576, 7168),
    (24576, 1536),
    (32768, 512),
    (7168, 16384),
    (4096, 7168),
    (7168, 2048),
]
GROUPED_NK = [(6144, 7168), (7168, 3072), (4096, 4096), (4096, 2048)]


def problems() -> list[str]:
    dense = [f"gemm m={m} n={n} k={k}" for (n, k), m in product(DENSE_NK, (1, 16, 64, 128, 512, 4096))]
    dense += [f"gemm m={m} n={n} k={k} a=bf16" for (n, k), m in product(DENSE_NK[::2], (1, 128, 4096))]
    dense += [
        "gemm m=8192 n=8192 k=8192",
        "gemm m=4096 n=4096 k=4096",
        "gemm m=4096 n=7168 k=4096 d=fp32 scale_b=per_row_128 accumulate",
        "gemm m=64 n=7168 k=4096 d=fp32 scale_b=per_row_128 accumulate",
        "gemm m=4096 n=129280 k=7168 a=bf16 d=fp32",
        "gemm m=1 n=8 k=16",
        "gemm m=300 n=72 k=144",
        "gemm m=4096 n=4096 k=7168 num_sms=64",
    ]
    grouped = [
        f"gemm contiguous groups={groups} m={groups * rows} n={n} k={k}"
        for (n, k), (groups, rows) in product(GROUPED_NK, [(4, 8192), (8, 4096), (32, 256)])
    ]
    grouped += [
        f"gemm {form} groups={groups} m={m} expected_m={expected} n={n} k={k}"
        for (n, k), (groups, expected) in product(GROUPED_NK, [(32, 192), (6, 1024), (32, 20), (6, 20)])
        for form, m in (("masked", 4096), ("psum", groups * 4096))
    ]
    majors = [
        f"gemm m={m} n={n} k=4096 a=bf16 {order}"
        for m, n in ((1, 7168), (128, 7168), (4096, 7168), (2112, 4096))
        for order in ("b_major=mn", "a_major=mn", "a_major=mn b_major=mn d=fp32 accumulate")
    ]
    majors += [
        f"gemm {form} n=7168 k=4096 a=bf16 b_major=mn"
        for form in (
            "contiguous groups=8 m=32768",
            "psum groups=8 m=32768",
            "masked groups=6 m=4096 expected_m=20",
        )
    ]
    return dense + grouped + majors


def plan_line(problem: str) -> str:
    plan = deep_gemm.plan(problem, DEVICE)
    return f"{plan['problem']} -> {plan['spec']}; {plan['grid_blocks']} CTAs"


def test_plans(request: pytest.FixtureRequest) -> None:
    check_pinned(GOLDEN, [plan_line(problem) for problem in problems()], request)


def test_plans_are_legal_and_repeatable() -> None:
    for problem in problems():
        first, second = (deep_gemm.plan(problem, DEVICE) for _ in range(2))
        assert first == second
        assert first["spec"].why_illegal is None
        assert first["grid_blocks"] > 0
