"""Divergence, loops and device functions: what the lanes of a warp do when they part and meet again."""

from __future__ import annotations

import numpy as np
import pytest

from deep_gemm import _C
from deep_gemm.testing.device import readonly, run_kernel, run_ptx


@pytest.fixture(params=[0, 1, 2, 3])
def emulator(request: pytest.FixtureRequest) -> _C.Device:
    return _C.Device("emulator:sm_90a", seed=request.param)


def test_lanes_of_a_branch_meet_again(emulator: _C.Device) -> None:
    source = """
    extern "C" __global__ void f(const int* x, int* y) {
        int v = x[threadIdx.x];
        if (v % 3 == 0) v = v * 2 + 1;
        else if (v % 3 == 1) { v -= 100; if (v & 4) v = -v; }
        y[threadIdx.x] = v * 64 + __popc(__ballot_sync(~0u, v > 0));
    }"""
    x = np.arange(64, dtype=np.int32)
    y = np.zeros_like(x)
    run_kernel(emulator, source, "f", readonly(x), y, block=64)
    low = np.where((x - 100) & 4, 100 - x, x - 100)
    v = np.where(x % 3 == 0, 2 * x + 1, np.where(x % 3 == 1, low, x))
    votes = np.repeat((v.reshape(2, 32) > 0).sum(axis=1), 32)
    np.testing.assert_array_equal(y, v * 64 + votes)


def test_trip_counts_differ_by_lane(emulator: _C.Device) -> None:
    source = """
    extern "C" __global__ void f(const unsigned* x, unsigned* steps) {
        unsigned v = x[threadIdx.x], n = 0;
        while (v != 1) { v = v & 1 ? 3 * v + 1 : v / 2; ++n; }
        steps[threadIdx.x] = n;
    }"""
    x = np.arange(1, 97, dtype=np.uint32)
    steps = np.zeros_like(x)
    run_kernel(emulator, source, "f", readonly(x), steps, block=96)

    def collatz(v: int) -> int:
        n = 0
        while v != 1:
            v = 3 * v + 1 if v & 1 else v // 2
            n += 1
        return n

    np.testing.assert_array_equal(steps, [collatz(int(v)) for v in x])


def test_exited_lanes_do_not_vote(emulator: _C.Device) -> None:
    source = """
    extern "C" __global__ void f(unsigned* y) {
        if (threadIdx.x % 4 == 3) return;
        y[threadIdx.x] = __activemask();
    }"""
    y = np.zeros(32, np.uint32)
    run_kernel(emulator, source, "f", y)
    np.testing.assert_array_equal(y, np.where(np.arange(32) % 4 == 3, 0, 0x77777777))


def test_lane_waits_for_a_lane_of_its_own_warp(emulator: _C.Device) -> None:
    """Independent thread scheduling: the spinning group has the lower pc and must still let the other one run."""
    source = """
    extern "C" __global__ void f(int* y) {
        __shared__ volatile int flag;
        if (threadIdx.x == 0) flag = 0;
        __syncwarp();
        if (threadIdx.x != 7) { while (flag == 0) {} }
        else flag = 42;
        y[threadIdx.x] = flag;
    }"""
    y = np.zeros(32, np.int32)
    run_kernel(emulator, source, "f", y)
    np.testing.assert_array_equal(y, 42)


def test_warps_hand_over_through_shared_memory(emulator: _C.Device) -> None:
    source = """
    extern "C" __global__ void f(int* y) {
        __shared__ int value;
        __shared__ volatile int turn;
        if (threadIdx.x == 0) { value = 1; turn = 0; }
        __syncthreads();
        const int warp = threadIdx.x / 32;
        if (threadIdx.x % 32 == 0) {
            while (turn != warp) {}
            value = value * 3 + warp;
            turn = warp + 1;
        }
        __syncthreads();
        y[threadIdx.x] = value;
    }"""
    y = np.zeros(128, np.int32)
    run_kernel(emulator, source, "f", y, block=128)
    np.testing.assert_array_equal(y, (((1 * 3 + 0) * 3 + 1) * 3 + 2) * 3 + 3)


