"""Prints `812 tests (3 skipped)` from a pytest JUnit file and, if given, a CMake build tree with ctest results."""

from __future__ import annotations

import re
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path


def pytest_counts(results: Path) -> tuple[int, int, int]:
    """(run, failed, skipped) of the JUnit file; zeros when pytest wrote none."""
    if not results.exists():
        return 0, 0, 0
    suites = list(ElementTree.parse(results).getroot().iter("testsuite"))
    total, skipped = (sum(int(s.get(key, 0)) for s in suites) for key in ("tests", "skipped"))
    failed = sum(int(s.get("failures", 0)) + int(s.get("errors", 0)) for s in suites)
    return total - skipped, failed, skipped


def ctest_counts(build: Path) -> tuple[int, int]:
    """(run, failed) from ctest's own log of the last run."""
    log = build / "Testing" / "Temporary" / "LastTest.log"
    text = log.read_text(errors="replace") if log.exists() else ""
    passed = len(re.findall(r"^Test Passed\.", text, re.MULTILINE))
    failed = len(re.findall(r"^Test Failed\.", text, re.MULTILINE))
    return passed + failed, failed


def main() -> int:
    run, failed, skipped = pytest_counts(Path(sys.argv[1]))
    cpp_run, cpp_failed = ctest_counts(Path(sys.argv[2])) if len(sys.argv) > 2 else (0, 0)
    notes = []
    if failed + cpp_failed:
        notes.append(f"{failed + cpp_failed} failed")
    if skipped:
        notes.append(f"{skipped} skipped")
    print(f"{run + cpp_run} tests" + (f" ({', '.join(notes)})" if notes else ""))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
