"""Threads and memory that a launch leaves for the next: after a fork, from several threads, after a fault."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from deep_gemm import _C
from deep_gemm.testing.device import run_kernel

# Blocks of one launch differ; what was in shared memory or in a register before shows.
SUM = r"""
extern "C" __global__ void f(const int* x, int* y) {
    __shared__ int part[64];
    part[threadIdx.x] = x[blockIdx.x * 64 + threadIdx.x];
    __syncthreads();
    int sum = 0;
    for (int i = 0; i < 64; ++i) sum += part[i];
    y[blockIdx.x * 64 + threadIdx.x] = sum + threadIdx.x;
}
"""
UNWRITTEN = r"""
extern "C" __global__ void f(int* y) {
    __shared__ int part[64];
    if (y == nullptr) part[threadIdx.x] = 1;
    y[threadIdx.x] = part[threadIdx.x];
}
"""
BLOCKS = 24


def launch(threads: int, scale: int = 1) -> None:
    device = _C.Device("emulator:sm_90a", threads=threads)
    x = np.arange(BLOCKS * 64, dtype=np.int32) * scale
    y = np.zeros_like(x)
    run_kernel(device, SUM, "f", x, y, grid=BLOCKS, block=64)
    expected = x.reshape(BLOCKS, 64).sum(1, keepdims=True) + np.arange(64)
    np.testing.assert_array_equal(y.reshape(BLOCKS, 64), expected)


def test_a_child_has_threads_of_its_own() -> None:
    launch(threads=4)
    process = os.fork()
    if process == 0:
        try:
            launch(threads=4)
            launch(threads=2)
            os._exit(0)
        except BaseException:
            os._exit(1)
    assert os.waitpid(process, 0)[1] == 0
    launch(threads=4)


def test_launches_of_several_threads_share_helpers() -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: launch(threads=1 + i % 3, scale=i), range(24)))


@pytest.mark.parametrize("threads", [1, 3])
def test_shared_memory_of_an_earlier_launch_is_not_seen(threads: int) -> None:
    for _ in range(2):
        launch(threads)
        device = _C.Device("emulator:sm_90a", threads=threads)
        with pytest.raises(_C.Error, match="which nothing has written"):
            run_kernel(device, UNWRITTEN, "f", np.zeros(64, np.int32), grid=1, block=64)
    launch(threads)