def test_device_functions_are_called_from_several_places(emulator: _C.Device) -> None:
    source = """
    struct Pair { int a; long long b; };
    __device__ __noinline__ int inner(int v) { return v * v + 1; }
    __device__ __noinline__ Pair outer(int v, int w) { return {inner(v) - w, inner(w) * 2ll}; }
    extern "C" __global__ void f(const int* x, long long* y) {
        const int v = x[threadIdx.x];
        Pair p = v & 1 ? outer(v, 3) : outer(v + 1, v);
        y[threadIdx.x] = p.a * 1000ll + p.b + inner(7);
    }"""
    x = np.arange(32, dtype=np.int32)
    y = np.zeros(32, np.int64)
    run_kernel(emulator, source, "f", readonly(x), y)
    v, w = np.where(x & 1, x, x + 1).astype(np.int64), np.where(x & 1, 3, x).astype(np.int64)
    np.testing.assert_array_equal(y, (v * v + 1 - w) * 1000 + (w * w + 1) * 2 + 50)


def test_branch_tables(emulator: _C.Device) -> None:
    ptx = """
    .version 8.0
    .target sm_90a
    .address_size 64
    .visible .entry f(.param .u64 y) {
        .reg .b64 %rd<2>;
        .reg .b32 %r<4>;
        ld.param.u64 %rd0, [y];
        mov.u32 %r1, %tid.x;
        rem.u32 %r2, %r1, 3;
    TABLE: .branchtargets A, B, C;
        brx.idx %r2, TABLE;
    A:  mov.u32 %r0, 7;
        bra END;
    B:  mov.u32 %r0, %r1;
        bra END;
    C:  mul.lo.u32 %r0, %r1, %r1;
    END:
        mad.wide.u32 %rd0, %r1, 4, %rd0;
        st.global.u32 [%rd0], %r0;
        ret;
    }"""
    y = np.zeros(32, np.uint32)
    run_ptx(emulator, ptx, "f", y)
    t = np.arange(32)
    np.testing.assert_array_equal(y, np.choose(t % 3, [7, t, t * t]))


def test_local_arrays(emulator: _C.Device) -> None:
    source = """
    extern "C" __global__ void f(const int* x, int* y) {
        int table[16];
        for (int i = 0; i < 16; ++i) table[(i * 5 + threadIdx.x) % 16] = x[i];
        y[threadIdx.x] = table[x[threadIdx.x % 16] & 15];
    }"""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 1000, 16, dtype=np.int32)
    y = np.zeros(32, np.int32)
    run_kernel(emulator, source, "f", readonly(x), y)
    expected = []
    for t in range(32):
        table = np.zeros(16, np.int32)
        table[(np.arange(16) * 5 + t) % 16] = x
        expected.append(table[x[t % 16] & 15])
    np.testing.assert_array_equal(y, expected)


def test_constant_tables_and_module_variables(emulator: _C.Device) -> None:
    source = """
    __constant__ const int table[4] = {11, 22, 33, 44};
    __device__ int bias = 5;
    __device__ const int* pointer = table;
    extern "C" __global__ void f(int* y) { y[threadIdx.x] = pointer[threadIdx.x % 4] + bias; }"""
    y = np.zeros(32, np.int32)
    run_kernel(emulator, source, "f", y)
    np.testing.assert_array_equal(y, np.tile([16, 27, 38, 49], 8))


def test_scopes_of_inline_assembly_may_repeat_names(emulator: _C.Device) -> None:
    ptx = """
    .version 8.0
    .target sm_90a
    .address_size 64
    .visible .entry f(.param .u64 y) {
        .reg .b64 %rd<2>;
        .reg .b32 %r<3>;
        ld.param.u64 %rd0, [y];
        mov.u32 %r0, 0;
        mov.u32 %r1, %tid.x;
        { .reg .pred p; setp.lt.u32 p, %r1, 8; @p bra SKIP; add.u32 %r0, %r0, 1; SKIP: add.u32 %r0, %r0, 10; }
        { .reg .pred p; setp.lt.u32 p, %r1, 16; @!p bra SKIP; add.u32 %r0, %r0, 100; SKIP: add.u32 %r0, %r0, 1000; }
        mad.wide.u32 %rd0, %r1, 4, %rd0;
        st.global.u32 [%rd0], %r0;
        ret;
    }"""
    y = np.zeros(32, np.uint32)
    run_ptx(emulator, ptx, "f", y)
    t = np.arange(32)
    np.testing.assert_array_equal(y, 1010 + (t >= 8) + 100 * (t < 16))
