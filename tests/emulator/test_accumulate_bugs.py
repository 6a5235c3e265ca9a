"""Bugs injected into the way C comes into the staging buffer of D, by the machinery of injection: one block
along K, so that a block is staged soon after the one before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from emulator.gemm_launch import KERNEL_SMEM_BYTES, Gemm, matrix_map, operand, pack_params
from emulator.injection import Bug, Launch, check_caught, check_clean, flatten


@dataclass(frozen=True)
class Accumulating(Gemm):
    d: type[Any] = np.float32
    n: int = 192
    k: int = 64

    def launch(self) -> Launch:
        rng = np.random.default_rng(5)
        m, n, k = self.m, self.n, self.k
        a, b = (operand(rng, shape).astype(ml_dtypes.bfloat16) for shape in ((m, k), (n, k)))
        c = rng.integers(-8, 9, (m, n)).astype(self.d)
        name, size = ("fp32", 4) if self.d is np.float32 else ("bf16", 2)

        def pack(device: Any, at: dict[str, int]) -> bytes:
            return pack_params({
                "a": matrix_map(device, at["a"], (1, m, k), "bf16", 2, self.block_m, 128),
                "b": matrix_map(device, at["b"], (1, n, k), "bf16", 2, self.block_n, 128),
                "c": matrix_map(device, at["c"], (1, m, n), name, size, 64, 128),
                "d": matrix_map(device, at["d"], (1, m, n), name, size, 64, 128),
                "c_data": at["c"], "d_data": at["d"], "d_stride_group": m * n, "d_stride_m": n,
                "m": m, "n": n, "k": k, "num_groups": 1,
            })  # fmt: skip

        arrays = {"a": a, "b": b, "c": c, "d": np.full((m, n), np.nan, np.float32).astype(self.d)}
        expected = c.astype(np.float64) + a.astype(np.float64) @ b.astype(np.float64).T
        return Launch(f"deep_gemm::{self.kernel}<kSpec>", (1,), 128 * (self.warpgroups + 1), KERNEL_SMEM_BYTES, arrays,
                      pack, {"d": expected}, tolerance=2.0**-7)  # fmt: skip


SPEC = (
    ".ab = Format::bf16, .d = Format::{}, .scale_b = ScaleB::none, .accumulate = true, .block_m = 64, .block_n = 64, "
    ".stages = 3, .warpgroups = 1"
)
FP32 = Accumulating("fp32", "sm90_bf16_gemm_nt", "sm90_gemm.cuh", SPEC.format("fp32"))
BF16 = Accumulating("bf16", "sm90_bf16_gemm_nt", "sm90_gemm.cuh", SPEC.format("bf16"), d=ml_dtypes.bfloat16)
BUGS = [
    Bug("C is not waited for", "ptx::mbarrier_wait(smem.c_full(warpgroup), c_phase);", ""),
    Bug("phase of C never flips", "c_phase = 1 - c_phase;", ""),
    Bug("C comes while the store of D still reads", "    ptx::tma_store_wait_read<0>();\n    kernel::load_c_waves", "    kernel::load_c_waves"),
    Bug("two arrivals expected where one thread loads", "ptx::mbarrier_init(smem.c_full(warpgroup), 1);",
        "ptx::mbarrier_init(smem.c_full(warpgroup), 2);", 8),
    Bug("every warp loads C", "if (ptx::thread_index() % kWarpgroup != 0) return;", "if (ptx::lane_index() != 0) return;", 8),
    Bug("C of the rows of D above", "first_row + wave * kMmaRows, block.a_group,\n                             policy",
        "first_row + wave * kMmaRows - 1, block.a_group,\n                             policy", 8),
]  # fmt: skip
FORMAT_BUGS = [
    (FP32, Bug("bytes of one column of boxes", "waves * kAtoms * kAtomBytes);", "waves * kAtomBytes);")),
    (FP32, Bug("C not added", "sum[i] += c.x;", "", 8)),
    (BF16, Bug("halves of C exchanged", "j % 2 == 0 ? ptx::bf16_low", "j % 2 == 1 ? ptx::bf16_low", 8)),
]


@pytest.mark.parametrize("gemm", [FP32, BF16], ids=lambda gemm: gemm.name)
def test_clean(gemm: Accumulating) -> None:
    check_clean(gemm.launch(), flatten(gemm.source()))


@pytest.mark.parametrize(
    ("gemm", "bug"),
    [*((gemm, bug) for gemm in (FP32, BF16) for bug in BUGS), *FORMAT_BUGS],
    ids=lambda value: value.name,
)
def test_bugs(gemm: Accumulating, bug: Bug) -> None:
    check_caught(gemm.launch(), flatten(gemm.source()), bug)
