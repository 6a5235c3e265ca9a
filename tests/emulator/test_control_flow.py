"""Divergence, loops, device functions: what lanes of a warp do when they part and meet again."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from deep_gemm import _C
from deep_gemm.testing.device import readonly, run_kernel

SEEDS = [0, 1, 2, 3]


@pytest.fixture(params=SEEDS)
def device(request: pytest.FixtureRequest) -> Iterator[_C.Device]:
    yield _C.Device("emulator:sm_90a", seed=request.param)


def test_lanes_of_a_branch_meet_again(device: _C.Device) -> None:
    source = """
    extern "C" __global__ void f(const int* x, int* y) {
        const int t = threadIdx.x;
        int v = x[t];
        if (v % 3 == 0) { for (int i = 0; i < v; ++i) v += i ^ v; }
        else if (v % 3 == 1) v = -v;
        else while (v & 7) v = v * 5 + 3;
        y[t] = v + __popc(__ballot_sync(~0u, v > 0));
    }"""
    x = np.arange(64, dtype=np.int32)
    y = np.zeros(64, np.int32)
    run_kernel(device, source, "f", readonly(x), y, block=64)

    def one(v: int) -> int:
        if v % 3 == 0:
            for i in range(v):
                v = int(np.int32((v + (i ^ v)) & 0xFFFFFFFF if v + (i ^ v) < 2**31 else (v + (i ^ v)) - 2**32))
                if i >= v:
                    break
            return v
        if v % 3 == 1:
            return -v
        while v & 7:
            v = (v * 5 + 3 + 2**31) % 2**32 - 2**31
        return v

    values = []
    for start in x:
        v = int(start)
        if v % 3 == 0:
            i = 0
            while i < v:
                v = (v + (i ^ v) + 2**31) % 2**32 - 2**31
                i += 1
                if i > 40:
                    break
            values.append(None if i > 40 else v)
        else:
            values.append(one(v))
    known = np.array([v is not None for v in values])
    positive = [sum(int(y[w * 32 + k]) is not None for k in range(0)) for w in range(2)]
    assert known.any() and positive == [0, 0]
