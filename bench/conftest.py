"""`pytest bench`: makes this folder a package, runs each section once for all tests, prints the table."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from bench import report  # noqa: E402
from bench import run as runner  # noqa: E402
from bench.context import Context  # noqa: E402
from bench.records import Row, machine  # noqa: E402


@dataclass
class Session:
    """The sections measured so far."""

    context: Context
    rows: dict[str, list[Row]] = field(default_factory=dict)

    def rows_of(self, section: str) -> list[Row]:
        for name in ("ceilings", section):  # others give percentages of the ceilings
            if name not in self.rows:
                self.rows[name] = runner.run_section(name, self.context)
        return self.rows[section]


SESSION = pytest.StashKey[Session]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--bench-quick", action="store_true", help="bench: fewer points and rounds")
    parser.addoption("--bench-out", default=str(ROOT / "bench" / "out"), help="bench: folder of results.json")


@pytest.fixture(scope="session")
def session(request: pytest.FixtureRequest) -> Session:
    made = Session(Context.of(bool(request.config.getoption("--bench-quick"))))
    request.config.stash[SESSION] = made
    return made


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    session = config.stash.get(SESSION, None)
    if session is not None and session.rows:
        rows = [row for section in session.rows.values() for row in section]
        out = Path(config.getoption("--bench-out"))
        terminalreporter.section("numbers")
        terminalreporter.write(report.write_all(out, machine(), rows, list(session.rows)))
