"""Bugs injected into the walk over groups of a prefix-sum layout, by the machinery of injection: blocks of 192
rows over groups that end inside them, with an empty group and rows that belong to nobody.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from emulator.gemm_launch import KERNEL_SMEM_BYTES, Gemm, matrix_map, operand, pack_params
from emulator.injection import Bug, Launch, check_caught, check_clean, flatten

ENDS = (100, 100, 130, 450)  # groups start at rows 0, 128, 128 and 256


@dataclass(frozen=True)
class Psum(Gemm):
    m: int = 640
    n: int = 64
    k: int = 128

    def launch(self) -> Launch:
        rng = np.random.default_rng(7)
        m, n, k, groups = self.m, self.n, self.k, len(ENDS)
        a, b = (operand(rng, shape).astype(ml_dtypes.bfloat16) for shape in ((m, k), (groups, n, k)))
        untouched = 3.0
        expected = np.full((m, n), untouched)
        start = 0
        for group, end in enumerate(ENDS):
            padded = -(-end // 128) * 128
            expected[start:padded] = 0
            expected[start:end] = a[start:end].astype(np.float64) @ b[group].astype(np.float64).T
            start = padded
        arrays = {
            "a": a,
            "b": b,
            "d": np.full((m, n), untouched, ml_dtypes.bfloat16),
            "ends": np.array(ENDS, np.int32),
        }

        def pack(device: Any, at: dict[str, int]) -> bytes:
            return pack_params({
                "a": matrix_map(device, at["a"], (1, m, k), "bf16", 2, self.block_m, 128),
                "b": matrix_map(device, at["b"], b.shape, "bf16", 2, self.block_n, 128),
                "d": matrix_map(device, at["d"], (1, m, n), "bf16", 2, 64, 128),
                "d_data": at["d"], "group_layout": at["ends"], "d_stride_group": m * n, "d_stride_m": n,
                "m": m, "n": n, "k": k, "num_groups": groups,
            })  # fmt: skip

        return Launch(f"deep_gemm::{self.kernel}<kSpec>", (2,), 128 * (self.warpgroups + 1), KERNEL_SMEM_BYTES, arrays,
                      pack, {"d": expected}, tolerance=2.0**-7)  # fmt: skip


PSUM = Psum(
    "psum", "sm90_bf16_gemm_nt", "sm90_gemm.cuh",
    ".ab = Format::bf16, .scale_b = ScaleB::none, .groups = GroupMode::psum, .block_m = 192, .block_n = 64, "
    ".stages = 2, .warpgroups = 3",
    block_m=192, warpgroups=3,
)  # fmt: skip
BUGS = [
    Bug("a group that ends at the row counts as its own", "ptx::ballot(end <= m)", "ptx::ballot(end < m)", 8),
    Bug("ends without their padding", "align_up(end_of(group), kGroupAlignment);", "end_of(group);", 8),
    Bug("the second part has the group of the first", "group = groups_[1];", "", 8),
    Bug("the second part ends with the first", "end = ends_[1];", "", 8),
    Bug("the first part writes the rows of the second", "two && part_ == 0 ? boundary : S.block_m", "S.block_m", 4),
    Bug("no second part", "comes_again = ptx::ballot(two && second) != 0 && part_ == 0;", "comes_again = false;", 8),
    Bug("blocks beyond the last group", "? psum_rows_ : params_.m", "? params_.m : params_.m", 8),
    Bug("rows beyond the end are not blanked", "block.rows_end = end;", "", 8),
    Bug("groups looked at one lane short", "(ptx::lane_index() + 1) * Distance - 1", "ptx::lane_index() * Distance + 1", 8),
    Bug("the group of the block before", "        if constexpr (has_segments<S>()) prefetch_groups();\n        return found;", "        return found;", 8),
]  # fmt: skip


def test_clean() -> None:
    check_clean(PSUM.launch(), flatten(PSUM.source()))


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_bugs(bug: Bug) -> None:
    check_caught(PSUM.launch(), flatten(PSUM.source()), bug)
