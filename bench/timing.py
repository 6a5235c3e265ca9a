"""Device time of short bursts, captured in CUDA graphs and interleaved.

Two rules make times comparable. Buffers rotate over more than twice the L2 cache, so that every launch finds
its operands in memory. Large products are limited by power, so clocks drift: variants take turns in bursts of
about half a millisecond, in alternating order, and are compared round by round.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

import deep_gemm

MIN_SETS, MAX_SETS = 3, 20
MIN_LAUNCHES = 6
BURST_US = 500.0
SETTLE_CYCLES = 100_000  # the stream sleeps this long while the host queues the burst: launch costs stay out


@dataclass(frozen=True)
class Variant:
    """One way to do the work: `launch(i)` uses buffer set i on the current stream."""

    name: str
    launch: Callable[[int], Any]
    pdl: bool = True


@contextlib.contextmanager
def pdl_set(enable: bool) -> Iterator[None]:
    before = deep_gemm.get_pdl()
    deep_gemm.set_pdl(enable)
    try:
        yield
    finally:
        deep_gemm.set_pdl(before)


def num_sets_for(bytes_per_set: int) -> int:
    """Buffer sets that together pass twice the L2 cache."""
    l2: int = torch.cuda.get_device_properties(0).L2_cache_size
    return max(MIN_SETS, min(MAX_SETS, 2 * l2 // bytes_per_set + 1))


@contextlib.contextmanager
def capturing(graph: Any) -> Iterator[None]:
    """Captures the current stream. torch.cuda.graph would also empty its caches, for 50 ms a time."""
    gc.disable()  # a collected tensor or graph must not call the driver in between
    try:
        graph.capture_begin()
        try:
            yield
        except BaseException:
            with contextlib.suppress(RuntimeError):  # the capture is broken: the first error says why
                graph.capture_end()
            raise
        graph.capture_end()
    finally:
        gc.enable()


class Burst:
    """`launches` calls of one variant as one CUDA graph."""

    def __init__(self, variant: Variant, num_sets: int, launches: int, stream: Any) -> None:
        self.launches = launches
        self.stream = stream
        with torch.cuda.stream(stream), pdl_set(variant.pdl):
            for i in range(num_sets):
                variant.launch(i)  # compiles, and makes the library's handles and workspaces
            stream.synchronize()
            self.graph = torch.cuda.CUDAGraph()
            with capturing(self.graph):
                for i in range(launches):
                    variant.launch(i % num_sets)

    def replay(self) -> None:
        torch.cuda.synchronize()  # its stream does not wait for others
        with torch.cuda.stream(self.stream):
            self.graph.replay()
            self.stream.synchronize()

    def time_us(self) -> float:
        """Microseconds per launch."""
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        with torch.cuda.stream(self.stream):
            torch.cuda._sleep(SETTLE_CYCLES)
            start.record(self.stream)
            self.graph.replay()
            stop.record(self.stream)
            stop.synchronize()
        return float(start.elapsed_time(stop)) * 1e3 / self.launches


def launches_for(expected_us: float, num_sets: int) -> int:
    """Enough for a burst, and a multiple of the sets so that replays go on rotating."""
    wanted = max(MIN_LAUNCHES, int(BURST_US / expected_us) + 1)
    return -(-wanted // num_sets) * num_sets


def capture(variants: list[Variant], num_sets: int, expected_us: float) -> dict[str, Burst]:
    torch.cuda.synchronize()  # buffers are made on the default stream, for which others do not wait
    stream = torch.cuda.Stream()
    launches = launches_for(expected_us, num_sets)
    return {variant.name: Burst(variant, num_sets, launches, stream) for variant in variants}


def interleave(bursts: dict[str, Burst], rounds: int) -> dict[str, list[float]]:
    """Samples of every variant, one per round; a first round warms up and is dropped."""
    samples: dict[str, list[float]] = {name: [] for name in bursts}
    order = list(bursts)
    for round_index in range(rounds + 1):
        for name in order if round_index % 2 else reversed(order):
            us = bursts[name].time_us()
            if round_index:
                samples[name].append(us)
    return samples
