"""How far the chosen plan is from the best: every legal plan is checked and timed, of all FP8 GEMMs and FP4 ones."""

from __future__ import annotations

from functools import partial

from bench import contest, fp4_regret, grouped_regret
from bench.contest import Contest, Table
from bench.context import Context
from bench.dense import Problem, problems
from bench.records import Row, guarded
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


def dense_table(quick: bool) -> Table:
    return Table({gemm_point(m, n, k): partial(dense, m, n, k) for m, n, k in problems(quick)})


def run(context: Context) -> list[Row]:
    kinds = {
        "all FP4 points": list(fp4_regret.tables(context.quick)),
        "all grouped points": [grouped_regret.table(context.quick)],
        "all points": [dense_table(context.quick)],
    }
    of_tables = iter(
        contest.measure_all(context, SECTION, [table for tables in kinds.values() for table in tables])
    )
    found = []
    for name, tables in kinds.items():
        rows = [row for _ in tables for row in next(of_tables)]
        found += [*rows, guarded(SECTION, name, partial(contest.summary, SECTION, name, rows))]
    return found
