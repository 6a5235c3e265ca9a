"""How far the chosen plan is from the best: every legal plan is checked and timed, of all FP8 GEMMs and FP4 ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from bench import contest, fp4_regret, grouped_regret
from bench.contest import Contest
from bench.context import Context
from bench.dense import Problem, problems
from bench.records import Row, guarded, guarded_all
from bench.targets import gemm_point
from deep_gemm import _C

SECTION = "regret"


def dense(m: int, n: int, k: int) -> Contest:
    line = f"gemm {gemm_point(m, n, k)}"
    specs = [candidate["spec"] for candidate in _C.candidates(line) if candidate["rejected"] is None]
    problem = Problem.make(m, n, k)
    return Contest(
        _C.plan(line)["spec"], specs, problem.launch, problem.check, len(problem.sets), problem.expected_us
    )


def points(context: Context) -> Iterator[tuple[str, Callable[[], Row]]]:
    for m, n, k in problems(context.quick):
        point = gemm_point(m, n, k)
        yield point, partial(contest.measure, context, SECTION, point, partial(dense, m, n, k))


def grouped_points(context: Context) -> Iterator[tuple[str, Callable[[], Row]]]:
    for point, make in grouped_regret.contests(context.quick):
        yield point, partial(contest.measure, context, SECTION, point, make)


def fp4_points(context: Context) -> Iterator[tuple[str, Callable[[], Row]]]:
    for point, make in fp4_regret.contests(context.quick):
        yield point, partial(contest.measure, context, SECTION, point, make)


KINDS = (("all FP4 points", fp4_points), ("all grouped points", grouped_points), ("all points", points))


def run(context: Context) -> list[Row]:
    """FP4 first: a run that is short of time leaves out the end of each."""
    found = []
    for name, of_kind in KINDS:
        rows = guarded_all(SECTION, of_kind(context))
        found += [*rows, guarded(SECTION, name, partial(contest.summary, SECTION, name, rows))]
    return found
