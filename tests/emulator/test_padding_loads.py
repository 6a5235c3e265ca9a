"""Blocks of nothing but padding load nothing. The operands end where the rows of groups do: a load of what a block of
padding would multiply is out of bounds, which the emulator reports, and the same kernel told to load is caught.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from emulator.gemm_launch import KERNEL_SMEM_BYTES, Gemm, matrix_map, operand, pack_params
from emulator.injection import Bug, Launch, check_clean, flatten

ROWS, LOADED, USED = 256, 64, 50  # of d; of a, in whole blocks; of group 0
UNTOUCHED = 3.0


@dataclass(frozen=True)
class Padded(Gemm):
    """FP8. Rows from 50 on are padding: those to 127 of group 0, then of nobody. There is one matrix of B."""

    psum: bool = False
    m: int = ROWS
    n: int = 64
    k: int = 256

    def launch(self) -> Launch:
        rng = np.random.default_rng(63)
        n, k = self.n, self.k
        a, b = operand(rng, (LOADED, k)), operand(rng, (n, k))
        scale_a = (2.0 ** rng.integers(-1, 2, (LOADED, 2))).astype(np.float32)
        scale_b = (2.0 ** rng.integers(-1, 2, (1, 2))).astype(np.float32)
        left = a[:USED].astype(np.float64) * scale_a[:USED].repeat(128, axis=1)
        expected = np.zeros((ROWS, n))
        expected[:USED] = left @ (b.astype(np.float64) * scale_b.repeat(128, axis=1)).T
        if self.psum:
            expected[128:] = UNTOUCHED
            layout = np.array([USED], np.int32)
        else:
            layout = np.full(ROWS, -1, np.int32)
            layout[:USED] = 0
        d = np.full((ROWS, n), UNTOUCHED, ml_dtypes.bfloat16)
        arrays = {"a": a, "b": b, "scale_a": scale_a, "scale_b": scale_b, "d": d, "layout": layout}

        def pack(device: Any, at: dict[str, int]) -> bytes:
            return pack_params({
                "a": matrix_map(device, at["a"], (1, ROWS, k), "fp8_e4m3", 1, self.block_m, 128),
                "b": matrix_map(device, at["b"], (1, n, k), "fp8_e4m3", 1, self.block_n, 128),
                "d": matrix_map(device, at["d"], (1, ROWS, n), "bf16", 2, 64, 128),
                "d_data": at["d"], "scale_a": at["scale_a"], "scale_b": at["scale_b"], "group_layout": at["layout"],
                "d_stride_group": ROWS * n, "d_stride_m": n, "scale_a_stride_m": 2, "scale_a_stride_k": 1,
                "scale_b_stride_group": 2, "scale_b_stride_n": 2, "scale_b_stride_k": 1,
                "m": ROWS, "n": n, "k": k, "num_groups": 1,
            })  # fmt: skip

        return Launch(f"deep_gemm::{self.kernel}<kSpec>", (2,), 128 * (self.warpgroups + 1), KERNEL_SMEM_BYTES, arrays,
                      pack, {"d": expected}, tolerance=2.0**-7)  # fmt: skip


CONTIGUOUS = Padded(
    "contiguous", "sm90_fp8_gemm_nt", "sm90_gemm.cuh",
    ".groups = GroupMode::contiguous, .block_m = 64, .block_n = 64, .stages = 3, .warpgroups = 1",
)  # fmt: skip
PSUM = replace(CONTIGUOUS, name="psum", spec=CONTIGUOUS.spec.replace("contiguous", "psum"), psum=True)
FEW_TOKENS = Padded(
    "few tokens", "sm90_fp8_gemm_swap_ab", "sm90_gemm_swap_ab.cuh",
    ".groups = GroupMode::contiguous, .swap_ab = true, .block_m = 16, .block_n = 64, .stages = 4, .warpgroups = 2, "
    ".k_warpgroups = 2",
    block_m=16, warpgroups=2,
)  # fmt: skip
KERNELS = [CONTIGUOUS, PSUM, FEW_TOKENS]
IN_USE = "block.loads = ptx::ballot(in_use_ && group < params_.num_groups) != 0;"
GROUP = "\n            block.group = block.loads ? group : 0;"
OF_NOBODY = Bug(
    "padding of nobody is loaded", IN_USE + GROUP, "block.loads = true;\n            block.group = 0;"
)
OF_A_GROUP = Bug("padding of a group is loaded", IN_USE, IN_USE.replace("in_use_ && ", ""))
BUGS = [
    *((gemm, bug) for gemm in (CONTIGUOUS, FEW_TOKENS) for bug in (OF_NOBODY, OF_A_GROUP)),
    (PSUM, OF_A_GROUP),
]


@pytest.mark.parametrize("gemm", KERNELS, ids=lambda gemm: gemm.name)
def test_clean(launches: Any, gemm: Gemm) -> None:
    check_clean(launches(gemm), flatten(gemm.source()))


@pytest.mark.parametrize(("gemm", "bug"), BUGS, ids=lambda value: value.name)
def test_loads_are_noticed(launches: Any, gemm: Gemm, bug: Bug) -> None:
    outcomes = launches(gemm).outcomes(bug.inject(flatten(gemm.source())))
    # By the tensor memory accelerator, or by the loads of scales; not where another allocation happens to follow.
    caught = [outcome for outcome in outcomes.values() if outcome != "clean"]
    assert len(caught) > len(outcomes) // 2, outcomes
    assert all("out of bounds" in outcome or "asynchronous read" in outcome for outcome in caught), outcomes
