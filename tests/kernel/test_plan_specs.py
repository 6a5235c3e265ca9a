"""Specs that plans choose for all kinds of dense problems, each once, at a size the emulator has time for.

A sample by default; with --every-spec all of them, some hundreds.
"""

from __future__ import annotations

import itertools
import random
from functools import cache
from typing import Any

import pytest
from gemm_cases import Case, run_dense

from deep_gemm import _C

DEVICE = "90a:132"
FORMS: tuple[dict[str, Any], ...] = (
    {},
    {"accumulate": True},
    {"d": "fp32", "accumulate": True},
    {"scale_b": "per_row_128"},
    {"d": "fp32", "scale_b": "per_row_128", "accumulate": True},
    {"ab": "bf16"},
    {"ab": "bf16", "accumulate": True},
    {"ab": "bf16", "d": "fp32", "accumulate": True},
)
M = (1, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512, 1024, 4096)
SHAPES = ((576, 7168), (2112, 7168), (4096, 7168), (7168, 2048), (24576, 1536), (32768, 512))  # n, k
SAMPLE = 16
OF_THE_CASE = ("ab", "d", "scale_b", "groups", "accumulate", "a_major", "b_major")  # what a Case says itself


@cache
def chosen() -> tuple[Case, ...]:
    found: dict[str, Case] = {}
    for form, m, (n, k) in itertools.product(FORMS, M, SHAPES):
        words = " ".join(
            name if value is True else f"{'a' if name == 'ab' else name}={value}"
            for name, value in form.items()
        )
        spec = _C.plan(f"gemm m={m} n={n} k={k} {words}", DEVICE)["spec"]
        fields = {name: value for name, value in spec.to_dict().items() if name not in OF_THE_CASE}
        rows, columns = fields["block_m"] * fields["cluster_m"], fields["block_n"] * fields["cluster_n"]
        # A block and part of the next in each direction; all CTAs that share K get some of it.
        case = Case(rows + 1, columns + 8, 512 * fields["split_k"] + 64, spec=fields, **form)
        found.setdefault(str(case), case)
    return tuple(found.values())


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    cases = chosen()
    if not metafunc.config.getoption("--every-spec"):
        cases = tuple(random.Random(0).sample(cases, SAMPLE))
    metafunc.parametrize("case", cases, ids=str)


def test_a_spec(device: Any, case: Case) -> None:
    run_dense(device, case)
