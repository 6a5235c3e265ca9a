"""Bugs injected into GEMM kernels whose operands are contiguous along their rows: descriptors, transpose flags, steps
along K and the boxes that TMA brings. The machinery of injection.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from emulator.gemm_launch import Gemm, matrix_map
from emulator.injection import Bug, Launch, check_caught, check_clean, flatten

MAP_BYTES = 128


@dataclass(frozen=True)
class Transposed(Gemm):
    """Both operands stored [k, rows]."""

    m: int = 128
    n: int = 256
    k: int = 320

    def launch(self) -> Launch:
        launch = super().launch()
        arrays = launch.arrays | {name: np.ascontiguousarray(launch.arrays[name].T) for name in ("a", "b")}

        def pack(device: Any, at: dict[str, int]) -> bytes:
            maps = [
                matrix_map(device, at["a"], (1, self.k, self.m), "bf16", 2, 64 // self.cluster_n, 128),
                matrix_map(device, at["b"], (1, self.k, self.n), "bf16", 2, 64 // self.cluster_m, 128),
            ]
            return b"".join(maps) + launch.pack(device, at)[2 * MAP_BYTES :]

        return replace(launch, arrays=arrays, pack=pack)


SPEC = ".ab = Format::bf16, .scale_b = ScaleB::none, "
MAJORS = ", .a_major = Major::mn, .b_major = Major::mn"
WIDE = Transposed(
    "wide", "sm90_bf16_gemm_nt", "sm90_gemm.cuh",
    SPEC + ".block_m = 64, .block_n = 128, .stages = 3, .warpgroups = 1" + MAJORS, block_n=128,
)  # fmt: skip
MULTICAST = Transposed(
    "multicast", "sm90_bf16_gemm_nt", "sm90_gemm.cuh",
    SPEC + ".block_m = 64, .block_n = 64, .stages = 3, .warpgroups = 1, .cluster_n = 2" + MAJORS, cluster_n=2,
)  # fmt: skip
SWAPPED = Transposed(
    "swapped", "sm90_bf16_gemm_swap_ab", "sm90_gemm_swap_ab.cuh",
    SPEC + ".swap_ab = true, .block_m = 16, .block_n = 64, .stages = 4, .warpgroups = 2, .k_warpgroups = 2" + MAJORS,
    block_m=16, warpgroups=2, m=32, n=128,
)  # fmt: skip
GEMMS = [WIDE, MULTICAST, SWAPPED]

FIELDS = "static_cast<u64>(chunk_bytes >> 4) << 16 | kAtomStride"
DESCRIPTOR_BUGS = [
    Bug("distance of k atoms too large", FIELDS, FIELDS.replace("kAtomStride", "kAtomStride << 1"), 8),
    Bug("distances of atoms and chunks exchanged", FIELDS, "(1024ull >> 4) << 16 | static_cast<u64>(chunk_bytes >> 4) << 32", 8),
    Bug("descriptor of the other order", "ptx::wgmma_descriptor_mn_major(tile, kMmaRows * kBlockKBytes)", "ptx::wgmma_descriptor(tile)", 8),
    Bug("no operand transposed", "return major == Major::mn ? 1 : 0;", "return 0;", 8),
    Bug("step along K of the other order", "(M == Major::k ? 32 : 16 * kBlockKBytes) / 16", "32 / 16", 8),
    Bug("half a step along K", "32 : 16 * kBlockKBytes) / 16", "32 : 8 * kBlockKBytes) / 16", 8),
    Bug("coordinates exchanged", "full, row + chunk, k, group,", "full, k, row + chunk, group,", 8),
]  # fmt: skip
# One chunk and one operand: the distance of atoms along k that the other order has is right, and no chunk follows.
SAME_WITHOUT_CHUNKS = "descriptor of the other order"
BUGS: list[tuple[Gemm, Bug]] = [
    *((gemm, bug) for gemm in (WIDE, SWAPPED) for bug in DESCRIPTOR_BUGS
      if gemm is WIDE or bug.name != SAME_WITHOUT_CHUNKS),
    (WIDE, Bug("chunks nearer than they are", "(tile, kMmaRows * kBlockKBytes)", "(tile, kMmaRows * kBlockKBytes / 2)", 8)),
    (WIDE, Bug("a not transposed", "S.block_n, tile::transpose_of(S.a_major)", "S.block_n, 0", 8)),
    (WIDE, Bug("b not transposed", "tile::transpose_of(S.b_major)>", "0>", 8)),
    (WIDE, Bug("every chunk from the first rows", "full, row + chunk, k, group,", "full, row, k, group,", 8)),
    (WIDE, Bug("chunks on top of each other", "tile + (chunk + share) * kBlockKBytes", "tile + share * kBlockKBytes", 8)),
    (SWAPPED, Bug("tokens not transposed", "tile::transpose_of(S.a_major)>", "0>", 8)),
    (SWAPPED, Bug("weights not transposed", "S.block_m, tile::transpose_of(S.b_major)", "S.block_m, 0", 8)),
    (SWAPPED, Bug("fewer bytes than a box brings", "return major == Major::k ? block_rows : align_up(block_rows, kMmaRows);",
                  "return block_rows;", 8)),
    (MULTICAST, Bug("both CTAs bring the same k", "row + chunk, k + share, group", "row + chunk, k, group", 8)),
    (MULTICAST, Bug("shares on top of each other", "tile + (chunk + share) * kBlockKBytes", "tile + chunk * kBlockKBytes", 8)),
]  # fmt: skip


@pytest.mark.parametrize("gemm", GEMMS, ids=lambda gemm: gemm.name)
def test_clean(launches: Callable[[Gemm], Launch], gemm: Gemm) -> None:
    check_clean(launches(gemm), flatten(gemm.source()))


@pytest.mark.parametrize(("gemm", "bug"), BUGS, ids=lambda value: value.name)
def test_bugs(launches: Callable[[Gemm], Launch], gemm: Gemm, bug: Bug) -> None:
    check_caught(launches(gemm), flatten(gemm.source()), bug)
