"""Programmatic dependent launch: a grid that may overlap the one before it must wait before it touches global memory."""

from __future__ import annotations

import numpy as np
import pytest

from deep_gemm import _C

SOURCE = """
#include <deep_gemm/ptx/base.h>
__global__ void f(float* x) {
    %s
    x[threadIdx.x] += 1;
}
"""


def launch(wait: str, programmatic: bool) -> np.ndarray:
    device = _C.Device("emulator:sm_90a")
    compiled = _C.compile(SOURCE % wait, ["f"], arch=device.arch, kind=device.image_kind)
    module = device.load_module(compiled.image, "dependent launch")
    kernel = module.kernel(compiled.lowered_names[0])
    x = np.zeros(64, np.float32)
    address = x.ctypes.data
    params = np.array([address], np.uint64).tobytes()
    device.launch(
        kernel, params, grid=1, block=64, memory=[(address, x.nbytes, True)], programmatic_launch=programmatic
    )
    return x


def test_waiting_kernels_run() -> None:
    assert (launch("deep_gemm::ptx::grid_dependency_wait();", True) == 1).all()


def test_without_overlap_nothing_needs_to_wait() -> None:
    assert (launch("", False) == 1).all()


def test_not_waiting_is_a_fault() -> None:
    with pytest.raises(_C.Error, match=r"before griddepcontrol\.wait"):
        launch("", True)


def test_parameters_are_no_global_memory() -> None:
    """An array among the parameters, at an index the compiler does not know, may be read before the wait."""
    source = """
        #include <deep_gemm/ptx/base.h>
        struct Params { float* x[2]; };
        __global__ void f(const __grid_constant__ Params p) {
            float* x = p.x[threadIdx.x / 32];
            deep_gemm::ptx::grid_dependency_wait();
            x[threadIdx.x] += 1;
        }
    """
    device = _C.Device("emulator:sm_90a")
    compiled = _C.compile(source, ["f"], arch=device.arch, kind=device.image_kind)
    module = device.load_module(compiled.image, "parameters")
    x = np.zeros(64, np.float32)
    params = np.array([x.ctypes.data] * 2, np.uint64).tobytes()
    device.launch(
        module.kernel(compiled.lowered_names[0]), params, grid=1, block=64,
        memory=[(x.ctypes.data, x.nbytes, True)], programmatic_launch=True,
    )  # fmt: skip
    assert (x == 1).all()
