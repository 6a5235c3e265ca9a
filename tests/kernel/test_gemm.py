"""Every GEMM kernel family against float64, on every device: edges first, then layouts, then each kind of spec."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gemm_cases import Case, run_contiguous, run_dense, run_masked

from deep_gemm import _C

EDGES = [
    Case(1, 64, 128),
    Case(1, 8, 16),  # less than one block in every direction
    Case(3, 72, 144),  # a K tail of 16, N no multiple of any block
    Case(65, 136, 400),
    Case(129, 200, 256),
    Case(128, 128, 128),
    Case(17, 24, 3 * 128 + 32, d="fp32"),
    Case(1, 1, 128),  # rows of d that TMA cannot write
    Case(5, 37, 256),
    Case(70, 131, 256, d="fp32"),
]
DENSE = [
    Case(33, 128, 640),
    Case(200, 320, 512),
    Case(
        140, 192, 384, spec={"swap_ab": False, "block_m": 128, "block_n": 128, "warpgroups": 2, "stages": 4}
    ),
    Case(
        140, 320, 384, spec={"swap_ab": False, "block_m": 128, "block_n": 192, "warpgroups": 2, "stages": 3}
    ),
    Case(
        130,
        129,
        640,
        spec={"swap_ab": False, "block_m": 64, "block_n": 64, "warpgroups": 1, "stages": 2, "split_k": 2},
    ),
    Case(
        70,
        131,
        1024,
        d_padding=3,
        spec={"swap_ab": False, "block_m": 128, "block_n": 128, "warpgroups": 2, "stages": 2, "split_k": 4},
    ),
    Case(64, 192, 2048),
    Case(40, 96, 384, d="fp32"),
    Case(40, 96, 384, d="fp32", accumulate=True),
    Case(130, 136, 384, d="fp32", accumulate=True),
    Case(40, 96, 384, accumulate=True),
    Case(1, 64, 2048, accumulate=True),
    Case(8, 256, 2048, accumulate=True),
    Case(5, 128, 512, accumulate=True),
    Case(
        200,
        264,
        256,
        accumulate=True,
        spec={"swap_ab": False, "block_m": 192, "block_n": 128, "warpgroups": 3, "stages": 3, "cluster_n": 2},
    ),
    Case(48, 136, 384, scale_b="per_row_128"),
    Case(160, 136, 512, scale_b="per_row_128", d="fp32", accumulate=True),
    Case(50, 96, 1024, scale_layout="mn_major"),
    Case(150, 96, 640, scale_layout="mn_major"),
    Case(50, 96, 384, scale_layout="padded"),
    Case(40, 96, 256, d_padding=8),
    Case(140, 96, 256, d_padding=8),
    Case(40, 96, 256, d_padding=3),  # TMA cannot write rows that start at odd places
    Case(1, 64, 64, ab="bf16"),
    Case(3, 72, 80, ab="bf16"),
    Case(70, 131, 200, ab="bf16", d="fp32"),
    Case(130, 192, 320, ab="bf16"),
    Case(60, 96, 256, ab="bf16", d="fp32", accumulate=True),
    Case(140, 128, 192, ab="bf16", accumulate=True),
]

# One spec of each structure; the emulator runs all of them, whatever the plan would choose.
WIDE = {"swap_ab": False}
NARROW = {"swap_ab": True, "block_m": 16, "block_n": 64, "warpgroups": 1}
SPECS: list[dict[str, Any]] = [
    {**WIDE, "block_m": 64, "block_n": 64, "warpgroups": 1, "stages": 2},
    {**WIDE, "block_m": 128, "block_n": 128, "warpgroups": 1, "stages": 3},  # two waves of one warpgroup
    {**WIDE, "block_m": 128, "block_n": 128, "warpgroups": 2, "stages": 4},
    {**WIDE, "block_m": 128, "block_n": 192, "warpgroups": 2, "stages": 3},
    {**WIDE, "block_m": 256, "block_n": 128, "warpgroups": 2, "stages": 3},
    {**WIDE, "block_m": 128, "block_n": 128, "warpgroups": 2, "stages": 3, "cluster_n": 2},
    {**WIDE, "block_m": 128, "block_n": 128, "warpgroups": 2, "stages": 3, "cluster_m": 2},
    {**WIDE, "block_m": 192, "block_n": 128, "warpgroups": 3, "stages": 3},
    {**WIDE, "block_m": 64, "block_n": 64, "warpgroups": 1, "stages": 2, "split_k": 2},
    {**WIDE, "block_m": 128, "block_n": 128, "warpgroups": 2, "stages": 2, "split_k": 4},
    {**NARROW, "stages": 2},
    {**NARROW, "block_m": 8, "stages": 4},
    {**NARROW, "block_m": 64, "stages": 4},
    {**NARROW, "block_n": 128, "warpgroups": 2, "stages": 4},
    {**NARROW, "warpgroups": 2, "k_warpgroups": 2, "stages": 4},
    {**NARROW, "split_k": 2, "stages": 3},
    {**NARROW, "warpgroups": 4, "k_warpgroups": 2, "block_n": 128, "split_k": 4, "stages": 4},
]

CONTIGUOUS = [
    Case(0, 64, 128, rows=(1,)),
    Case(0, 136, 400, rows=(100, 128, 130)),
    Case(0, 96, 256, rows=(128, 256, 1, 7)),
    Case(0, 96, 256, rows=(128, 256), d="fp32"),
    Case(0, 96, 384, rows=(20, 140), scale_layout="mn_major"),
    Case(0, 96, 256, rows=(120, 60), scale_b="per_row_128"),
    Case(0, 96, 192, rows=(128, 5, 200), ab="bf16"),
]
# Blocks taller than the groups' alignment: all of one group, parts of two, a part past the end.
TWO_WARPGROUPS = {**WIDE, "block_m": 256, "block_n": 128, "warpgroups": 2, "stages": 3}
THREE_WARPGROUPS = {**WIDE, "block_m": 192, "block_n": 128, "warpgroups": 3, "stages": 3}
STRADDLING = [(100, 128, 130), (128, 5, 200, 1), (7, 256, 3), (384, 1), (128, 300)]
CONTIGUOUS_SPECS = [
    *(
        Case(0, 136, 256, rows=rows, spec=spec)
        for rows in STRADDLING
        for spec in (TWO_WARPGROUPS, THREE_WARPGROUPS)
    ),
    Case(0, 200, 256, rows=(128, 5, 200, 1), spec={**TWO_WARPGROUPS, "cluster_n": 2}),
    Case(0, 200, 256, rows=(128, 5, 200, 1), spec={**THREE_WARPGROUPS, "cluster_n": 2}),
    Case(0, 96, 192, rows=(7, 256, 3), ab="bf16", spec=TWO_WARPGROUPS),
    Case(0, 96, 192, rows=(7, 256, 3), ab="bf16", spec=THREE_WARPGROUPS),
]
PSUM = [
    Case(0, 136, 256, rows=(100, 128, 130)),
    Case(0, 96, 256, rows=(3, 0, 5)),  # an empty group in the middle
    Case(0, 96, 192, rows=(128, 5, 200), ab="bf16"),
    *(Case(0, 136, 256, rows=rows, spec=THREE_WARPGROUPS) for rows in STRADDLING),
    Case(0, 200, 256, rows=(128, 5, 0, 200), spec={**THREE_WARPGROUPS, "cluster_n": 2}),
    Case(0, 96, 128, rows=(0, 1, *(0,) * 40, 3, 130, *(0,) * 1000, 7)),  # more groups than a warp looks at
]
MASKED = [
    Case(16, 64, 128, rows=(1,)),
    Case(200, 136, 400, rows=(0, 200, 1, 65)),
    Case(64, 96, 256, rows=(3, 5, 0, 64, 17)),
    Case(64, 96, 256, rows=(0, 0)),
    Case(40, 96, 256, rows=(3, 40), d="fp32"),
    Case(40, 96, 384, rows=(33, 7), scale_layout="mn_major"),
    Case(130, 96, 192, rows=(130, 0, 2), ab="bf16"),
    Case(16, 96, 128, rows=tuple(i % 17 for i in range(40))),  # more groups than a warp scans at once
]


@pytest.mark.parametrize("case", EDGES + DENSE, ids=str)
def test_dense(device: Any, case: Case) -> None:
    run_dense(device, case)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: " ".join(f"{k}={v}" for k, v in spec.items()))
@pytest.mark.parametrize("ab", ["fp8_e4m3", "bf16"])
def test_dense_specs(device: Any, spec: dict[str, Any], ab: str) -> None:
    elements = 2 if ab == "fp8_e4m3" else 1
    run_dense(device, Case(150, 200, 5 * 64 * elements + 16, ab=ab, spec=spec))


@pytest.mark.parametrize(
    "spec", SPECS[2:4] + SPECS[7:], ids=lambda spec: " ".join(f"{k}={v}" for k, v in spec.items())
)
def test_masked_specs(device: Any, spec: dict[str, Any]) -> None:
    run_masked(device, Case(140, 136, 400, rows=(0, 140, 1, 65), spec=spec))


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("spec", [SPECS[2], SPECS[5], SPECS[-1]], ids=["wide", "multicast", "split"])
@pytest.mark.parametrize("ab", ["fp8_e4m3", "bf16"])
def test_any_schedule_gives_the_same_bits(ab: str, spec: dict[str, Any], seed: int) -> None:
    """Other orders of warps and other latencies of copies and multiplications change nothing."""
    case = Case(100, 136, 400, ab=ab, spec=spec)
    one = run_dense(_C.Device("emulator:sm_90a,sms=4,seed=0"), case)
    other = run_dense(_C.Device(f"emulator:sm_90a,sms=4,seed={seed}"), case)
    assert (one.view(np.uint16) == other.view(np.uint16)).all()


@pytest.mark.parametrize("case", CONTIGUOUS + CONTIGUOUS_SPECS, ids=str)
def test_contiguous(device: Any, case: Case) -> None:
    run_contiguous(device, case)


@pytest.mark.parametrize("spec", [SPECS[i] for i in (0, 2, 4, 7, 10, 11, 12)], ids=str)
def test_rows_of_no_group_between_others(device: Any, spec: dict[str, Any]) -> None:
    """The first of 128 rows tells the group of all, whatever block a row falls into."""
    run_contiguous(device, Case(0, 64, 128, rows=(128, 130), spec=spec), holes=(*range(15, 33), 64, 127, 129))


@pytest.mark.parametrize("case", PSUM, ids=str)
def test_psum(device: Any, case: Case) -> None:
    run_contiguous(device, case, psum=True)


@pytest.mark.parametrize("case", MASKED, ids=str)
def test_masked(device: Any, case: Case) -> None:
    run_masked(device, case)
