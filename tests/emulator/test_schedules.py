"""Schedules: the same seed gives the same run on any number of threads; stuck kernels are reported, not waited for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from deep_gemm import _C
from deep_gemm.testing.device import run_kernel

# Each warp takes a ticket: the order in which warps run becomes data.
TICKETS = """
extern "C" __global__ void f(unsigned* counter, unsigned* order) {
    if (threadIdx.x % 32 == 0) {
        for (int i = 0; i < 4; ++i) {
            const unsigned ticket = atomicAdd(counter, 1);
            order[ticket] = blockIdx.x * blockDim.x / 32 + threadIdx.x / 32;
        }
    }
}"""


def tickets(grid: int = 8, block: int = 128, **options: Any) -> np.ndarray:
    device = _C.Device("emulator:sm_90a", **options)
    order = np.full(grid * block // 32 * 4, 0xFFFFFFFF, np.uint32)
    run_kernel(device, TICKETS, "f", np.zeros(1, np.uint32), order, grid=grid, block=block)
    return order


def test_atomics_count_every_thread() -> None:
    np.testing.assert_array_equal(np.bincount(tickets(seed=2)), 4)


def test_a_seed_is_a_schedule() -> None:
    runs = {seed: tickets(seed=seed) for seed in range(4)}
    for seed, order in runs.items():
        np.testing.assert_array_equal(order, tickets(seed=seed))
        np.testing.assert_array_equal(order, tickets(seed=seed, threads=3))
    assert len({order.tobytes() for order in runs.values()}) == 4


# The order of warps within a block, without communication between blocks.
LOCAL_ORDER = """
extern "C" __global__ void f(unsigned* order) {
    __shared__ unsigned next;
    if (threadIdx.x == 0) next = 0;
    __syncthreads();
    for (int i = 0; i < 3; ++i) {
        if (threadIdx.x % 32 == 0) {
            unsigned ticket;
            asm volatile("atom.shared.add.u32 %0, [%1], 1;" : "=r"(ticket)
                         : "r"((unsigned)__cvta_generic_to_shared(&next)) : "memory");
            order[blockIdx.x * 12 + ticket] = threadIdx.x / 32;
        }
    }
}"""


def test_threads_do_not_change_a_schedule() -> None:
    runs = []
    for threads in (1, 2, 5):
        order = np.zeros(16 * 12, np.uint32)
        run_kernel(
            _C.Device("emulator:sm_90a", seed=7, threads=threads), LOCAL_ORDER, "f", order, grid=16, block=128
        )
        runs.append(order)
    np.testing.assert_array_equal(runs[0], runs[1])
    np.testing.assert_array_equal(runs[0], runs[2])
    assert len({block.tobytes() for block in runs[0].reshape(16, 12)}) > 1, "blocks should differ in schedule"


GRID_BARRIER = """
extern "C" __global__ void f(unsigned* arrived, unsigned* values, unsigned* sums) {
    values[blockIdx.x] = blockIdx.x + 1;
    __threadfence();
    atomicAdd(arrived, 1);
    while (*(volatile unsigned*)arrived != gridDim.x) {}
    unsigned sum = 0;
    for (unsigned i = 0; i < gridDim.x; ++i) sum += ((volatile unsigned*)values)[i];
    sums[blockIdx.x] = sum;
}"""


@pytest.mark.parametrize("seed", range(4))
def test_blocks_may_wait_for_each_other(seed: int) -> None:
    sums = np.zeros(24, np.uint32)
    device = _C.Device("emulator:sm_90a", seed=seed)
    run_kernel(
        device, GRID_BARRIER, "f", np.zeros(1, np.uint32), np.zeros(24, np.uint32), sums, grid=24, block=1
    )
    np.testing.assert_array_equal(sums, 24 * 25 // 2)


def test_blocks_that_do_not_fit_the_device_deadlock_as_they_would() -> None:
    device = _C.Device("emulator:sm_90a", sms=1, steps=200_000)
    with pytest.raises(_C.Error, match="livelock"):
        run_kernel(device, GRID_BARRIER, "f", np.zeros(1, np.uint32), np.zeros(64, np.uint32), np.zeros(64, np.uint32),
                   grid=64, block=1)  # fmt: skip


def test_livelock_is_reported() -> None:
    source = 'extern "C" __global__ void f(volatile int* y) { while (y[0] == 0) {} }'
    device = _C.Device("emulator:sm_90a", steps=100_000)
    with pytest.raises(_C.Error, match=r"kernel f: livelock \(seed 0, .* without a store, arrival or exit"):
        run_kernel(device, source, "f", np.zeros(4, np.int32))


DEADLOCKS = {
    "mbarrier": (
        """__shared__ unsigned long long bar; const unsigned a = (unsigned)__cvta_generic_to_shared(&bar);
           if (threadIdx.x == 0) asm volatile("mbarrier.init.shared::cta.b64 [%0], 3;" :: "r"(a) : "memory");
           __syncthreads();
           if (threadIdx.x == 0) asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" :: "r"(a) : "memory");
           asm volatile("{.reg .pred p; W: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], 0; @!p bra W;}" :: "r"(a) : "memory");""",
        r"CTA \(0,0,0\) warp 1 waits for parity 0 of the mbarrier at shared offset 1024 "
        r"\(phase 0, 2 of 3 arrivals pending, 0 bytes outstanding\) at PTX line \d+: .*try_wait",
    ),
    "named barrier": (
        """if (threadIdx.x < 32) asm volatile("bar.sync 3, 64;" ::: "memory");""",
        r"warp 0 waits at barrier 3: 32 of 64 threads arrived at PTX line",
    ),
    "divergent syncwarp": (
        """if (threadIdx.x % 32 < 16) __syncwarp(); else asm volatile("bar.warp.sync 0xffffffff;" ::: "memory");
           y[threadIdx.x] = 1;""",
        r"waits for lanes 0x\w+ of its warp to arrive at this instruction",
    ),
    "setmaxnreg": (
        """asm volatile("setmaxnreg.dec.sync.aligned.u32 160;"); asm volatile("setmaxnreg.inc.sync.aligned.u32 200;");""",
        r"waits for 200 registers per thread; the pool has \d+ registers left",
    ),
}


@pytest.mark.parametrize("name", DEADLOCKS)
@pytest.mark.parametrize("seed", [0, 1])
def test_deadlock_says_who_waits_for_what(name: str, seed: int) -> None:
    body, message = DEADLOCKS[name]
    source = f'extern "C" __global__ void f(int* y) {{ {body} }}'
    device = _C.Device("emulator:sm_90a", seed=seed)
    block = 384 if name == "setmaxnreg" else 64
    with pytest.raises(_C.Error, match=rf"kernel f: deadlock \(seed {seed}, cluster 0\)[\s\S]*{message}"):
        run_kernel(device, source, "f", np.zeros(256, np.int32), block=block)


@pytest.mark.parametrize("latency", ["eager", "random", "lazy"])
def test_latency_does_not_change_a_correct_kernel(latency: str) -> None:
    source = """
    extern "C" __global__ void f(const int* x, int* y) {
        __shared__ int s[64];
        const unsigned a = (unsigned)__cvta_generic_to_shared(&s[threadIdx.x]);
        asm volatile("cp.async.ca.shared.global [%0], [%1], 4; cp.async.commit_group;" :: "r"(a), "l"(x + threadIdx.x) : "memory");
        asm volatile("cp.async.wait_group 0;" ::: "memory");
        __syncthreads();
        y[threadIdx.x] = s[63 - threadIdx.x];
    }"""
    x = np.arange(64, dtype=np.int32)
    y = np.zeros_like(x)
    run_kernel(_C.Device("emulator:sm_90a", latency=latency), source, "f", x, y, block=64)
    np.testing.assert_array_equal(y, x[::-1])


# Two copies at a time, then some work: which of them have landed?
LANDINGS = """
extern "C" __global__ void f(const int* x, unsigned* landed, int work) {
    __shared__ alignas(16) int data[8];
    __shared__ alignas(8) unsigned long long bars[2];
    const unsigned d = (unsigned)__cvta_generic_to_shared(data), b = (unsigned)__cvta_generic_to_shared(bars);
    asm volatile("mbarrier.init.shared.b64 [%0], 1; mbarrier.init.shared.b64 [%0 + 8], 1;"
                 "fence.mbarrier_init.release.cluster;" :: "r"(b) : "memory");
    for (unsigned i = 0; i < 256; ++i) {
        for (unsigned c = 0; c < 2; ++c)
            asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], 16;"
                         "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%1], [%2], 16, [%0];"
                         :: "r"(b + 8 * c), "r"(d + 16 * c), "l"(x) : "memory");
