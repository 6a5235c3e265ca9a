"""A problem and every plan that may serve it, all checked and timed: how far is the chosen one from the best?

Most plans are far from it, and a problem has a hundred: they compile in parallel, one launch shows which ones are
hopeless, and only the fastest are timed as everything else in this folder is.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from bench import timing
from bench.context import Context
from bench.records import Row, guarded, median, paired_ratio
from bench.timing import Variant

FINALISTS = 3  # the fastest of a first look are timed again beside the chosen one
HOPELESS = 1.3  # times the best: one look is enough
GLANCE, GLANCE_US = 2.0, 50.0  # more than so many times the best, and more us: one launch is enough
LOOKS = 3
COMPILE_THREADS = 16
OUT_OF_TIME = "not measured: the time of this run was used up"
STRIDE = 3  # a table without time for all of its points measures every third one first


@dataclass
class Contest:
    chosen: Any
    specs: list[Any]
    launch: Callable[[int, Any], Any]  # of a buffer set, with a spec
    check: Callable[[str, Any], Any]  # of a spec's result; the string names it
    num_sets: int
    expected_us: float

    def build(self) -> None:
        """Compiles in parallel: a first call releases the interpreter while it compiles."""
        with ThreadPoolExecutor(COMPILE_THREADS) as pool:
            list(pool.map(lambda spec: self.launch(0, spec), self.specs))
        torch.cuda.synchronize()

    def burst_of(self, spec: Any) -> timing.Burst:
        variant = Variant(str(spec), lambda i: self.launch(i, spec))
        return timing.capture([variant], self.num_sets, self.expected_us)[variant.name]

    def glance_us(self, spec: Any) -> float:
        """One launch: what the host does in between counts too."""
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        self.launch(0, spec)
        stop.record()
        stop.synchronize()
        return float(start.elapsed_time(stop)) * 1e3

    def first_look(self) -> dict[Any, list[float]]:
        times: dict[Any, list[float]] = {}
        best = float("inf")
        for spec in [self.chosen, *(one for one in self.specs if one != self.chosen)]:
            self.check(f"plan [{spec}]", spec)
            times[spec] = [self.glance_us(spec)]
            if times[spec][0] > GLANCE * best + GLANCE_US:
                continue
            burst = self.burst_of(spec)
            burst.time_us()
            times[spec] = [burst.time_us()]
            if times[spec][0] < HOPELESS * best:
                times[spec] += [burst.time_us() for _ in range(LOOKS - 1)]
            best = min(best, median(times[spec]))
        return times


def measure(context: Context, section: str, point: str, make: Callable[[], Contest]) -> Row:
    if context.seconds_left() <= 0:
        return Row(section, point, note=OUT_OF_TIME)
    contest = make()
    contest.build()
    times = contest.first_look()
    finalists = sorted(times, key=lambda spec: median(times[spec]))[:FINALISTS]
    bursts = {str(spec): contest.burst_of(spec) for spec in {contest.chosen, *finalists}}
    samples = timing.interleave(bursts, context.rounds)
    chosen = str(contest.chosen)
    best = min(samples, key=lambda name: median(samples[name]))
    regret = paired_ratio(samples[chosen], samples[best]) if best != chosen else 1.0
    metrics = {"regret": regret, "num_plans": float(len(contest.specs))}
    looks = {f"look: {spec}": values for spec, values in times.items()}
    return Row(
        section,
        point,
        median(samples[chosen]),
        median(samples[best]),
        f"best of {len(contest.specs)} plans",
        metrics,
        samples | looks,
        f"chosen {chosen}; best {best}",
    )


@dataclass(frozen=True)
class Table:
    """Points in their order, and what frees the operands they share."""

    contests: Mapping[str, Callable[[], Contest]]
    clear: Callable[[], None] = lambda: None

    def measure(self, context: Context, section: str) -> list[Row]:
        names = list(self.contests)
        rows = {
            name: guarded(section, name, partial(measure, context, section, name, self.contests[name]))
            for name in (name for start in range(STRIDE) for name in names[start::STRIDE])
        }
        self.clear()
        return [rows[name] for name in names]


def measure_all(context: Context, section: str, tables: list[Table]) -> list[list[Row]]:
    """The rows of each table. Each gets its share of the time that is left, by its number of points."""
    found = []
    points_left = sum(len(table.contests) for table in tables)
    for table in tables:
        share = context.seconds_left() * len(table.contests) / max(1, points_left)
        elapsed = time.monotonic() - context.started
        found.append(table.measure(replace(context, seconds=elapsed + share), section))
        points_left -= len(table.contests)
    return found


def summary(section: str, point: str, rows: list[Row]) -> Row:
    """Mean and worst of the rows, which this row's point names."""
    values = {row.point: row.metrics["regret"] for row in rows if "regret" in row.metrics}
    if not values:
        if all(row.note == OUT_OF_TIME for row in rows):
            return Row(section, point, note=OUT_OF_TIME)
        raise RuntimeError("no point was measured")
    worst = max(values, key=lambda point: values[point])
    metrics = {"regret": statistics.mean(values.values()), "worst_regret": values[worst]}
    return Row(section, point, metrics=metrics, note=f"{len(values)} of {len(rows)} points; worst {worst}")
