"""The FP4 kernel for many tokens: against float64, and bit for bit against the kernel for few tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fp4_cases import Case, run_contiguous, run_dense, run_gathered, run_masked
from gemm_cases import unchecked

from deep_gemm import _C

WIDE = {"wide": True, "warpgroups": 2, "k_blocks": 1, "stages": 4, "block_m": 64}
FEW = {"block_m": 16, "stages": 4}  # the other kernel, whatever the plan would choose
PAIR = {"cluster": 2}


def both(run: Any, device: Any, case: Case, spec: dict[str, Any], **options: Any) -> None:
    """The wide kernel and the one for few tokens; `run` compares each with float64."""
    wide = run(device, replace(case, spec={**WIDE, **spec}), **options)
    few = run(device, replace(case, spec=FEW), **options)
    assert (wide.view(np.uint8) == few.view(np.uint8)).all(), f"{case}: the kernels differ"


DENSE = [
    (Case(64, 256, m=1), {}),
    (Case(2, 32, m=3), {}),
    (Case(66, 160, m=33), PAIR),
    (Case(130, 288, m=70, d="fp32"), PAIR),
    (Case(96, 256, m=70, accumulate=True), {}),
    (Case(96, 256, m=5, d="fp32", accumulate=True), PAIR),
    (Case(96, 384, m=40, per_token=True), PAIR),
    (Case(66, 384, m=33, per_token=True, accumulate=True, d="fp32"), {}),
    (Case(600, 256, m=20), {"cluster": 4}),
    (Case(64, 176, m=20, form="nv_single"), {}),  # K ends within a word's group of 32
]


@pytest.mark.parametrize(("case", "spec"), DENSE, ids=str)
def test_dense(device: Any, case: Case, spec: dict[str, Any]) -> None:
    both(run_dense, device, case, spec)


@pytest.mark.parametrize(
    "case",
    [
        Case(64, 256, m=8, rows=(1,)),
        Case(66, 160, m=75, rows=(0, 75, 1, 9)),
        Case(66, 160, m=75, rows=(0, 75, 1, 9), per_token=True),
        Case(64, 128, m=4, rows=tuple(i % 5 for i in range(40))),
    ],
    ids=str,
)
def test_masked(device: Any, case: Case) -> None:
    both(run_masked, device, case, PAIR)


@pytest.mark.parametrize("psum", [False, True], ids=["contiguous", "psum"])
@pytest.mark.parametrize(
    "case",
    [
        Case(66, 160, rows=(100, 128, 130)),
        Case(64, 160, rows=(100, 9), per_token=True),
        Case(64, 128, rows=(3, 0, 5), d="fp32"),
    ],
    ids=str,
)
def test_contiguous(device: Any, case: Case, psum: bool) -> None:
    both(run_contiguous, device, case, PAIR, psum=psum)


def test_numbers_out_of_range(device: Any) -> None:
    """Counts below zero and beyond the buffer end at it; rows of a group that does not exist are of none."""
    device = unchecked(device)
    both(run_masked, device, Case(66, 160, m=75, rows=(0, 75, 1, 9)), PAIR, counts=(-3, 80, 1, 9))
    both(run_contiguous, device, Case(66, 160, rows=(100, 128)), PAIR, no_group=2)
    both(run_contiguous, device, Case(66, 160, rows=(100, 128)), PAIR, psum=True, beyond=300)


@pytest.mark.parametrize("rows_of", ["both", "none"])
@pytest.mark.parametrize(
    "case",
    [
        Case(66, 160, rows=(0, 3, 0, 70, 1)),
        Case(66, 160, rows=(0, 3, 0, 70, 1), per_token=True),
        Case(300, 256, rows=(150, 0, 31)),
        Case(64, 128, rows=tuple(int(i % 3 == 0) for i in range(110))),
    ],
    ids=str,
)
def test_gathered(device: Any, case: Case, rows_of: str) -> None:
    both(run_gathered, device, case, PAIR, launches=2, rows_of=rows_of)


@pytest.mark.parametrize(
    "case",
    [
        Case(66, 288, m=40, span=(106, 135)),
        Case(66, 288, m=40, span=(106, 135), form="mx_e4m3"),
        Case(300, 256, m=50, span=(70, 140), form="mx_e4m3"),
        Case(66, 256, m=8, span=(104, 133), form="mx_e5m2", d="fp32"),
        Case(66, 288, m=40, span=(106, 135), form="mx_e4m3", per_token=True),
    ],
    ids=str,
)
def test_every_exponent_is_exact(device: Any, case: Case) -> None:
    both(run_dense, device, case, PAIR)


# One spec of each structure.
SPECS: list[dict[str, Any]] = [
    {"block_m": 32, "stages": 3},
    {"block_m": 112, "warpgroups": 3, "stages": 5},
    {"block_m": 64, "warpgroups": 4, "cluster": 2},
    {"block_m": 96, "fragment_sets": 2, "cluster": 2},  # two chunks
    {"block_m": 192, "fragment_sets": 2, "stages": 3},  # four of unequal widths
    {"block_m": 48, "fragment_sets": 2, "warpgroups": 3, "stages": 5},
    {"block_m": 256, "stages": 3, "cluster": 2},
]


PARTS = {"cluster": 2, "block_m": 80}
IN_PARTS = [
    Case(66, 160, m=33, bf16_tokens=True),
    Case(130, 288, m=70, d="fp32", accumulate=True, bf16_tokens=True),
    Case(64, 176, m=20, form="nv_exact", bf16_tokens=True),
    Case(66, 288, m=40, span=(106, 135), form="mx_e4m3", bf16_tokens=True),
    Case(66, 256, m=17, form="mx_e5m2", span=(100, 129), bf16_tokens=True),
    Case(66, 176, m=33, form="nv_exact"),
    Case(130, 384, m=70, form="nv_exact", per_token=True, d="fp32"),
    Case(66, 288, m=40, span=(1, 0x7F), form="nv_exact"),
]


@pytest.mark.parametrize("case", IN_PARTS, ids=str)
def test_blobs_in_two_parts(device: Any, case: Case) -> None:
    """bf16 tokens, whose K comes in two tiles, and weights of two terms."""
    both(run_dense, device, case, PARTS)


@pytest.mark.parametrize("form", [{"bf16_tokens": True}, {"form": "nv_exact"}], ids=str)
def test_groups_of_blobs_in_two_parts(device: Any, form: dict[str, Any]) -> None:
    both(run_gathered, device, Case(66, 160, rows=(0, 3, 0, 70, 1), **form), PARTS, launches=2)
    both(run_masked, device, Case(66, 160, m=75, rows=(0, 75, 1, 9), **form), PARTS)
    both(run_contiguous, device, Case(66, 160, rows=(100, 9), **form), PARTS)
    wide = {"block_m": 96, "warpgroups": 3, "stages": 3}
    both(run_gathered, device, Case(400, 640, rows=(107, 33), **form), wide)


@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_specs(device: Any, spec: dict[str, Any], per_token: bool) -> None:
    case = Case(200, 544, rows=(5, 0, spec["block_m"] + 11, spec["block_m"] - 20), per_token=per_token)
    both(run_gathered, device, case, spec)


def test_a_row_does_not_depend_on_its_batch() -> None:
    """One token alone, among others, in wider columns: the same bits."""
    emulator = _C.Device("emulator:sm_90a,sms=4")
    case = Case(64, 512, m=70, spec={**WIDE, **PAIR})
    together = run_dense(emulator, case)
    for rows in (1, 16, 33):
        alone = run_dense(emulator, case, rows=slice(70 - rows, 70))
        assert (alone.view(np.uint16) == together[-rows:].view(np.uint16)).all(), rows


@pytest.mark.parametrize("seed", [1, 2])
def test_any_schedule_gives_the_same_bits(seed: int) -> None:
    case = Case(200, 512, rows=(3, 70, 9), spec={**WIDE, **PAIR})
    one, other = (run_gathered(_C.Device(f"emulator:sm_90a,sms=4,seed={s}"), case) for s in (0, seed))
    assert (one.view(np.uint16) == other.view(np.uint16)).all()
