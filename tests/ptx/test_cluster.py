"""Clusters: rank, mapa, distributed shared memory, remote arrivals, multicast loads, cluster barriers; and named
barriers inside a CTA.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from deep_gemm import _C


def test_rank_and_special_registers(run: Any) -> None:
    out = np.zeros((8, 4), np.uint32)
    run('u32 rank, size, id; asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank)); asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));'
        'asm("mov.u32 %0, %%clusterid.x;" : "=r"(id)); if (threadIdx.x == 0) { u32* o = p.out + 4 * blockIdx.x;'
        " o[0] = rank; o[1] = size; o[2] = id; o[3] = gridDim.x * 1000 + blockDim.x; }", {"out": out}, grid=8, cluster=4, block=64)  # fmt: skip
    block = np.arange(8)
    np.testing.assert_array_equal(
        out, np.stack([block % 4, 0 * block + 4, block // 4, 0 * block + 8064], axis=1)
    )


def test_distributed_shared_memory(run_seed: Any) -> None:
    """Each CTA reads its neighbour's shared memory and writes to the next one's."""
    out = np.zeros((4, 32, 2), np.uint32)
    run_seed(
        "const u32 tile = dynamic_smem(), rank = cluster_rank(), lane = threadIdx.x;"
        'asm volatile("st.shared.u32 [%0], %1;" :: "r"(tile + 4 * lane), "r"(100 * rank + lane) : "memory"); cluster_sync();'
        "const u32 left = map_to_rank(tile, (rank + 3) % 4), right = map_to_rank(tile, (rank + 1) % 4); u32 v, w;"
        'asm volatile("ld.shared::cluster.u32 %0, [%1];" : "=r"(v) : "r"(left + 4 * lane) : "memory");'
        'asm volatile("st.shared::cluster.u32 [%0], %1;" :: "r"(right + 128 + 4 * lane), "r"(7 * rank + lane) : "memory");'
        "cluster_sync();"
        'asm volatile("ld.shared.u32 %0, [%1];" : "=r"(w) : "r"(tile + 128 + 4 * lane) : "memory");'
        "p.out[(rank * 32 + lane) * 2] = v; p.out[(rank * 32 + lane) * 2 + 1] = w;",
        {"out": out}, grid=4, cluster=4, smem_bytes=256,
    )  # fmt: skip
    rank, lane = np.indices((4, 32))
    np.testing.assert_array_equal(out[..., 0], 100 * ((rank + 3) % 4) + lane)
    np.testing.assert_array_equal(out[..., 1], 7 * ((rank + 3) % 4) + lane)


def test_remote_arrivals(run_seed: Any) -> None:
    """CTA 0 waits for one arrival of every CTA; the others put a value in its shared memory first."""
    out = np.zeros(4, np.uint32)
    run_seed(
        "const u32 tile = dynamic_smem(), bar = tile + 64, rank = cluster_rank();"
        "if (threadIdx.x == 0 && rank == 0) { mbarrier_init(bar, 4); fence_mbarrier_init(); } cluster_sync();"
        "if (threadIdx.x == 0) { const u32 there = map_to_rank(tile + 4 * rank, 0);"
        '  asm volatile("st.shared::cluster.u32 [%0], %1;" :: "r"(there), "r"(rank * rank + 5) : "memory");'
        '  asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" :: "r"(map_to_rank(bar, 0)) : "memory"); }'
        'if (rank == 0) { for (u32 done = 0; !done;) asm volatile("{ .reg .pred p; '
        'mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"'
        '    : "=r"(done) : "r"(bar), "r"(0) : "memory"); if (threadIdx.x < 4) { u32 v; '
        '  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(tile + 4 * threadIdx.x) : "memory"); p.out[threadIdx.x] = v; } }'
        "cluster_sync();",
        {"out": out}, grid=4, cluster=4, smem_bytes=128,
    )  # fmt: skip
    np.testing.assert_array_equal(out, np.arange(4) ** 2 + 5)


STORE_ASYNC = (
    "const u32 tile = dynamic_smem(), bar = tile + 1024, rank = cluster_rank(), lane = threadIdx.x;"
    "if (lane == 0) { mbarrier_init(bar, 1); mbarrier_arrive_expect_tx(bar, 32 * 4 * 4 + 32 * 16); fence_mbarrier_init(); }"
    "cluster_arrive_relaxed(); cluster_wait(); const float v = 1000 * rank + lane;"
    "for (u32 to = 0; to < 4; ++to) { const u32 there = map_to_rank(tile, to), signal = map_to_rank(bar, WHERE);"
    "  st_async_f32(there + 4 * (lane * 4 + (rank + 1) % 4), v, signal);"  # the neighbours are of other CTAs
    "  if (lane / 8 == to) st_async_v4_f32(there + 512 + (rank * 8 + lane % 8) * 16, Float4{v, v + 1, v + 2, v + 3}, signal); }"
    "WAIT for (u32 i = lane; i < 256; i += 32) { float w; "
    'asm volatile("ld.shared.f32 %0, [%1];" : "=f"(w) : "r"(tile + 4 * i) : "memory"); p.out[rank * 256 + i] = w; }'
)


def store_async(wait: str = "mbarrier_wait(bar, 0);", where: str = "to") -> str:
    return STORE_ASYNC.replace("WAIT", wait).replace("WHERE", where)


def test_store_async(run_seed: Any) -> None:
    """Words and vectors of every CTA to every CTA, counted by the mbarrier there."""
    out = np.zeros((4, 256), np.float32)
    run_seed(store_async(), {"out": out}, grid=4, cluster=4, smem_bytes=1032)
    lane, rank = np.indices((32, 4))
    words = 1000 * ((rank + 3) % 4) + lane
    for to in range(4):
        np.testing.assert_array_equal(out[to, :128].reshape(32, 4), words)
        first = 1000 * np.arange(4)[:, None] + to * 8 + np.arange(8)
        np.testing.assert_array_equal(
            out[to, 128:].reshape(4, 8, 4), first[..., None] + np.arange(4), err_msg=f"CTA {to}"
        )


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"wait": ""}, "race|in flight writes|nothing has written|never written|exited while"),
        ({"where": "(to + 1) % 4"}, "must be in one CTA"),
    ],
    ids=["not waited for", "a barrier of another CTA"],
)
def test_store_async_that_goes_wrong(
    runners: Callable[..., Any], wrong: dict[str, str], message: str
) -> None:
    for seed in range(4):
        with pytest.raises(_C.Error, match=message):
            runners("emulator:sm_90a", seed=seed)(
                store_async(**wrong), {"out": np.zeros((4, 256), np.float32)}, grid=4, cluster=4, smem_bytes=1032
            )  # fmt: skip


@pytest.mark.parametrize("cluster", [2, 4])
def test_multicast_load(run: Any, tensor_map: Any, rng: np.random.Generator, cluster: int) -> None:
    """Every CTA loads its slice of rows into all CTAs of the cluster; each must end with the whole tile."""
    x = rng.integers(0, 256, (32, 128), dtype=np.uint8)
    rows = 32 // cluster
    out = np.zeros((cluster, 4096), np.uint8)
    run(
        "const u32 tile = dynamic_smem(), bar = tile + 4096, rank = cluster_rank();"
        "if (threadIdx.x == 0) { mbarrier_init(bar, 1); fence_mbarrier_init(); } cluster_sync();"
        "if (threadIdx.x == 0) { mbarrier_arrive_expect_tx(bar, 4096);"
        '  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster '
        '[%0], [%1, {%3, %4}], [%2], %5;"'
        f'    :: "r"(tile + rank * {rows * 128}), "l"(&p.map), "r"(bar), "r"(0), "r"(rank * {rows}), "h"((u16){(1 << cluster) - 1})'
        '    : "memory"); }'
        "mbarrier_wait(bar, 0); for (u32 i = 4 * threadIdx.x; i < 4096; i += 4 * blockDim.x) { u32 v;"
        ' asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(tile + i)); *(u32*)(p.out + 4096 * rank + i) = v; } cluster_sync();',
        {"map": tensor_map("x", "int8", (128, 32), (128,), (128, rows), 128), "x": x, "out": out},
        grid=cluster, cluster=cluster, block=64, smem_bytes=4112,
    )  # fmt: skip
    offset = np.arange(4096)
    expected = np.zeros(4096, np.uint8)
    expected[offset ^ (offset >> 3 & 0x70)] = x.ravel()
    for rank in range(cluster):
        np.testing.assert_array_equal(out[rank], expected, err_msg=f"CTA {rank}")


def test_named_barriers(run_seed: Any) -> None:
    """Two pairs of warps hand values over through their own barrier, in both directions."""
    out = np.zeros(128, np.uint32)
    run_seed(
        "const u32 tile = dynamic_smem(), pair = threadIdx.x / 64, lane = threadIdx.x % 64, at = tile + 256 * pair; u32 v = lane;"
        "for (u32 round = 0; round < 8; ++round) {"
        '  asm volatile("st.shared.u32 [%0], %1;" :: "r"(at + 4 * lane), "r"(v) : "memory");'
        '  if (pair == 0) asm volatile("bar.sync 1, 64;" ::: "memory"); else asm volatile("bar.sync 2, 64;" ::: "memory");'
        '  u32 w; asm volatile("ld.shared.u32 %0, [%1];" : "=r"(w) : "r"(at + 4 * ((lane + 32) % 64)) : "memory"); v = w + 1;'
        '  if (pair == 0) asm volatile("barrier.sync 1, 64;" ::: "memory"); else asm volatile("barrier.sync 2, 64;" ::: "memory"); }'
        "p.out[threadIdx.x] = v;",
        {"out": out}, block=128, smem_bytes=512,
    )  # fmt: skip
    np.testing.assert_array_equal(out, np.tile(np.arange(64) + 8, 2))


def test_barrier_arrive_and_reduction(run: Any) -> None:
    out = np.zeros(96, np.uint32)
    run(
        "__shared__ u32 cell; if (threadIdx.x < 32) { if (threadIdx.x == 0) cell = 41; asm volatile(\"bar.arrive 3, 64;\" ::: \"memory\"); }"
        'else if (threadIdx.x < 64) { asm volatile("bar.sync 3, 64;" ::: "memory"); if (threadIdx.x == 32) cell += 1; }'
        "const u32 count = __syncthreads_count(threadIdx.x % 3 == 0); const bool any = __syncthreads_or(threadIdx.x == 95);"
        "p.out[threadIdx.x] = cell * 10000 + count * 10 + any;",
        {"out": out}, block=96,
    )  # fmt: skip
    assert (out == 42 * 10000 + 32 * 10 + 1).all()


def test_grid_wide_flag(run: Any) -> None:
    """CTAs wait for each other through global memory: all of them must be resident at once."""
    flags, out = np.zeros(1, np.uint32), np.zeros(8, np.uint32)
    run("__shared__ u32 seen; if (threadIdx.x == 0) { __threadfence(); atomicAdd(p.flags, 1u); u32 v; do { "
        'asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(p.flags) : "memory"); } while (v != gridDim.x); seen = v; }'
        " __syncthreads(); if (threadIdx.x == 1) p.out[blockIdx.x] = seen;", {"flags": flags, "out": out}, grid=8, block=32)  # fmt: skip
    assert (out == 8).all()


def test_same_seed_same_schedule(runners: Callable[..., Any]) -> None:
    """Which CTA draws which ticket depends on the schedule: it repeats for a seed, and differs for some other one."""

    def tickets(seed: int) -> list[int]:
        counter, out = np.zeros(1, np.uint32), np.zeros(128, np.uint32)
        runners("emulator:sm_90a", seed=seed)(
            "__shared__ u32 cell; if (threadIdx.x == 0) cell = 0; __syncthreads(); "
            "if (threadIdx.x % 32 == 0) p.out[blockIdx.x * 8 + threadIdx.x / 32] = atomicAdd(&cell, 1u);",
            {"counter": counter, "out": out}, grid=16, block=256)  # fmt: skip
        return out.tolist()

    assert tickets(5) == tickets(5)
    assert len({tuple(tickets(seed)) for seed in range(4)}) > 1
