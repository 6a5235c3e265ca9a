"""Bugs of a small kernel of our own and of the dense GEMM kernels, by the machinery of injection.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from emulator.gemm_launch import (
    BF16_DENSE,
    BF16_NINE,
    BF16_SHALLOW,
    BF16_SWAPPED,
    FP8_DENSE,
    FP8_JOINED,
    FP8_MULTICAST,
    FP8_SHALLOW,
    FP8_SWAPPED,
    FP8_UNEVEN,
    Gemm,
    matrix_map,
    operand,
)
from emulator.injection import Bug, Launch, check_caught, check_clean, flatten

# ---- A small kernel of our own

SMALL_TEXT = (Path(__file__).parent / "small_gemm.cu").read_text()
SMALL_BUGS = [
    Bug("producer waits for the wrong phase", "mbarrier_wait(empty + 8 * stage, phase ^ 1);",
        "mbarrier_wait(empty + 8 * stage, phase);", 8),
    Bug("consumer waits for the wrong phase", "mbarrier_wait(full + 8 * stage, phase);",
        "mbarrier_wait(full + 8 * stage, phase ^ 1);", 8),
    Bug("consumer does not wait", "mbarrier_wait(full + 8 * stage, phase);", "", 4),
    Bug("producer does not wait", "mbarrier_wait(empty + 8 * stage, phase ^ 1);", ""),
    Bug("half of the transaction bytes", "full + 8 * stage, 2 * kTileBytes", "full + 8 * stage, kTileBytes"),
    Bug("too many transaction bytes", "full + 8 * stage, 2 * kTileBytes", "full + 8 * stage, 2 * kTileBytes + 16", 8),
    Bug("one arrival too few expected", "mbarrier_init(empty + 8 * stage, 4);", "mbarrier_init(empty + 8 * stage, 3);"),
    Bug("one arrival too many expected", "mbarrier_init(empty + 8 * stage, 4);", "mbarrier_init(empty + 8 * stage, 5);", 8),
    Bug("all lanes release the stage", "if (lane == 0) mbarrier_arrive(empty", "mbarrier_arrive(empty", 8),
    Bug("stage released before wgmma has read it",
        "wgmma_wait<0>();  // before release\n        if (lane == 0) mbarrier_arrive(empty + 8 * stage);",
        "if (lane == 0) mbarrier_arrive(empty + 8 * stage);\n        wgmma_wait<0>();"),
    Bug("accumulators read in flight", "wgmma_wait<0>();  // before release", "", 8),
    Bug("no wgmma.fence", "        wgmma_fence();\n", "", 8),
    Bug("no proxy fence before the store", "fence_proxy_async();  // before the store", "", 8),
    Bug("no barrier before the store", "named_barrier_sync(1, 128);", "", 4),
    Bug("barriers not fenced after init", "fence_mbarrier_init();\n    }", "}", 8),
    Bug("no synchronisation after init", "sync_threads();  // barriers are visible", ""),
    Bug("more stages than shared memory", "kStages = 3,", "kStages = 5,", 8),
    Bug("wrong descriptor step", "mma4<2, 2>(d, a, b,", "mma4<2, 1>(d, a, b,", 8),
    Bug("swizzle forgotten in the descriptor", "1ull << 62", "0ull << 62", 8),
    Bug("block ends before its store has read shared memory", "        tma_store_wait_read<0>();\n", ""),
]  # fmt: skip


def small_launch() -> Launch:
    rng = np.random.default_rng(3)
    m, n, num_k = 128, 64, 14
    a, b = operand(rng, (m, 128 * num_k)), operand(rng, (n, 128 * num_k))
    d = np.full((m, n), np.nan, np.float32)

    def pack(device: Any, at: dict[str, int]) -> bytes:
        maps = [
            matrix_map(device, at["a"], (1, *a.shape), "fp8_e4m3", 1, 64, 128),
            matrix_map(device, at["b"], (1, *b.shape), "fp8_e4m3", 1, 64, 128),
            matrix_map(device, at["d"], (1, m, n), "fp32", 4, 64, 0),
        ]
        return b"".join(maps) + num_k.to_bytes(64, "little")

    smem_bytes = 3 * 2 * 64 * 128 + 64 * 64 * 4 + 2 * 3 * 8
    expected = a.astype(np.float64) @ b.astype(np.float64).T
    return Launch(
        "small_gemm", (n // 64, m // 64), 160, smem_bytes, {"a": a, "b": b, "d": d}, pack, {"d": expected}
    )


@pytest.fixture(scope="module")
def small() -> Launch:
    return small_launch()


def test_small_kernel_is_clean(small: Launch) -> None:
    check_clean(small, flatten(SMALL_TEXT))


@pytest.mark.parametrize("bug", SMALL_BUGS, ids=lambda bug: bug.name)
def test_small_kernel_bugs(small: Launch, bug: Bug) -> None:
    check_caught(small, flatten(SMALL_TEXT), bug)


# ---- The GEMM kernels that ship

GEMMS = [
    BF16_SWAPPED,
    FP8_SHALLOW,
    BF16_SHALLOW,
    FP8_UNEVEN,
    FP8_DENSE,
    FP8_MULTICAST,
    FP8_JOINED,
    BF16_DENSE,
    FP8_SWAPPED,
]

ELECT = "\n            if (!ptx::elect_one()) continue;"
WAIT_EMPTY = "ptx::mbarrier_wait(smem.empty(cursor.stage), cursor.phase ^ 1);"
LOADER_BUGS = [
    Bug("loader waits for the wrong phase", WAIT_EMPTY + ELECT, WAIT_EMPTY.replace(" ^ 1", "") + ELECT, 8),
    Bug("loader does not wait", WAIT_EMPTY + ELECT, ELECT),
    Bug("bytes of one operand only", "kPlan.a_stage_bytes + kPlan.b_stage_bytes);", "kPlan.a_stage_bytes);"),
    Bug("every lane loads", ELECT, "", 8),
    Bug("phase never flips", "phase ^= 1;", "", 8),
    Bug("barriers not fenced after init", "ptx::fence_mbarrier_init();", "", 8),
]
STORE_BUGS = [
    Bug("no proxy fence before the store", "ptx::fence_proxy_async();\n    ptx::named_barrier_sync(1", "ptx::named_barrier_sync(1", 8),
    Bug("no barrier before the store", "ptx::fence_proxy_async();\n    ptx::named_barrier_sync(1 + warpgroup, kWarpgroup);",
        "ptx::fence_proxy_async();"),
]  # fmt: skip
STAGING_BUG = Bug(
    "staging buffer reused while its store reads it", "    if (stores) ptx::tma_store_wait_read<0>();\n", ""
)
JOINED_BUGS = [
    Bug("scale of B left out", "chunk[i].x * b.x, chunk[i].y * b.y", "chunk[i].x, chunk[i].y * b.y", 8),
    Bug("scale of B of the next block along K", "chunk[i].y * b.y, chunk[i].z * b.z", "chunk[i].y * b.z, chunk[i].z * b.z", 8),
    Bug("scales staged as they come", "joins_scales(S) ? joined_scale_of(item) : item", "item", 8),
    Bug("rows of another half", "row / 16 * 16 + row % 8 * 2 + row / 8 % 2", "row / 16 * 16 + row % 8 * 2 + 1 - row / 8 % 2", 8),
]  # fmt: skip
FIRST_FENCE = "if (kb == 0 && cursor.phase == 0 && cursor.stage == 0) ptx::wgmma_fence();"
KERNEL_BUGS: list[tuple[Gemm, Bug]] = [
    *((FP8_JOINED, bug) for bug in JOINED_BUGS),
    *((gemm, bug) for gemm in (FP8_DENSE, BF16_DENSE, FP8_SWAPPED, BF16_SWAPPED) for bug in LOADER_BUGS),
    *((gemm, bug) for gemm in (FP8_DENSE, BF16_DENSE) for bug in STORE_BUGS),
    (FP8_SHALLOW, STAGING_BUG),
    (BF16_SHALLOW, STAGING_BUG),
    (FP8_DENSE, Bug("partial sums read in flight", "ptx::wgmma_wait<0>();\n            ptx::wgmma_keep(partial);",
                    "ptx::wgmma_keep(partial);", 8)),
    (FP8_DENSE, Bug("one arrival too many expected", "S.warpgroups * 4 * S.cluster_m * S.cluster_n);",
                    "S.warpgroups * 4 * S.cluster_m * S.cluster_n + 1);", 8)),
    (FP8_DENSE, Bug("scales written before the stage is free", WAIT_EMPTY + "\n#pragma unroll", "#pragma unroll")),
    (BF16_DENSE, Bug("stage released before wgmma has read it", "ptx::wgmma_wait<1>();\n            release<S>(smem, previous);",
                     "release<S>(smem, previous);")),
    (BF16_SWAPPED, Bug("stage released before wgmma has read it", "ptx::wgmma_wait<1>();\n            release<S>(smem, previous);",
                       "release<S>(smem, previous);")),
    (BF16_SWAPPED, Bug("partial sums read before they are staged",
                       "    DG_DEVICE void publish(u32 rank) {\n        if constexpr (S.split_k == 1) {\n            sync_math();",
                       "    DG_DEVICE void publish(u32 rank) {\n        if constexpr (S.split_k == 1) {")),
    (FP8_MULTICAST, Bug("only the own stage is released", "ptx::mbarrier_arrive_remote(ptx::map_to_rank(smem.empty(stage), lane));",
                        "ptx::mbarrier_arrive(smem.empty(stage));")),
    (FP8_MULTICAST, Bug("peers may load before the barriers exist",
                        "if constexpr (multicasts(S))\n        ptx::cluster_sync();\n    else\n        ptx::sync_threads();",
                        "ptx::sync_threads();")),
    (FP8_MULTICAST, Bug("block leaves while its peer still signals it",
                        "if constexpr (cluster_size_of(S) > 1) ptx::cluster_sync();\n}", "}")),
    (FP8_MULTICAST, Bug("multicast to the own block only", "constexpr u16 kBothCtas = 3;", "constexpr u16 kBothCtas = 1;", 8)),
    (FP8_SWAPPED, Bug("partial sums read before they are complete", "ptx::mbarrier_wait(smem_.partial_full(), round_ & 1);", "")),
    (FP8_SWAPPED, Bug("partial sums sent before every warp has staged", "sync_math();\n            if (round_ == 0)", "if (round_ == 0)")),
    (FP8_SWAPPED, Bug("partial sums sent without a proxy fence", "ptx::fence_proxy_async();  // the copies", "//", 8)),
    (FP8_SWAPPED, Bug("one peer too few expected", "(S.split_k - 1) * share_bytes_of<S>());", "(S.split_k - 2) * share_bytes_of<S>());")),
    (FP8_UNEVEN, Bug("partial sums overwritten while they are read",
                      "else if (round_ > 0)\n            ptx::mbarrier_wait(smem_.partial_empty(), (round_ - 1) & 1);", "")),
    (FP8_UNEVEN, Bug("block leaves while its peer still reads its partial sums",
                     "// A peer may still read this CTA's partial sums.\n        ptx::cluster_sync();", "")),
    # FP8 reads its partial sums after every block of K, BF16 its sums after every tile.
    (FP8_DENSE, Bug("wgmma.fence before the first tile only", "ptx::wgmma_fence();\n            multiply<S>(partial",
                    FIRST_FENCE + "\n            multiply<S>(partial", 8)),
    (BF16_NINE, Bug("wgmma.fence before the first tile only", "ptx::wgmma_fence();\n#pragma unroll\n        for (u32 wave",
                     FIRST_FENCE + "\n#pragma unroll\n        for (u32 wave", 8)),
    (FP8_SWAPPED, Bug("promotion overtakes wgmma", "ptx::wgmma_wait<1>();\n        complete(odd, next);", "complete(odd, next);", 8)),
]  # fmt: skip


@pytest.mark.parametrize("gemm", GEMMS, ids=lambda gemm: gemm.name)
def test_shipped_kernels_are_clean(launches: Callable[[Gemm], Launch], gemm: Gemm) -> None:
    check_clean(launches(gemm), flatten(gemm.source()))


@pytest.mark.parametrize(("gemm", "bug"), KERNEL_BUGS, ids=lambda value: value.name)
def test_shipped_kernel_bugs(launches: Callable[[Gemm], Launch], gemm: Gemm, bug: Bug) -> None:
    check_caught(launches(gemm), flatten(gemm.source()), bug)
