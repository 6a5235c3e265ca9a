"""Host time of one call: a tiny product, called in bursts that fit the launch queue, so that the host never waits
for the device: longer loops measure how fast the device drains the queue.

C++ is timed by the program of host_time.cpp, which the build target `dev` makes.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import deep_gemm
from bench import data
from bench.context import Context
from bench.records import Row, guarded_all

SECTION = "host_time"
SHAPE = (16, 128, 128)  # m, n, k
CALLS = 256
BUSY_CYCLES = 100_000_000  # about 50 ms
REPEATS = 21
BUILD_FOLDER = Path(__file__).resolve().parents[1] / "build"
PROGRAM_TIMEOUT_S = 60


def best_us(call: Callable[[], Any], calls: int, busy: bool) -> list[float]:
    """Microseconds per call of each repeat; `busy`: behind a kernel that runs longer than the loop."""
    call()
    samples = []
    for _ in range(REPEATS):
        torch.cuda.synchronize()
        if busy:
            torch.cuda._sleep(BUSY_CYCLES)
        start = time.perf_counter()
        for _ in range(calls):
            call()
        samples.append((time.perf_counter() - start) * 1e6 / calls)
    torch.cuda.synchronize()
    return samples


def call_ours() -> Callable[[], Any]:
    m, n, k = SHAPE
    a, b = data.scaled_tokens(m, k), data.scaled_weights(n, k)
    d = torch.empty(m, n, dtype=torch.bfloat16, device="cuda")
    return lambda: deep_gemm.fp8_gemm_nt(a, b, d)


def call_peer() -> Callable[[], Any]:
    m, n, k = SHAPE
    a, b = (data.random_fp32(rows, k).to(torch.float8_e4m3fn) for rows in (m, n))
    d = torch.empty(m, n, dtype=torch.bfloat16, device="cuda")
    one = torch.ones((), device="cuda")
    b = b.t()
    return lambda: torch._scaled_mm(a, b, one, one, out_dtype=torch.bfloat16, out=d)


def measure(point: str, busy: bool) -> Row:
    samples = {
        "ours": best_us(call_ours(), CALLS, busy),
        "torch._scaled_mm": best_us(call_peer(), CALLS, busy),
    }
    ours, peer = min(samples["ours"]), min(samples["torch._scaled_mm"])
    metrics = {"us": ours, "ratio": peer / ours}
    note = f"best of {REPEATS} bursts of {CALLS} calls"
    return Row(SECTION, point, ours, peer, "torch._scaled_mm", metrics, samples, note)


def measure_cpp() -> Row:
    programs = sorted(BUILD_FOLDER.glob("*/host_time"), key=lambda path: path.stat().st_mtime)
    if not programs:
        return Row(
            SECTION, "C++", note=f"not measured: no host_time under {BUILD_FOLDER}; build the target `dev`"
        )
    command = [str(programs[-1]), "cuda", str(CALLS), str(REPEATS)]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=PROGRAM_TIMEOUT_S)
    if finished.returncode != 0:
        raise RuntimeError(
            f"{programs[-1]} failed with status {finished.returncode}: {finished.stderr.strip()}"
        )
    pairs = [[float(word) for word in line.split()] for line in finished.stdout.splitlines()]
    samples = {
        "ours": [call for call, _ in pairs],
        "the driver's launch alone": [launch for _, launch in pairs],
    }
    us, floor = (min(values) for values in samples.values())
    note = f"best of {REPEATS} bursts of {CALLS} calls"
    metrics = {"us": us, "us_of_launch": floor}
    return Row(SECTION, "C++", us, floor, "the driver's launch alone", metrics, samples, note)


def run(context: Context) -> list[Row]:
    points = {
        "Python, torch tensors": lambda: measure("Python, torch tensors", busy=False),
        "Python, torch tensors, GPU busy": lambda: measure("Python, torch tensors, GPU busy", busy=True),
        "C++": measure_cpp,
    }
    return guarded_all(SECTION, iter(points.items()))
