"""What happens to the interpreter's objects and its lock while the library works."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import deep_gemm
from deep_gemm import _C

DEVICE_WHILE_LOGGING = """
import threading, time
from deep_gemm import _C
logging = threading.Event()
def sink(level, message):
    logging.set()
    time.sleep(0.2)
_C.set_log_sink(sink)
first = threading.Thread(target=_C.Device, daemon=True)
first.start()
logging.wait(5)
second = threading.Thread(target=lambda: _C.plan("gemm m=8 n=64 k=128"), daemon=True)
second.start()
for thread in (first, second):
    thread.join(20)
    assert not thread.is_alive()
print("done")
"""


def test_a_device_that_logs_into_python_while_another_thread_looks_for_one() -> None:
    """The second thread must not wait for the first with the interpreter's lock in its hands."""
    done = subprocess.run(
        [sys.executable, "-c", DEVICE_WHILE_LOGGING],
        env={"PYTHONPATH": ":".join(sys.path), "DG_LOG_LEVEL": "info"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "done\n", done.stderr


class Clearing:
    """A tensor that empties the list it came in as soon as it is looked at."""

    def __init__(self, array: Any, holder: list[Any]) -> None:
        self.array, self.holder = array, holder

    def __dlpack_device__(self) -> tuple[int, int]:
        device: tuple[int, int] = self.array.__dlpack_device__()
        return device

    def __dlpack__(self, **arguments: Any) -> Any:
        self.holder.clear()
        return self.array.__dlpack__(**arguments)


def test_what_a_list_lets_go_of_stays_until_the_call_ends(emulator: Any) -> None:
    m, n, k = 8, 64, 128
    values = np.ones((m, k), ml_dtypes.float8_e4m3fn)
    b = np.ones((n, k), ml_dtypes.float8_e4m3fn), np.ones((1, 1), np.float32)
    pair: list[Any] = []
    pair += [
        deep_gemm.view_as(Clearing(values.view(np.uint8), pair), "fp8_e4m3"),
        np.full((m, 1), 2, np.float32),
    ]
    d = np.zeros((m, n), ml_dtypes.bfloat16)
    deep_gemm.fp8_gemm_nt(pair, b, d, device=emulator)
    assert pair == [] and (d == 2 * k).all()


def test_a_kernel_of_another_kind_of_device(emulator: Any) -> None:
    try:
        gpu = _C.Device("cuda")
    except deep_gemm.Error:
        pytest.skip("no GPU")
    source = 'extern "C" __global__ void nothing() {}'
    module = emulator.load_module(_C.compile(source, ["nothing"], arch="90a", kind="ptx").image, "test")
    with pytest.raises(ValueError, match="another kind of device"):
        gpu.launch(module.kernel("nothing"), b"")
