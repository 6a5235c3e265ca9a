"""`pytest bench`: first every result, then every number asked for; the table is printed at the end (-s shows it).

The sections are those of `python -m deep_gemm bench`; each runs once, and the tests look at its rows.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import report
from bench import run as runner
from bench.context import Context
from bench.records import Row, machine
from bench.targets import TARGETS, Target

pytestmark = [
    pytest.mark.skipif(runner.unavailable() is not None, reason=str(runner.unavailable())),
    pytest.mark.timeout(300),
]

Results = dict[str, list[Row]]


@pytest.fixture(scope="session")
def context(request: pytest.FixtureRequest) -> Context:
    return Context.of(bool(request.config.getoption("--quick")))


@pytest.fixture(scope="session")
def results(request: pytest.FixtureRequest) -> Results:
    """Rows by section, filled as sections run; written to files and printed when all tests are done."""
    found: Results = {}

    def finish() -> None:
        rows = [row for section in found.values() for row in section]
        if rows:
            out = Path(request.config.getoption("--out"))
            print("\n" + report.write_all(out, machine(), rows, list(found)))

    request.addfinalizer(finish)
    return found


def rows_of(section: str, results: Results, context: Context) -> list[Row]:
    for name in ("ceilings", section):  # others give percentages of the ceilings
        if name not in results:
            results[name] = runner.run_section(name, context)
    return results[section]


@pytest.mark.parametrize("section", runner.SECTIONS)
def test_results(section: str, results: Results, context: Context) -> None:
    """Every point of the section ran, and its poisoned outputs came out right."""
    failed = [f"{row.point}: {row.error}" for row in rows_of(section, results, context) if row.error]
    assert not failed, "\n".join(failed)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: f"{target.section}: {target.point}")
def test_asked(target: Target, results: Results, context: Context) -> None:
    """The number asked for is reached."""
    for row in rows_of(target.section, results, context):
        if row.point == target.point:
            assert target.reached(row), f"got {row.error or row.metrics}, expected {target}"
            return
    pytest.skip("not measured in this run")
