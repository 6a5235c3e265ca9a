"""Bugs injected into GEMMs of groups, by the machinery of injection: masked ones, more than a warp looks at
together, and contiguous ones in blocks that straddle them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from emulator.gemm_launch import KERNEL_SMEM_BYTES, Gemm, matrix_map, operand, pack_params
from emulator.injection import Bug, Launch, check_caught, check_clean, flatten

UNTOUCHED = 3.0


@dataclass(frozen=True)
class Masked(Gemm):
    """FP8; blocks of 64 rows, of which those beyond a group's count become zeros."""

    m: int = 80
    n: int = 128
    k: int = 256

    def launch(self) -> Launch:
        rng = np.random.default_rng(61)
        counts = np.zeros(40, np.int32)
        counts[[0, 2, 3, 33, 39]] = 70, -3, 1, 80, 64
        m, n, k, groups = self.m, self.n, self.k, len(counts)
        a, b = operand(rng, (groups, m, k)), operand(rng, (groups, n, k))
        scale_a = (2.0 ** rng.integers(-1, 2, (groups, m, 2))).astype(np.float32)
        scale_b = (2.0 ** rng.integers(-1, 2, (groups, 1, 2))).astype(np.float32)
        expected = np.full((groups, m, n), UNTOUCHED)
        for group, count in enumerate(int(count) for count in counts):
            if count > 0:
                left = a[group, :count].astype(np.float64) * scale_a[group, :count].repeat(128, axis=1)
                right = b[group].astype(np.float64) * scale_b[group].repeat(128, axis=1)
                expected[group, : -(-count // 64) * 64] = 0
                expected[group, :count] = left @ right.T
        d = np.full((groups, m, n), UNTOUCHED, ml_dtypes.bfloat16)
        arrays = {"a": a, "b": b, "scale_a": scale_a, "scale_b": scale_b, "d": d, "counts": counts}

        def pack(device: Any, at: dict[str, int]) -> bytes:
            return pack_params({
                "a": matrix_map(device, at["a"], a.shape, "fp8_e4m3", 1, self.block_m, 128),
                "b": matrix_map(device, at["b"], b.shape, "fp8_e4m3", 1, self.block_n, 128),
                "d": matrix_map(device, at["d"], d.shape, "bf16", 2, 64, 128),
                "d_data": at["d"], "scale_a": at["scale_a"], "scale_b": at["scale_b"], "group_layout": at["counts"],
                "d_stride_group": m * n, "d_stride_m": n, "scale_a_stride_group": 2 * m, "scale_a_stride_m": 2,
                "scale_a_stride_k": 1, "scale_b_stride_group": 2, "scale_b_stride_n": 2, "scale_b_stride_k": 1,
                "m": m, "n": n, "k": k, "num_groups": groups,
            })  # fmt: skip

        return Launch(f"deep_gemm::{self.kernel}<kSpec>", (2,), 128 * (self.warpgroups + 1), KERNEL_SMEM_BYTES, arrays,
                      pack, {"d": expected}, tolerance=2.0**-7)  # fmt: skip


@dataclass(frozen=True)
class Contiguous(Gemm):
    """BF16; blocks of 192 rows over groups that start at 0, 128 and 256, the second with a hole, and rows of nobody."""

    m: int = 400
    n: int = 64
    k: int = 128

    def launch(self) -> Launch:
        rng = np.random.default_rng(62)
        m, n, k = self.m, self.n, self.k
        a, b = (operand(rng, shape).astype(ml_dtypes.bfloat16) for shape in ((m, k), (3, n, k)))
        layout = np.full(m, -1, np.int32)
        layout[:100], layout[128:250], layout[256:380] = 0, 1, 2
        layout[190:205] = -1
        expected = np.zeros((m, n))
        for group in range(3):
            rows = layout == group
            expected[rows] = a[rows].astype(np.float64) @ b[group].astype(np.float64).T
        arrays = {"a": a, "b": b, "layout": layout, "d": np.full((m, n), UNTOUCHED, ml_dtypes.bfloat16)}

        def pack(device: Any, at: dict[str, int]) -> bytes:
            return pack_params({
                "a": matrix_map(device, at["a"], (1, m, k), "bf16", 2, self.block_m, 128),
                "b": matrix_map(device, at["b"], b.shape, "bf16", 2, self.block_n, 128),
                "d": matrix_map(device, at["d"], (1, m, n), "bf16", 2, 64, 128),
                "d_data": at["d"], "group_layout": at["layout"], "d_stride_group": m * n, "d_stride_m": n,
                "m": m, "n": n, "k": k, "num_groups": 3,
            })  # fmt: skip

        return Launch(f"deep_gemm::{self.kernel}<kSpec>", (2,), 128 * (self.warpgroups + 1), KERNEL_SMEM_BYTES, arrays,
                      pack, {"d": expected}, tolerance=2.0**-7)  # fmt: skip


MASKED = Masked(
    "masked", "sm90_fp8_gemm_nt", "sm90_gemm.cuh",
    ".groups = GroupMode::masked, .block_m = 64, .block_n = 64, .stages = 3, .warpgroups = 1",
)  # fmt: skip
CONTIGUOUS = Contiguous(
    "contiguous", "sm90_bf16_gemm_nt", "sm90_gemm.cuh",
    ".ab = Format::bf16, .scale_b = ScaleB::none, .groups = GroupMode::contiguous, .block_m = 192, .block_n = 64, "
    ".stages = 2, .warpgroups = 3",
    block_m=192, warpgroups=3,
)  # fmt: skip
BUGS = [
    (MASKED, Bug("groups counted from the first of 32", "block.group = chunk_ + lane;", "block.group = lane;", 8)),
    (MASKED, Bug("units before the next 32 are forgotten", "ptx::shfl_idx(lane_end_, ptx::kWarpThreads - 1));", "0);", 8)),
    (MASKED, Bug("lanes add those above, too", "if (ptx::lane_index() >= delta) total += below;", "total += below;", 8)),
    (MASKED, Bug("a count below zero", "value < 0 ? 0 : static_cast<u32>(value)", "static_cast<u32>(value)", 8)),
    (MASKED, Bug("rows and columns of units change places", "((unit / units_m) * S.cluster_n", "((unit / units_n_) * S.cluster_n", 8)),
    (MASKED, Bug("all groups to the first", "column, first_row, block.a_group);", "column, first_row, 0);", 8)),
    (MASKED, Bug("scales of the first group", "p.scale_a + block.a_group * p.scale_a_stride_group", "p.scale_a", 8)),
    (CONTIGUOUS, Bug("the next group starts after 128 rows", "return kGroupAlignment - m % kGroupAlignment;", "return kGroupAlignment;", 8)),
    (CONTIGUOUS, Bug("the group of the block's first row", "groups_[0] = group_of_row(m - m % kGroupAlignment);", "groups_[0] = group_of_row(m);", 8)),
    (CONTIGUOUS, Bug("the group of a row beyond the last", "group_of_row(second < params_.m ? second : m)", "group_of_row(second)", 8)),
    (CONTIGUOUS, Bug("rows of nobody are not blanked", "return group[half] < p.num_groups;", "return true;", 8)),
    (CONTIGUOUS, Bug("groups of rows eight before", "ptx::lane_index() / 4 + half * 8;\n    }\n};", "ptx::lane_index() / 4;\n    }\n};", 8)),
]  # fmt: skip


@pytest.mark.parametrize("gemm", [MASKED, CONTIGUOUS], ids=lambda gemm: gemm.name)
def test_clean(launches: Any, gemm: Gemm) -> None:
    check_clean(launches(gemm), flatten(gemm.source()))


@pytest.mark.parametrize(("gemm", "bug"), BUGS, ids=lambda value: value.name)
def test_bugs(launches: Any, gemm: Gemm, bug: Bug) -> None:
    check_caught(launches(gemm), flatten(gemm.source()), bug)
