"""Which form linear() takes on an H200 and which kernel of either, pinned; see test_gemm_plans.py."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
from golden.pinned import check_pinned

import deep_gemm

GOLDEN = Path(__file__).parent / "linear_plans.txt"
SMALL_GOLDEN = Path(__file__).parent / "gemv_plans.txt"
DEVICE = "90a:132"
LAYERS = [(4096, 4096), (14336, 4096), (4096, 14336), (7168, 2048), (2880, 2880), (576, 7168)]
TOKENS = (16, 17, 64, 200, 1024, 8192)


def problems() -> list[str]:
    chosen = [
        f"linear w={w} m={m} n={n} k={k}"
        for (n, k), w, m in product(LAYERS, ("fp8_128x128", "nvfp4", "int4_32"), TOKENS)
    ]
    others = [
        f"linear w={w} m=1024 n=4096 k=4096"
        for w in ("int8_row", "fp8_row", "fp8_32", "mxfp4", "int4_zero_128")
    ]
    small = [
        "bf16",
        "fp16",
        "q8_0",
        "mxfp4 strict",
        "mxfp4 invariant",
        "mxfp4 swiglu",
        "mxfp4 unaligned",
        "mxfp4 x=fp8_128",
    ]
    return chosen + others + [f"linear w={w} m=64 n=4096 k=4096" for w in small]


def small_problems() -> list[str]:
    """Few rows: layouts, lengths of K at which x fits shared memory and at which it does not, and what is not aligned."""
    pairs = [("bf16", "bf16"), ("fp8_128x128", "bf16"), ("fp8_128x128", "fp8_128"), ("fp8_32", "fp8_32"), ("int8_row", "bf16"),
             ("q8_0", "q8"), ("q8_0_split", "q8"), ("int4_128", "bf16"), ("int4_zero_32", "bf16"), ("mxfp4", "bf16"),
             ("nvfp4", "fp8_128")]  # fmt: skip
    chosen = [
        f"linear w={w} x={x} m={m} n={n} k={k}"
        for (n, k), (w, x), m in product(
            [(4096, 4096), (14336, 4096), (4096, 14336), (29568, 8192)], pairs, (1, 8, 16)
        )
    ]
    others = ["m=3 n=8192 k=29568", "m=1 n=4096 k=4000", "m=8 n=4096 k=4096 unaligned", "m=8 n=4096 k=4096 swiglu",
              "m=16 n=4096 k=4096 swiglu", "m=8 n=4096 k=4096 strict"]  # fmt: skip
    return chosen + [f"linear w={w} {other}" for w, other in product(("mxfp4", "int4_128"), others)]


def small_line(problem: str) -> str:
    lines = deep_gemm.explain_linear(problem, DEVICE, 1).splitlines()
    fields = [
        word
        for word in lines[1].split()
        if word.partition("=")[0] in ("tokens", "row_tiles", "stages", "groups", "vector", "resident")
    ]
    return f"{problem} -> {' '.join(fields)}"


def plan_line(problem: str) -> str:
    lines = deep_gemm.explain_linear(problem, DEVICE, 1).splitlines()
    form = lines[0].rpartition(": ")[2]
    kernel = (
        lines[-1].split(":")[-1] if "large-batch form:" in lines[-1] else " ".join(lines[3].split("  ")[1:2])
    )
    return f"{problem} -> {form}; {kernel.strip()}"


def test_plans(request: pytest.FixtureRequest) -> None:
    check_pinned(GOLDEN, [plan_line(problem) for problem in problems()], request)


def test_small_plans(request: pytest.FixtureRequest) -> None:
    check_pinned(SMALL_GOLDEN, [small_line(problem) for problem in small_problems()], request)


def test_sixteen_rows_are_never_at_the_seam() -> None:
    for problem in problems():
        if " m=16 " in problem:
            assert "up to 16 rows" in deep_gemm.explain_linear(problem, DEVICE)


@pytest.mark.parametrize(
    ("text", "words"),
    [("linear m=1 n=2", "k=0"), ("linear z=1", "unexpected word"), ("linear m=a", "not a count"),
     ("linear w=int5 m=1 n=1 k=1", "unknown"), ("linear m=0 n=1 k=1", "at least 1")],
)  # fmt: skip
def test_bad_problems_are_refused(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        deep_gemm.explain_linear(text, DEVICE)
