"""Importing deep_gemm starts nothing: no CUDA, no NVRTC, no file, no thread; forking after it works."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPORT = """
import os, sys, threading
import deep_gemm
maps = open("/proc/self/maps").read()
print("threads", len(os.listdir("/proc/self/task")))
print("libcuda", "libcuda.so" in maps)
print("nvrtc", "libnvrtc" in maps)
print("frameworks", [name for name in ("torch", "cupy", "jax", "rich", "click") if name in sys.modules])
"""

FORK = """
import os
import deep_gemm
pid = os.fork()
if pid == 0:
    device = deep_gemm._C.Device("emulator:sm_90a")
    address = device.allocate(64)
    device.fill_bytes(address, 7, 64)
    host = bytearray(64)
    device.copy_to_host(host, address)
    os._exit(0 if bytes(host) == bytes([7]) * 64 else 1)
print("child", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


def python(script: str, home: Path) -> str:
    # numpy's own BLAS threads are not ours: one, so that what is counted is what the import started.
    environment = {**os.environ, "HOME": str(home), "OPENBLAS_NUM_THREADS": "1"}
    environment.pop("XDG_CACHE_HOME", None)
    environment.pop("DG_JIT_CACHE_DIR", None)
    run = subprocess.run(
        [sys.executable, "-c", script], env=environment, cwd=home, text=True, capture_output=True, check=False
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_import_starts_nothing(tmp_path: Path) -> None:
    lines = dict(line.split(" ", 1) for line in python(REPORT, tmp_path).splitlines())
    assert lines == {"threads": "1", "libcuda": "False", "nvrtc": "False", "frameworks": "[]"}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_fork_after_import(tmp_path: Path) -> None:
    assert python(FORK, tmp_path) == "child 0\n"
