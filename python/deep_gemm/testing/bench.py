"""Timing of PyTorch code on a GPU: events around many calls, or the profiler's own kernel times."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

from deep_gemm import _C
from deep_gemm.utils import arrays

L2_FLUSH_BYTES = 256_000_000
REST_BYTES = 8_000_000_000  # a memset this long empties the caches and lets the host run ahead


def bench(
    fn: Callable[[], Any], num_warmups: int = 5, num_tests: int = 10, high_precision: bool = False
) -> float:
    """Seconds per call. `high_precision` hides launch costs behind one long kernel."""
    torch = arrays.torch_for("bench")
    torch.cuda.synchronize()
    torch.empty(L2_FLUSH_BYTES, dtype=torch.int8, device="cuda").zero_()
    for _ in range(num_warmups):
        fn()
    if high_precision:
        square = torch.randn((8192, 8192), dtype=torch.float32, device="cuda")
        square @ square
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(num_tests):
        fn()
    stop.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(stop)) / num_tests / 1e3


@contextlib.contextmanager
def suppress_stdout_stderr() -> Iterator[None]:
    """Silences the process, C libraries included."""
    saved = [os.dup(1), os.dup(2)]
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 1)
        os.dup2(null, 2)
        yield
    finally:
        for target, descriptor in zip((1, 2), saved, strict=True):
            os.dup2(descriptor, target)
            os.close(descriptor)
        os.close(null)


def bench_kineto(
    fn: Callable[[], Any],
    kernel_names: str | tuple[str, ...],
    num_tests: int = 30,
    suppress_kineto_output: bool = False,
    trace_path: str | None = None,
    flush_l2: bool = True,
    with_multiple_kernels: bool = False,
    barrier: Callable[[], Any] | None = None,
) -> Any:
    """Mean seconds of the kernels whose profiler name contains each of `kernel_names` (0 where none ran).

    Caches are cold for every call, host time is hidden. Without `with_multiple_kernels` a name may match one
    kernel. DG_USE_NVIDIA_TOOLS=1 skips the profiler, which other tools cannot share, and returns 1.
    """
    names = (kernel_names,) if isinstance(kernel_names, str) else kernel_names
    if _C.env_flag("DG_USE_NVIDIA_TOOLS"):
        times: tuple[float, ...] = (1.0,) * len(names)
        return times[0] if isinstance(kernel_names, str) else times
    torch = arrays.torch_for("bench_kineto")

    def run_all() -> None:
        for _ in range(num_tests):
            if flush_l2:
                torch.empty(REST_BYTES, dtype=torch.int8, device="cuda").zero_()
            if barrier is not None:
                torch.cuda._sleep(20_000_000)  # unequal launch costs of the ranks vanish behind it
                barrier()
            fn()
        torch.cuda.synchronize()

    fn()
    quiet: Any = suppress_stdout_stderr if suppress_kineto_output else contextlib.nullcontext
    with quiet():
        schedule = torch.profiler.schedule(wait=0, warmup=1, active=1, repeat=1)
        activities = [torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=activities, schedule=schedule, acc_events=True) as profiler:
            for _ in range(2):
                run_all()
                profiler.step()
        if trace_path is not None:
            profiler.export_chrome_trace(trace_path)

    events = profiler.key_averages()
    results = []
    for name in names:
        matches = [event for event in events if name in event.key and event.device_time_total > 0]
        if len(matches) > 1 and not with_multiple_kernels:
            raise AssertionError(
                f"'{name}' matches {len(matches)} kernels, expected one: {[e.key for e in matches]}"
            )
        calls = sum(event.count for event in matches)
        results.append(sum(event.device_time_total for event in matches) / calls / 1e6 if calls else 0.0)
    return results[0] if isinstance(kernel_names, str) else tuple(results)


__all__ = ["bench", "bench_kineto", "suppress_stdout_stderr"]
