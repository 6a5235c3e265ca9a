"""`pytest bench`: first every result, then every number asked for; the table comes at the end.

The sections are those of `python -m deep_gemm bench`; each runs once, and the tests look at its rows.
"""

from __future__ import annotations

import pytest

from bench import run as runner
from bench.conftest import Session
from bench.targets import TARGETS, Target

pytestmark = [
    pytest.mark.skipif(runner.unavailable() is not None, reason=str(runner.unavailable())),
    pytest.mark.timeout(300),
]


@pytest.mark.parametrize("section", runner.SECTIONS)
def test_results(section: str, session: Session) -> None:
    """Every point of the section ran, and its poisoned outputs came out right."""
    failed = [f"{row.point}: {row.error}" for row in session.rows_of(section) if row.error]
    assert not failed, "\n".join(failed)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: f"{target.section}: {target.point}")
def test_asked(target: Target, session: Session) -> None:
    """The number asked for is reached."""
    rows = [row for row in session.rows_of(target.section) if row.point == target.point]
    if not rows or not rows[0].measured:
        pytest.skip(rows[0].note if rows else "not measured in a quick run")
    assert target.reached(rows[0]), f"got {rows[0].error or rows[0].metrics}, expected {target}"
