"""How far the chosen plan is from the best: every legal plan of the dense problems is checked and timed."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import torch

from bench import timing
from bench.context import Context
from bench.dense import Problem, problems
from bench.records import Row, guarded, guarded_all, median, paired_ratio
from bench.targets import gemm_point
from bench.timing import Variant
from deep_gemm import _C

SECTION = "regret"
FINALISTS = 3  # the fastest of a first look are timed again beside the chosen one
HOPELESS = 1.3  # times the best: one look is enough
LOOKS = 3
COMPILE_THREADS = 16


def build(problem: Problem, specs: list[Any]) -> None:
    """Compiles in parallel: a first call releases the interpreter while it compiles."""
    with ThreadPoolExecutor(COMPILE_THREADS) as pool:
        list(pool.map(lambda spec: problem.launch(0, spec), specs))
    torch.cuda.synchronize()


def first_look(problem: Problem, specs: list[Any]) -> dict[Any, list[float]]:
    times: dict[Any, list[float]] = {}
    best = float("inf")
    for spec in specs:
        problem.check(f"plan [{spec}]", spec)
        burst = burst_of(problem, spec)
        burst.time_us()
        times[spec] = [burst.time_us()]
        if times[spec][0] < HOPELESS * best:
            times[spec] += [burst.time_us() for _ in range(LOOKS - 1)]
        best = min(best, median(times[spec]))
    return times


def burst_of(problem: Problem, spec: Any) -> timing.Burst:
    variant = Variant(str(spec), lambda i: problem.launch(i, spec))
    return timing.capture([variant], len(problem.sets), problem.expected_us)[variant.name]


def measure(context: Context, m: int, n: int, k: int) -> Row:
    point = gemm_point(m, n, k)
    if context.seconds_left() <= 0:
        return Row(SECTION, point, note="not measured: the time of this run was used up")
    line = f"gemm {point}"
    chosen = _C.plan(line)["spec"]
    specs = [candidate["spec"] for candidate in _C.candidates(line) if candidate["rejected"] is None]
    problem = Problem.make(m, n, k)
    build(problem, specs)
    times = first_look(problem, specs)
    finalists = sorted(times, key=lambda spec: median(times[spec]))[:FINALISTS]
    bursts = {str(spec): burst_of(problem, spec) for spec in {chosen, *finalists}}
    samples = timing.interleave(bursts, context.rounds)
    best = min(samples, key=lambda name: median(samples[name]))
    regret = paired_ratio(samples[str(chosen)], samples[best]) if best != str(chosen) else 1.0
    metrics = {"regret": regret, "num_plans": float(len(specs))}
    note = f"chosen {chosen}; best {best}"
    looks = {f"look: {spec}": values for spec, values in times.items()}
    us = median(samples[str(chosen)])
    return Row(
        SECTION,
        point,
        us,
        median(samples[best]),
        f"best of {len(specs)} plans",
        metrics,
        samples | looks,
        note,
    )


def summary(rows: list[Row]) -> Row:
    values = {row.point: row.metrics["regret"] for row in rows if "regret" in row.metrics}
    if not values:
        raise RuntimeError("no point was measured")
    worst = max(values, key=lambda point: values[point])
    metrics = {"regret": statistics.mean(values.values()), "worst_regret": values[worst]}
    return Row(SECTION, "all points", metrics=metrics, note=f"{len(values)} points; worst {worst}")


def points(context: Context) -> Iterator[tuple[str, Callable[[], Row]]]:
    for m, n, k in problems(context.quick):
        yield gemm_point(m, n, k), partial(measure, context, m, n, k)


def run(context: Context) -> list[Row]:
    rows = guarded_all(SECTION, points(context))
    return [*rows, guarded(SECTION, "all points", lambda: summary(rows))]
