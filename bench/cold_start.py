"""What the first call of a kernel costs: uncached, and with its image in the disk cache."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from typing import Any

from bench.context import Context
from bench.records import Row, guarded, median

SECTION = "cold_start"
TIMEOUT_S = 120


def calls_of_new_process(cache_folder: str) -> list[dict[str, Any]]:
    environment = {
        **os.environ,
        "DG_JIT_CACHE_DIR": cache_folder,
        "DG_LOG_LEVEL": "info",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    for name in ("DG_JIT_READONLY_CACHE_DIRS", "DG_JIT_BUNDLES"):
        environment.pop(name, None)
    finished = subprocess.run(
        [sys.executable, "-m", "bench.cold_process"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    if finished.returncode != 0:
        last = (finished.stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(f"the new process failed with status {finished.returncode}: {last}")
    calls: list[dict[str, Any]] = json.loads(finished.stdout.strip().splitlines()[-1])
    return calls


def row_of(point: str, calls: list[dict[str, Any]], compiles: bool) -> Row:
    """The first call of a process also opens NVRTC and the driver: it is told apart in the note."""
    for call in calls:
        if bool(call["compile_ms"]) != compiles:
            raise AssertionError(
                f"{call['spec']}: compiled {call['compile_ms']:.0f} ms, expected compiles={compiles}"
            )
    ms = [call["ms"] for call in calls]
    compile_ms = [call["compile_ms"] for call in calls]
    metrics = {
        "ms": median(ms),
        "worst_ms": max(ms),
        "first_of_process_ms": ms[0],
        "compile_ms": median(compile_ms),
        "load_ms": median([m - c for m, c in zip(ms, compile_ms, strict=True)]),
    }
    split = f", {metrics['compile_ms']:.0f} of them compiling" if compiles else ""
    note = f"median {metrics['ms']:.1f} ms{split}; first of its process {ms[0]:.1f} ms; {len(ms)} kernels"
    return Row(
        SECTION,
        point,
        metrics["ms"] * 1e3,
        metrics=metrics,
        samples={"first call": [m * 1e3 for m in ms]},
        note=note,
    )


def run(context: Context) -> list[Row]:
    uncached, cached = "first call of an uncached kernel", "first call of a kernel in the disk cache"
    with tempfile.TemporaryDirectory(prefix="deep-gemm-bench-") as folder:
        return [
            guarded(SECTION, uncached, lambda: row_of(uncached, calls_of_new_process(folder), compiles=True)),
            guarded(SECTION, cached, lambda: row_of(cached, calls_of_new_process(folder), compiles=False)),
        ]
