"""FP8 activations times packed NVFP4 weights against float64, both forms: shapes, groups, scale spreads and specs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fp4_cases import Case, make_data, run_contiguous, run_dense, run_gathered, run_masked
from reference import fp4

from deep_gemm import _C

pytestmark = pytest.mark.parametrize("form", ["nv_single", "nv_exact"])

DENSE = [
    Case(64, 256, m=1),
    Case(2, 16, m=1),
    Case(64, 128, m=8),
    Case(66, 176, m=9),
    Case(130, 288, m=3, d="fp32"),
    Case(64, 512, m=70),
    Case(96, 256, m=17, accumulate=True),
    Case(96, 384, m=12, per_token=True),
]


@pytest.mark.parametrize("case", DENSE, ids=str)
def test_dense(device: Any, case: Case, form: str) -> None:
    run_dense(device, replace(case, form=form))


# Scales within the window, at its ends, subnormal ones, and all there are: the last need several runs.
SPANS = [(0x20, 0x60), (0x38, 0x78), (2, 0x38), (1, 8), (0, 0x20), (1, 0x7F)]


@pytest.mark.parametrize("span", SPANS, ids=str)
@pytest.mark.parametrize("m", [9, 33])
def test_every_scale(device: Any, span: tuple[int, int], m: int, form: str) -> None:
    case = Case(66, 288, m=m, span=span, d="fp32", form=form)
    assert make_data(case, (m,)).weights.split == (span == (1, 0x7F))
    run_dense(device, case)


@pytest.mark.parametrize("span", SPANS, ids=str)
def test_every_scale_with_long_sums(span: tuple[int, int], form: str) -> None:
    """Sums in fp32 leave nothing but the weights: those of the form to the last bit."""
    device = _C.Device("emulator:sm_90a,sms=4,accumulator=fp32")
    run_dense(device, Case(66, 288, m=9, span=span, d="fp32", form=form, fp32_sums=True))


def test_masked(device: Any, form: str) -> None:
    run_masked(device, Case(66, 176, m=40, rows=(0, 40, 1, 9), form=form))


@pytest.mark.parametrize("psum", [False, True])
def test_contiguous(device: Any, psum: bool, form: str) -> None:
    run_contiguous(device, Case(66, 176, rows=(100, 128, 9), form=form), psum=psum)


@pytest.mark.parametrize("rows_of", ["both", "none"])
def test_gathered(device: Any, rows_of: str, form: str) -> None:
    run_gathered(device, Case(66, 176, rows=(0, 3, 0, 20, 1), form=form), launches=2, rows_of=rows_of)


def test_split_weights_by_expert(device: Any, form: str) -> None:
    case = Case(128, 256, rows=(3, 9), span=(1, 0x7F), form=form, spec={"warpgroups": 2, "block_m": 16})
    run_gathered(device, case)


SPECS: list[dict[str, Any]] = [
    {"block_m": 8, "k_blocks": 2, "stages": 3, "ctas_per_sm": 2},
    {"block_m": 16, "k_blocks": 1, "stages": 4},
    {"block_m": 16, "k_blocks": 2, "stages": 3, "warpgroups": 2},
    {"block_m": 24, "k_blocks": 1, "stages": 3, "warpgroups": 4},
    {"block_m": 48, "k_blocks": 2, "stages": 3, "warpgroups": 2, "load_warps": 4},
    {"block_m": 96, "k_blocks": 1, "stages": 4, "warpgroups": 2, "load_warps": 2},
]


def spec_name(spec: dict[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in spec.items())


@pytest.mark.parametrize("spec", SPECS, ids=spec_name)
def test_specs(device: Any, spec: dict[str, Any], form: str) -> None:
    case = Case(200, 544, rows=(5, 0, spec["block_m"] + 11, 1), form=form, spec={**spec, "queue": True})
    run_gathered(device, case)


def test_two_terms_are_nearer_than_one(emulator: Any, form: str) -> None:
    """Against the weights of the checkpoint: one term within its stated error, two within that of the sums."""
    case = Case(64, 512, m=16, d="fp32", form=form)
    got = run_dense(emulator, case)
    data = make_data(case, (case.m,))
    exact = fp4.unpack(data.weights)[0] if form == "nv_exact" else None
    other = make_data(replace(case, form="nv_exact"), (case.m,)).matrices[0]
    assert exact is None or (exact == other).all()
    error = np.linalg.norm(got - data.rows @ other.T) / np.linalg.norm(data.rows @ other.T)
    assert (error < 1e-3) if form == "nv_exact" else (1e-3 < error < 1 / 26)


def test_a_row_does_not_depend_on_its_batch(form: str) -> None:
    """One token alone, among others, in wider columns, by another arrangement: the same bits."""
    device = _C.Device("emulator:sm_90a,sms=4")
    case = Case(64, 512, m=20, form=form)
    together = run_dense(device, case).view(np.uint16)
    for spec in SPECS:
        assert (run_dense(device, replace(case, spec=spec)).view(np.uint16) == together).all(), spec
    for rows in (1, 8, 11):
        alone = run_dense(device, case, rows=slice(20 - rows, 20))
        assert (alone.view(np.uint16) == together[-rows:]).all(), rows


def test_any_schedule_gives_the_same_bits(form: str) -> None:
    case = Case(128, 512, rows=(3, 20, 9), form=form, spec={"block_m": 16, "queue": True, "stages": 4})
    one, other = (run_gathered(_C.Device(f"emulator:sm_90a,sms=4,seed={s}"), case) for s in (0, 5))
    assert (one.view(np.uint16) == other.view(np.uint16)).all()