#pragma unroll 1
        for (int j = 0; j < work; ++j) asm volatile("");
        // The second first: a test that fails lets time pass.
        unsigned seen = 0, done;
        for (int c = 1; c >= 0; --c) {
            asm volatile("{.reg .pred p; mbarrier.test_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p;}"
                         : "=r"(done) : "r"(b + 8 * c), "r"(i & 1) : "memory");
            seen |= done << c;
            if (!done) break;
        }
        landed[i] = seen;
        for (unsigned c = 0; c < 2; ++c)
            asm volatile("{.reg .pred p; again: mbarrier.try_wait.parity.shared.b64 p, [%0], %1; @!p bra again;}"
                         :: "r"(b + 8 * c), "r"(i & 1) : "memory");
    }
}"""


def landed(latency: str, work: int, seed: int = 0) -> np.ndarray:
    x, seen = np.zeros(4, np.int32), np.zeros(256, np.uint32)
    device = _C.Device("emulator:sm_90a", latency=latency, seed=seed)
    run_kernel(device, LANDINGS, "f", x, seen, np.int32(work), block=1)
    return seen


@pytest.mark.parametrize("seed", [0, 1])
def test_copies_land_early_late_and_out_of_order(seed: int) -> None:
    """Delays are log-uniform: some are over at once, some last a thousand instructions, and neighbours overtake."""
    soon, later = (landed("random", work, seed) for work in (4, 1000))
    assert 0.05 < np.mean(soon >= 2) < np.mean(later >= 2) < 0.95
    assert np.mean(landed("random", 32, seed) == 2) > 0.05, "never the second before the first"
    assert (landed("lazy", 1000, seed) == 0).all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("emulator:sm_70", "got arch 'sm_70', expected one of sm_80, sm_89, sm_90a, sm_100a"),
        ("emulator:sm_90a,speed=2", "got 'speed', expected one of seed, threads"),
        ("emulator:sm_90a,seed=x", "option seed: got 'x', expected a number"),
        ("emulator:sm_90a,latency=slow", "got 'slow', expected eager, random or lazy"),
        ("emulator:sm_90a,seed", "got 'seed', expected name=value"),
        ("emulator:sm_90a,inputs=no", "option inputs: got 'no', expected on or off"),
    ],
)
def test_device_names_are_checked(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _C.Device(text)
