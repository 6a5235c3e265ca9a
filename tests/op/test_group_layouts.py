"""Numbers of a group layout that break its rules: the emulated device looks before the kernel runs and refuses; a GPU
does not look (tests/op/test_gemm_edges.py, tests/kernel/test_fp4_wide.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import fp4_cases
import numpy as np
import pytest
from gemm_cases import Array, Case, argument, poisoned, random_operand

import deep_gemm

N, K, GROUPS = 64, 128, 2
M = {"contiguous": 256, "psum": 256, "masked": 20}
# Kernels that other tests build too: each form once with each kind of parameters.
GEMM = {"contiguous": ("fp8_e4m3", "bf16"), "psum": ("bf16", "fp32"), "masked": ("fp8_e4m3", "bf16")}
FP4: dict[str, dict[str, Any]] = {
    "contiguous": {"block_m": 16, "stages": 4},
    "psum": {"wide": True, "warpgroups": 2, "k_blocks": 1, "stages": 4, "block_m": 64, "cluster": 2},
    "masked": {"wide": True, "warpgroups": 2, "k_blocks": 1, "stages": 4, "block_m": 64, "cluster": 2},
}

RULES = {
    "contiguous": "expected groups that start at multiples of 128 rows: pad each group with rows of -1",
    "psum range": "expected 0 to 256, the rows of a; pass the end row of each group",
    "psum order": "groups start at multiples of 128 rows",
    "masked": "expected 0 to 20, the rows that each group has in a; pass the number of valid rows",
}
REFUSED: list[tuple[str, Array, str, str]] = [
    (
        "contiguous",
        np.repeat([0, 1], (100, 156)),
        "row 0 to group 0 and row 100 to group 1",
        RULES["contiguous"],
    ),
    (
        "contiguous",
        np.repeat([-1, 1], (1, 255)),
        "row 0 to group -1 and row 1 to group 1",
        RULES["contiguous"],
    ),
    ("psum", np.array([100, 257]), "ends group 1 at row 257,", RULES["psum range"]),
    ("psum", np.array([-1, 200]), "ends group 0 at row -1,", RULES["psum range"]),
    ("psum", np.array([2**31 - 1, 0]), "ends group 0 at row 2147483647,", RULES["psum range"]),
    ("psum", np.array([200, 100]), "ends group 0 at row 200 and group 1 at row 100,", RULES["psum order"]),
    (
        "psum",
        np.array([100, 120]),
        "the end of the group before, for no rows, or at least 128:",
        RULES["psum order"],
    ),
    ("masked", np.array([3, 21]), "gives group 1 21 rows,", RULES["masked"]),
    ("masked", np.array([-3, 20]), "gives group 0 -3 rows,", RULES["masked"]),
]
ACCEPTED = [
    ("contiguous", np.repeat([0, -1, 7, 1, -9], (100, 20, 8, 3, 125))),
    ("psum", np.array([100, 100])),  # two ways to say that the second group is empty
    ("psum", np.array([100, 128])),
    ("psum", np.array([0, 256])),
    ("masked", np.array([0, 20])),
]


def gemm_call(form: str, layout: Array, emulator: Any) -> tuple[Callable[[], None], Array]:
    """A call with this layout, and its D."""
    rng, masked, (ab, d_type) = np.random.default_rng(0), form == "masked", GEMM[form]
    case = Case(M[form], N, K, ab=ab, d=d_type)
    rows = (GROUPS, case.m) if masked else (case.m,)
    a, b = random_operand(rng, (*rows, K), case, 1), random_operand(rng, (GROUPS, N, K), case, 128)
    d = poisoned((*rows, N), case)
    operation = getattr(
        deep_gemm,
        f"m_grouped_{'fp8' if ab == 'fp8_e4m3' else ab}_gemm_nt_{'masked' if masked else 'contiguous'}",
    )
    keywords: dict[str, Any] = {"expected_m": 16} if masked else {"use_psum_layout": form == "psum"}
    left, right = argument(emulator, a), argument(emulator, b)
    return lambda: operation(left, right, d, layout.astype(np.int32), **keywords, device=emulator), d


def fp4_call(form: str, layout: Array, emulator: Any) -> tuple[Callable[[], None], Array]:
    masked = form == "masked"
    case = fp4_cases.Case(66, 160, m=M[form], rows=(100, 128), spec=FP4[form])
    rows = (GROUPS, case.m) if masked else (case.m,)
    data = fp4_cases.make_data(case, rows, 0)
    d = fp4_cases.poisoned((*rows, case.n), case)
    operation = getattr(deep_gemm, f"m_grouped_fp8_fp4_gemm_nt_{'masked' if masked else 'contiguous'}")
    keywords: dict[str, Any] = {"expected_m": 16} if masked else {"use_psum_layout": form == "psum"}
    keywords |= fp4_cases.keywords(emulator, case, data, form)
    left, weights = fp4_cases.activations(emulator, data), fp4_cases.on_device(emulator, data.weights)
    return lambda: operation(left, weights, d, layout.astype(np.int32), **keywords), d


CALLS = {"gemm": gemm_call, "fp4": fp4_call}


@pytest.mark.parametrize(
    ("form", "layout", "got", "rule"), REFUSED, ids=[f"{form}: {got}" for form, _, got, _ in REFUSED]
)
@pytest.mark.parametrize("operation", CALLS)
def test_refused_before_the_kernel(
    emulator: Any, operation: str, form: str, layout: Array, got: str, rule: str
) -> None:
    call, d = CALLS[operation](form, layout, emulator)
    with pytest.raises(ValueError, match=r"^m_grouped_gemm: (grouped_layout|masked_m) ") as raised:
        call()
    assert got in str(raised.value) and rule in str(raised.value), raised.value
    assert (d.view(np.uint8) == 0xFF).all(), "nothing may have been launched"


@pytest.mark.parametrize(
    ("form", "layout"), ACCEPTED, ids=[f"{form} {layout[:4]}" for form, layout in ACCEPTED]
)
@pytest.mark.parametrize("operation", CALLS)
def test_what_keeps_the_rules_runs(emulator: Any, operation: str, form: str, layout: Array) -> None:
    call, d = CALLS[operation](form, layout, emulator)
    call()
    assert not (d.view(np.uint8) == 0xFF).all()
