"""The page of measured numbers: it can be made from the newest results, and every missed number has its reason."""

from __future__ import annotations

import json
from pathlib import Path

from bench import document, report
from bench.targets import TARGETS

TOP = Path(__file__).resolve().parents[2]
MEASURED_ON = (TOP / "docs" / "performance.md").read_text(encoding="utf-8").split("\n\n")[1]


def newest() -> Path:
    """The results that the page says it shows."""
    for path in (TOP / "bench" / "results").glob("h200-*.json"):
        machine = json.loads(path.read_text(encoding="utf-8"))["machine"]
        if f"commit {machine['commit']}, {machine['date']}." in MEASURED_ON:
            return path
    raise AssertionError("docs/performance.md names no run of bench/results")


def test_the_page_of_the_newest_run() -> None:
    run = report.read_json(newest())
    page = document.document([run])
    sections = {target.section for target in TARGETS}
    assert all(document.TITLES[section][0] in page for section in sections & set(run[2]))
    assert "Not reached, and why:" in page
    assert "No reason found yet" not in page
