"""The plans of FP8 x FP4 problems on an H200, pinned; see test_gemm_plans.py."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
from golden.pinned import check_pinned

import deep_gemm

GOLDEN = Path(__file__).parent / "fp4_plans.txt"
DEVICE = "90a:132"
MOE_NK = [(4096, 4096), (4096, 2048), (14336, 7168), (7168, 3072), (1536, 2048)]


def problems() -> list[str]:
    gathered = [
        f"fp4_gemm gathered groups=256 m={6 * tokens} n={n} k={k}"
        for (n, k), tokens in product(MOE_NK, (1, 4, 16, 64, 256, 1024, 4096, 16384))
    ]
    others = [
        f"fp4_gemm {form} n={n} k={k}"
        for (n, k), form in product(
            MOE_NK[:3],
            (
                "m=1",
                "m=64 d=fp32",
                "m=4096",
                "contiguous groups=32 m=8192",
                "masked groups=32 m=1024 expected_m=4",
                "masked groups=8 m=1024 expected_m=100",
                "psum groups=16 m=16384 expected_m=900",
                "gathered groups=128 m=256 form=mx_e5m2",
                "gathered groups=128 m=256 form=mx_e5m2 split",
                "m=64 accumulate num_sms=64",
            ),
        )
    ]
    nvfp4 = [
        f"fp4_gemm gathered groups=256 m={6 * tokens} n={n} k={k} form={form}"
        for form, (n, k), tokens in product(("nv_single", "nv_exact"), MOE_NK[:2], (1, 16, 64, 256, 1024))
    ]
    by_32 = [
        f"fp4_gemm gathered groups=256 m={6 * tokens} n={n} k={k} by_32"
        for (n, k), tokens in product(MOE_NK[:2], (1, 64, 1024))
    ]
    bf16 = [
        f"fp4_gemm gathered groups=256 m={6 * tokens} n={n} k={k} a=bf16{products}"
        for products, (n, k), tokens in product(
            ("", " bf16_products"), MOE_NK[:2], (1, 16, 64, 256, 512, 1024, 4096)
        )
    ] + [
        f"fp4_gemm {form} a=bf16"
        for form in (
            "m=1 n=4096 k=4096",
            "m=4096 n=4096 k=4096",
            "m=8 n=64 k=256",
            "contiguous groups=32 m=8192 n=4096 k=4096",
            "masked groups=32 m=1024 expected_m=4 n=4096 k=4096",
            "gathered groups=256 m=384 n=4096 k=4096 form=nv_exact",
            "gathered groups=256 m=384 n=4096 k=4096 d=fp32",
        )
    ]
    return gathered + others + nvfp4 + by_32 + bf16


def plan_line(problem: str) -> str:
    plan = deep_gemm.plan_fp4(problem, DEVICE)
    return f"{plan['problem']} -> {plan['spec']}; {plan['grid_blocks']} CTAs"


def test_plans(request: pytest.FixtureRequest) -> None:
    check_pinned(GOLDEN, [plan_line(problem) for problem in problems()], request)


def test_plans_are_legal_and_repeatable() -> None:
    for problem in problems():
        first, second = (deep_gemm.plan_fp4(problem, DEVICE) for _ in range(2))
        assert first == second
        assert first["spec"].why_illegal is None and first["grid_blocks"] > 0


def test_a_problem_is_read_back() -> None:
    for problem in problems():
        text = deep_gemm.plan_fp4(problem, DEVICE)["problem"]
        assert deep_gemm.plan_fp4(text, DEVICE)["problem"] == text
        assert "chosen" in deep_gemm.explain_fp4(text, DEVICE)


@pytest.mark.parametrize(
    ("text", "words"),
    [("fp4_gemm m=1 n=2", "k=0"), ("fp4_gemm x=1", "unexpected word"), ("fp4_gemm m=a", "not a count"),
     ("fp4_gemm form=int4", "unknown")],
)  # fmt: skip
def test_bad_problems_are_refused(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        deep_gemm.plan_fp4(text, DEVICE)
