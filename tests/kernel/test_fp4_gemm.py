"""FP8 activations times packed FP4 weights against float64: edges first, then groups, exponents and specs."""

from __future__ import annotations

from typing import Any

import pytest
from fp4_cases import Case, run_contiguous, run_dense, run_gathered, run_masked

DENSE = [
    Case(64, 256, m=1),
    Case(2, 32, m=1),
    Case(64, 128, m=8),
    Case(66, 160, m=9),
    Case(130, 288, m=3, d="fp32"),
    Case(64, 512, m=70),
    Case(96, 256, m=17, accumulate=True),
    Case(96, 256, m=5, d="fp32", accumulate=True),
    Case(96, 384, m=12, per_token=True),
]


@pytest.mark.parametrize("case", DENSE, ids=str)
def test_dense(device: Any, case: Case) -> None:
    run_dense(device, case)
