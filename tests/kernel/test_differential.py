"""The emulated GPU against the real one: the same generated kernel, the same inputs, the same bits.

Everything the PTX defines is IEEE arithmetic in a fixed order, and the emulated tensor core follows the published
model of Hopper's (aligned, truncated sums), so the outputs are expected to agree bit for bit. The bound below says how
far that model is trusted: an output may differ by what truncation in one block of K explains, and few may.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gemm_cases import Case, run_contiguous, run_dense, run_masked

from deep_gemm import _C
from deep_gemm.testing import calc_diff

SPECS: list[dict[str, Any]] = [
    {"block_m": 256, "block_n": 128, "warpgroups": 2, "stages": 3, "cluster_n": 2},
    {"block_m": 192, "block_n": 128, "warpgroups": 3, "stages": 4},
    {"block_m": 128, "block_n": 64, "warpgroups": 2, "stages": 6, "split_k": 2},
    {"swap_ab": True, "block_m": 16, "block_n": 64, "warpgroups": 2, "k_warpgroups": 2, "stages": 10},
    {
        "swap_ab": True,
        "block_m": 64,
        "block_n": 64,
        "warpgroups": 2,
        "k_warpgroups": 2,
        "split_k": 2,
        "stages": 8,
    },
]
MOST_DIFFERING = 0.02  # share of outputs
CALC_DIFF = 1e-6  # far below one bf16 rounding in every output


@pytest.fixture
def cuda() -> _C.Device:
    """The real GPU; the test is skipped where there is none."""
    try:
        device = _C.Device("cuda")
    except _C.Error as error:
        pytest.skip(f"no GPU to compare with: {str(error)[:80]}")
    if device.arch != "90a":
        pytest.skip(f"the GPU is sm_{device.arch}, the kernels are for sm_90a")
    return device


def check_same(emulated: np.ndarray, real: np.ndarray, what: str) -> None:
    """Bit for bit, but for the few outputs the accumulator model may miss."""
    differing = float(
        (emulated.view(np.uint8) != real.view(np.uint8)).reshape(emulated.size, -1).any(axis=1).mean()
    )
    difference = calc_diff(emulated.astype(np.float64), real.astype(np.float64))
    print(f"{what}: {differing:.2%} of outputs differ, calc_diff {difference:.1e}")
    assert differing <= MOST_DIFFERING, f"{what}: {differing:.2%} of outputs differ between the devices"
    assert difference <= CALC_DIFF, f"{what}: calc_diff {difference:.1e} between the devices"


@pytest.mark.parametrize("ab", ["fp8_e4m3", "bf16"])
@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: " ".join(f"{k}={v}" for k, v in spec.items()))
def test_dense(emulator: _C.Device, cuda: _C.Device, spec: dict[str, Any], ab: str) -> None:
    case = Case(150, 200, 1040, ab=ab, spec={"swap_ab": False, **spec})
    check_same(run_dense(emulator, case), run_dense(cuda, case), str(case))


@pytest.mark.parametrize("d", ["bf16", "fp32"])
def test_grouped(emulator: _C.Device, cuda: _C.Device, d: str) -> None:
    contiguous = Case(0, 136, 640, rows=(100, 128, 130), d=d)
    check_same(run_contiguous(emulator, contiguous), run_contiguous(cuda, contiguous), str(contiguous))
    masked = Case(70, 136, 640, rows=(70, 70, 70), d=d)
    check_same(run_masked(emulator, masked), run_masked(cuda, masked), str(masked))
