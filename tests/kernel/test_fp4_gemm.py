"""FP8 activations times packed FP4 weights against float64: edges first, then groups, exponents and specs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fp4_cases import Case, run_contiguous, run_dense, run_gathered, run_masked

from deep_gemm import _C

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


MASKED = [
    Case(64, 256, m=8, rows=(1,)),
    Case(66, 160, m=40, rows=(0, 40, 1, 9)),
    Case(64, 256, m=16, rows=(0, 0)),
    Case(64, 128, m=4, rows=tuple(i % 5 for i in range(40))),  # more groups than a warp scans at once
]
CONTIGUOUS = [
    Case(64, 128, rows=(1,)),
    Case(66, 160, rows=(100, 128, 130)),
    Case(64, 256, rows=(3, 5), d="fp32"),
]
PSUM = [Case(64, 160, rows=(100, 128, 9)), Case(66, 128, rows=(3, 0, 5))]
GATHERED = [
    Case(64, 256, rows=(1,)),
    Case(66, 160, rows=(0, 3, 0, 9, 1)),
    Case(64, 128, rows=(20, 0, 0, 41)),
    Case(64, 128, rows=tuple(int(i % 3 == 0) for i in range(110))),  # more entries than a warp scans at once
]
# Exponents that fit e4m3 exactly, e5m2 exactly, and neither.
SPANS = [
    Case(66, 288, m=9, span=(120, 135)),
    Case(66, 288, m=9, span=(106, 135)),
    Case(66, 288, m=9, span=(106, 135), form="mx_e4m3"),
    Case(130, 256, m=20, span=(70, 140)),
    Case(66, 256, m=8, span=(90, 130), form="mx_e4m3", d="fp32"),
]
# One spec of each structure: the emulator runs all of them, whatever the plan would choose.
SPECS: list[dict[str, Any]] = [
    {"block_m": 8, "k_blocks": 2, "stages": 3, "ctas_per_sm": 3},
    {"block_m": 16, "k_blocks": 1, "stages": 4},
    {"block_m": 16, "k_blocks": 2, "stages": 3, "warpgroups": 2},
    {"block_m": 8, "k_blocks": 1, "stages": 5, "warpgroups": 3},
    {"block_m": 40, "k_blocks": 1, "stages": 3, "warpgroups": 4},
    {"block_m": 48, "k_blocks": 2, "stages": 3, "warpgroups": 2, "load_warps": 4},
    {"block_m": 128, "k_blocks": 1, "stages": 4, "warpgroups": 2, "load_warps": 2},
]


def spec_name(spec: dict[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in spec.items())


@pytest.mark.parametrize("case", MASKED, ids=str)
def test_masked(device: Any, case: Case) -> None:
    run_masked(device, case)


@pytest.mark.parametrize("case", CONTIGUOUS, ids=str)
def test_contiguous(device: Any, case: Case) -> None:
    run_contiguous(device, case)


@pytest.mark.parametrize("case", PSUM, ids=str)
def test_psum(device: Any, case: Case) -> None:
    run_contiguous(device, case, psum=True)


@pytest.mark.parametrize("rows_of", ["both", "none"])
@pytest.mark.parametrize("case", GATHERED, ids=str)
def test_gathered(device: Any, case: Case, rows_of: str) -> None:
    run_gathered(device, case, launches=2, rows_of=rows_of)


@pytest.mark.parametrize("case", SPANS, ids=str)
def test_every_exponent_is_exact(device: Any, case: Case) -> None:
    run_dense(device, case)


def test_split_weights_by_expert(device: Any) -> None:
    """Blocks with one run and with several, in one launch."""
    run_gathered(
        device,
        Case(128, 256, rows=(3, 9), span=(100, 120), form="mx_e4m3", spec={"warpgroups": 2, "block_m": 16}),
    )


@pytest.mark.parametrize("spec", SPECS, ids=spec_name)
@pytest.mark.parametrize("queue", [False, True], ids=["turns", "queue"])
def test_specs(device: Any, spec: dict[str, Any], queue: bool) -> None:
    run_gathered(device, Case(200, 544, rows=(5, 0, spec["block_m"] + 11, 1), spec={**spec, "queue": queue}))


@pytest.mark.parametrize("spec", SPECS[:4], ids=spec_name)
def test_wide_specs(device: Any, spec: dict[str, Any]) -> None:
    """The same with e5m2 operands."""
    run_dense(device, Case(200, 288, m=27, form="mx_e5m2", span=(104, 133), spec=spec))


def test_a_row_does_not_depend_on_its_batch() -> None:
    """One token alone, among others, in wider columns, by another arrangement: the same bits."""
    emulator = _C.Device("emulator:sm_90a,sms=4")
    case = Case(64, 512, m=20)
    together = run_dense(emulator, case)
    for spec in SPECS:
        assert (
            run_dense(emulator, replace(case, spec=spec)).view(np.uint16) == together.view(np.uint16)
        ).all(), spec
    for rows in (1, 8, 11):
        alone = run_dense(emulator, case, rows=slice(20 - rows, 20))
        assert (alone.view(np.uint16) == together[-rows:].view(np.uint16)).all(), rows


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_any_schedule_gives_the_same_bits(seed: int) -> None:
    case = Case(128, 512, rows=(3, 20, 9), spec={"block_m": 16, "queue": True, "stages": 4})
    one, other = (run_gathered(_C.Device(f"emulator:sm_90a,sms=4,seed={s}"), case) for s in (0, seed))
    assert (one.view(np.uint16) == other.view(np.uint16)).all()
