"""The happens-before check of shared memory: two accesses that nothing orders are reported under every schedule, with
both places and what is missing; accesses that something orders are not, whatever orders them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import numpy as np
import pytest
from emulator.gemm_launch import BF16_SWAPPED, FP8_DENSE, FP8_SWAPPED, FP8_UNEVEN, Gemm
from emulator.injection import SEEDS, Bug, flatten

from deep_gemm import _C
from deep_gemm.testing.device import readonly, run_kernel

PRELUDE = r"""
extern __shared__ int s[];
#define ADDRESS(i) ((unsigned)__cvta_generic_to_shared(s + (i)))
#define INIT(i, n) asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" :: "r"(ADDRESS(i)), "r"(n) : "memory")
#define ARRIVE(i) asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" :: "r"(ADDRESS(i)) : "memory")
#define WAIT(i, phase) asm volatile("{.reg .pred p; L: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1; @!p bra L;}" \
    :: "r"(ADDRESS(i)), "r"(phase) : "memory")
#define COPY(i, from, bar) asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], 64, [%2];" \
    :: "r"(ADDRESS(i)), "l"(from), "r"(ADDRESS(bar)) : "memory")
#define EXPECT(i, n) asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" :: "r"(ADDRESS(i)), "r"(n) : "memory")
#define FENCE_INIT asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory")
"""
T, WARP = "const int t = threadIdx.x, warp = t / 32, lane = t % 32;", "__syncwarp();"


@dataclass(frozen=True)
class Case:
    name: str
    body: str  # of a kernel with `const int* x` (16 values) and `int* y` (32 values); lane, warp and t are there
    message: str = ""  # regular expression of the race; none: ordered
    block: int = 64


RACES = [
    Case("lanes of a warp", "s[lane] = lane; y[lane] = s[lane ^ 1];",
         r"lane 0, PTX line \d+: ld\.shared.*race: read at shared offset 1028 of CTA rank 0 is not ordered after the write by warp "
         r"0 of CTA rank 0, lanes 0x00000002, PTX line \d+: st\.shared.*no bar\.warp\.sync lies between", 32),
    Case("a shuffle orders nothing", "s[lane] = lane; int v = __shfl_sync(~0u, lane, 0); y[lane] = s[lane ^ 1] + v;",
         r"no bar\.warp\.sync lies between", 32),
    Case("a vote orders nothing", "s[lane] = lane; int v = __any_sync(~0u, lane == x[0]); y[lane] = s[lane ^ 1] + v;",
         r"no bar\.warp\.sync lies between", 32),
    Case("half a warp meets", "s[lane] = lane; if (lane < 16) __syncwarp(0xffff); y[lane] = s[lane ^ 16];",
         r"no bar\.warp\.sync lies between", 32),
    Case("write after read", "s[t] = t; __syncthreads(); y[t % 32] = s[t ^ 32]; s[t] = 0;",
         r"race: (write|read) .* not ordered after the (read|write) by warp . .*: no barrier or mbarrier orders the two"),
    Case("write after write", "s[lane] = warp;", r"race: write .* not ordered after the write by warp"),
    Case("another barrier", "if (warp == 0) s[lane] = 1; asm volatile(\"bar.sync %0, 32;\" :: \"r\"(1 + warp) : \"memory\");"
         " if (warp == 1) y[lane] = s[lane];", r"race: read|nothing has written"),
    Case("bar.arrive does not acquire", 'if (warp == 0) { asm volatile("bar.sync 1, 64;" ::: "memory"); s[lane] = 1; }'
         ' else { asm volatile("bar.arrive 1, 64;" ::: "memory"); s[lane] = 2; }', r"race: write"),
    Case("atomic against plain", "if (t == 0) s[0] = 0; __syncthreads(); if (warp == 0) atomicExch(s, 1); else s[0] = 2;", r"race: (write|read) .* after the (write|read)"),
    Case("arrival of lane 0 for its warp",
         "if (t == 0) INIT(64, 1); __syncthreads(); if (warp == 0) { s[lane] = 1; if (lane == 0) ARRIVE(64); }"
         " else { WAIT(64, 0); y[lane] = s[lane]; }",
         r"warp 0 arrived for its lanes 0x00000001 only: a bar\.warp\.sync before the arrival"),
    Case("mbarrier used before its initialisation is told", "if (t == 0) INIT(64, 1); if (t == 0) ARRIVE(64); if (warp == 1) WAIT(64, 0);",
         r"use of an mbarrier at shared offset 1280 .* is not ordered after the write by warp 0|holds no initialised mbarrier"),
    Case("copy not waited for",
         "if (t == 0) { INIT(64, 1); FENCE_INIT; EXPECT(64, 64); COPY(0, x, 64); } __syncthreads();"
         " if (warp == 0) WAIT(64, 0); else { for (int i = 0; i < 20000; ++i) __nanosleep(1); y[lane] = s[lane % 16]; }",
         r"(race: read .* by an asynchronous copy, .*: this thread has not waited for the copy's mbarrier|copy in flight writes)"),
    Case("copy over what is being read",
         "if (t == 0) { INIT(64, 1); FENCE_INIT; } if (t < 16) s[t] = 1; __syncthreads(); y[lane] = s[lane % 16];"
         " if (t == 0) { EXPECT(64, 64); COPY(0, x, 64); } if (warp == 0) WAIT(64, 0);",
         r"race: asynchronous write .* not ordered after the read by warp|in flight writes"),
    Case("staging reused while a bulk store may read it",
         's[lane] = 1; asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); __syncwarp(); if (lane == 0) asm volatile('
         '"cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], 64; cp.async.bulk.commit_group; cp.async.bulk.wait_group.read 0;"'
         ' :: "l"(y), "r"(ADDRESS(0)) : "memory"); s[lane] = 2;',
         r"race: write .* not ordered after the read by a bulk store of warp 0 .*wait_group\.read|may still read", 32),
    Case("cp.async of another warp",
         'if (warp == 0) { asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" :: "r"(ADDRESS(lane)), "l"(x + lane % 16) : "memory");'
         ' asm volatile("cp.async.wait_all;" ::: "memory"); } else { for (int i = 0; i < 20000; ++i) __nanosleep(1); y[lane] = s[lane]; }',
         r"race: read .* not ordered after the cp\.async of warp 0|nothing has written|in flight writes"),
]  # fmt: skip

ORDERED = [
    Case("bar.warp.sync", "s[lane] = lane; __syncwarp(); y[lane] = s[lane ^ 1]; __syncwarp(); s[lane] = 0;", block=32),
    Case("half a warp meets", "if (lane < 16) { s[lane] = lane; __syncwarp(0xffff); y[lane] = s[lane ^ 1]; }", block=32),
    Case("bar.sync", "s[t] = t; __syncthreads(); y[lane] = s[t ^ 32]; __syncthreads(); s[t ^ 32] = 0;"),
    Case("arrive and sync", 'if (warp == 0) { s[lane] = 1; asm volatile("bar.arrive 1, 64;" ::: "memory"); }'
         ' else { asm volatile("bar.sync 1, 64;" ::: "memory"); y[lane] = s[lane]; }'),
    Case("a lane's own bytes next to those of others", "((char*)s)[t] = t; y[lane] = ((char*)s)[t]; ((char*)s)[t] = 0;"),
    Case("lanes that store the same", "s[0] = 1; __syncwarp(); y[lane] = s[0];", block=32),
    Case("atomics", "if (t == 0) s[0] = 0; __syncthreads(); atomicAdd(s, 1); __syncthreads(); y[lane] = s[0];"),
    Case("a flag", "volatile int* flag = s + 64; if (t == 0) s[64] = 0; __syncthreads();"
         " if (t == 0) { s[0] = 5; *flag = 1; } if (warp == 1) { while (*flag == 0) {} y[lane] = s[0]; }"),
    Case("mbarrier after bar.warp.sync",
         "if (t == 0) INIT(64, 1); __syncthreads(); if (warp == 0) { s[lane] = 1; __syncwarp(); if (lane == 0) ARRIVE(64); }"
         " else { WAIT(64, 0); y[lane] = s[lane]; }"),
    Case("every lane arrives",
         "if (t == 0) INIT(64, 32); __syncthreads(); if (warp == 0) { s[lane] = 1; ARRIVE(64); } else { WAIT(64, 0); y[lane] = s[lane]; }"),
    Case("one lane waits, then its warp meets",
         "if (t == 0) INIT(64, 32); __syncthreads(); if (warp == 0) { s[lane] = 1; ARRIVE(64); }"
         " else { if (lane == 7) WAIT(64, 0); __syncwarp(); y[lane] = s[lane]; }"),
    Case("copies through a ring of one",
         "if (t == 0) { INIT(64, 1); INIT(66, 1); FENCE_INIT; } __syncthreads();"
         " for (int i = 0; i < 4; ++i) { if (warp == 0) { if (lane == 0) { WAIT(66, (i & 1) ^ 1); EXPECT(64, 64); COPY(0, x, 64); } }"
         " else { WAIT(64, i & 1); y[lane] = s[lane % 16]; __syncwarp(); if (lane == 0) ARRIVE(66); } __syncwarp(); }"),
    Case("staging reused after the store has read it",
         'for (int i = 0; i < 3; ++i) { if (lane == 0) asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory"); __syncwarp();'
         ' s[lane] = i; asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); __syncwarp(); if (lane == 0) asm volatile('
         '"cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], 64; cp.async.bulk.commit_group;" :: "l"(y), "r"(ADDRESS(0)) : "memory"); }'
         ' if (lane == 0) asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");', block=32),
    Case("cp.async and a barrier",
         'if (warp == 0) { asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" :: "r"(ADDRESS(lane)), "l"(x + lane % 16) : "memory");'
         ' asm volatile("cp.async.wait_all;" ::: "memory"); } __syncthreads(); y[lane] = s[lane];'),
    Case("cp.async and its mbarrier",
         'if (t == 0) INIT(64, 32); __syncthreads(); if (warp == 0) {'
         ' asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" :: "r"(ADDRESS(lane)), "l"(x + lane % 16) : "memory");'
         ' asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" :: "r"(ADDRESS(64)) : "memory"); }'
         ' else { WAIT(64, 0); y[lane] = s[lane]; } asm volatile("cp.async.wait_all;" ::: "memory");'),
]  # fmt: skip


def run(case: Case, seed: int, races: str = "on") -> None:
    source = f'{PRELUDE} extern "C" __global__ void f(const int* x, int* y) {{ {T} {case.body} }}'
    device = _C.Device("emulator:sm_90a", seed=seed, races=races)
    x, y = readonly(np.arange(16, dtype=np.int32)), np.zeros(32, np.int32)
    run_kernel(device, source, "f", x, y, block=case.block, smem_bytes=512)


@pytest.mark.parametrize("case", RACES, ids=lambda case: case.name)
def test_race(case: Case) -> None:
    for seed in range(4):
        with pytest.raises(_C.Error, match=case.message):
            run(case, seed)


@pytest.mark.parametrize("case", ORDERED, ids=lambda case: case.name)
def test_ordered(case: Case) -> None:
    for seed in range(4):
        run(case, seed)


def test_a_block_knows_nothing_of_the_block_before() -> None:
    """One thread runs both blocks with the same clocks. In the first, warp 1 hears eight times from lane 0 of warp 0 alone;
    in the second once, of what a barrier told it before, and not of the write that follows.
    """
    body = """
    if (t == 0) { for (int i = 0; i < 8; ++i) INIT(64 + 2 * i, 1); s[0] = 0; }
    __syncthreads();
    if (blockIdx.x == 0) {
        for (int i = 0; i < 8; ++i) { if (t == 0) ARRIVE(64 + 2 * i); if (warp == 1) WAIT(64 + 2 * i, 0); }
        return;
    }
    if (t == 0) ARRIVE(64);
    __syncthreads();
    if (warp == 1) WAIT(64, 0);
    if (t == 0) s[0] = 1;
    if (warp == 1) { for (int i = 0; i < 2000; ++i) __nanosleep(1); y[lane] = s[0]; }
    """
    source = f'{PRELUDE} extern "C" __global__ void f(int* y) {{ {T} {body} }}'
    for seed in range(4):
        device = _C.Device("emulator:sm_90a", seed=seed, threads=1)
        with pytest.raises(
            _C.Error, match=r"CTA \(1,0,0\).*race: read .* not ordered after the write by warp 0"
        ):
            run_kernel(device, source, "f", np.zeros(32, np.int32), grid=2, block=64, smem_bytes=512)


def test_the_check_can_be_switched_off() -> None:
    run(RACES[0], 0, races="off")
    with pytest.raises(ValueError, match="expected on or off"):
        _C.Device("emulator:sm_90a", races="maybe")


# ---- Orders that a shipped kernel needs but that no schedule of the emulator shows to be missing

# Two blocks of one step along K: nothing else orders the second block's partial sums after the first one's readers.
BF16_BRIEF = replace(BF16_SWAPPED, name="bf16 swapped brief", m=64, k=128)
KERNEL_RACES = [
    (BF16_BRIEF,
     Bug("partial sums staged while the last block's are read", "        if constexpr (S.split_k == 1)\n            sync_math();\n        else if",
         "        if constexpr (S.split_k > 1)\n            if"),
     r"st\.shared.*race: write .* after the read by warp .* ld\.shared.*no barrier or mbarrier orders the two"),
    (FP8_DENSE,
     Bug("lane 0 tells of scales that others store",
         "                ptx::sync_warp();\n                if (ptx::lane_index() == 0) ptx::mbarrier_arrive(smem.full",
         "                if (ptx::lane_index() == 0) ptx::mbarrier_arrive(smem.full"),
     r"race: read .* after the write by warp [567] .*(arrived for its lanes 0x00000001 only|no barrier or mbarrier orders the two)"),
    (FP8_DENSE,
     Bug("lane 0 gives back a stage that others read", "    ptx::sync_warp();\n    if constexpr (!multicasts(S)) {",
         "    if constexpr (!multicasts(S)) {"),
     r"race: write .* after the read by warp [0123] .* arrived for its lanes 0x00000001 only"),
    (FP8_SWAPPED,
     Bug("lane 0 gives back a stage that others read, swapped", "    ptx::sync_warp();\n    if (ptx::lane_index() == 0) ptx::mbarrier_arrive(smem.empty",
         "    if (ptx::lane_index() == 0) ptx::mbarrier_arrive(smem.empty"),
     r"race: write .* after the read by warp .* arrived for its lanes 0x00000001 only"),
    (FP8_SWAPPED,
     Bug("partial sums sent while others still stage", "            sync_math();\n            if (round_ == 0) ptx::cluster_wait();",
         "            if (round_ == 0) ptx::cluster_wait();"),
     r"cp\.async\.bulk\.shared::cluster.*asynchronous read .* which nothing has written"),
    (FP8_UNEVEN,
     Bug("lanes 0 and 1 tell of what others read", "            ptx::sync_warp();\n            const u32 lane = ptx::lane_index();\n            if (lane < S.split_k)",
         "            const u32 lane = ptx::lane_index();\n            if (lane < S.split_k)"),
     r"race: write .* after the read by warp .* a bar\.warp\.sync before the arrival would cover the others"),
    (FP8_UNEVEN,
     Bug("partial sums staged before the last ones are read", "else if (round_ > 0)\n            ptx::mbarrier_wait(smem_.partial_empty(), (round_ - 1) & 1);", ""),
     r"st\.shared.*(race: write .* not ordered after the read|which an asynchronous copy or wgmma may still read)"),
]  # fmt: skip


def test_brief_kernel_is_clean() -> None:
    outcomes = BF16_BRIEF.launch().outcomes(flatten(BF16_BRIEF.source()))
    assert set(outcomes.values()) == {"clean"}, outcomes


@pytest.mark.parametrize(
    ("gemm", "bug", "message"), KERNEL_RACES, ids=lambda value: getattr(value, "name", "")
)
def test_kernel_race(gemm: Gemm, bug: Bug, message: str) -> None:
    outcomes = gemm.launch().outcomes(bug.inject(flatten(gemm.source())))
    assert len(outcomes) == len(SEEDS)
    for seed, outcome in outcomes.items():
        assert re.search(message, outcome), f"seed {seed}: {outcome}"


def test_lanes_that_did_not_arrive_are_named() -> None:
    """Where lanes stored before lane 0 told of it, as most schedules have it, the report says which lanes it spoke for."""
    gemm, bug, _ = next(entry for entry in KERNEL_RACES if "tells of scales" in entry[1].name)
    outcomes = gemm.launch().outcomes(bug.inject(flatten(gemm.source())))
    named = [seed for seed, text in outcomes.items() if "arrived for its lanes 0x00000001 only" in text]
    assert len(named) >= 6, outcomes
