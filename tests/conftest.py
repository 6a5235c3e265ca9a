"""What all tests share: the devices of this machine and the folder of reference implementations.

A test that asks for `device` runs once on the emulated GPU and, where there is one, once more on the real one. Arrays
are numpy's everywhere: deep_gemm.demo.arrays has put() and take() between them and a device's tensors.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

# Before NumPy is imported: workers of a test run share the cores, and idle threads of OpenBLAS spin.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import pytest

from deep_gemm import _C

TESTS = Path(__file__).resolve().parent
sys.path.insert(0, str(TESTS))  # `from reference import gemm`, `from golden import ...`

# Few multiprocessors, so that small problems already take several waves.
EMULATOR = "emulator:sm_90a,sms=8"


def device_names() -> list[str]:
    """The emulated GPU, and the real one where there is one with the instructions of sm_90a."""
    try:
        has_gpu = _C.Device("cuda").arch == "90a"
    except _C.Error:
        has_gpu = False
    return ["emulator", "cuda"] if has_gpu else ["emulator"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite the files under tests/golden")
    parser.addoption(
        "--every-spec",
        action="store_true",
        help="build all kernels that a GEMM's plans may choose, not a choice of them: minutes on two cores",
    )


@pytest.fixture
def emulator_name() -> str:
    return EMULATOR


@pytest.fixture(params=device_names())
def device(request: pytest.FixtureRequest, emulator_name: str) -> _C.Device:
    """The emulated GPU, then the real one."""
    return _C.Device(emulator_name if request.param == "emulator" else request.param)


@pytest.fixture
def emulator(emulator_name: str) -> _C.Device:
    return _C.Device(emulator_name)
