"""The page of measured numbers: made from the files it names, every missed number with its reason."""

from __future__ import annotations

import re
from pathlib import Path

from bench import document, report, run

TOP = Path(__file__).resolve().parents[2]
PAGE = (TOP / "docs" / "performance.md").read_text(encoding="utf-8")
TIME = re.compile(r"(\d+\.\d\d) \((\d+\.\d\d)\.\.(\d+\.\d\d)\)")


def test_the_page_is_what_its_files_say() -> None:
    named = re.search(r"^Made from (.*) in bench/results\.$", PAGE, re.MULTILINE)
    assert named, "docs/performance.md names no files; python -m deep_gemm bench --document writes it"
    files = named[1].split(", ")
    runs = [report.read_json(TOP / "bench" / "results" / name) for name in files]
    assert document.document(runs, files) == PAGE


def test_medians_lie_between_their_samples() -> None:
    times = [tuple(map(float, found)) for found in TIME.findall(PAGE)]
    assert len(times) > 100
    assert [found for found in times if not found[1] <= found[0] <= found[2]] == []


def test_every_missed_number_has_a_reason() -> None:
    assert "Not reached, and why:" in PAGE and "No reason found yet" not in PAGE


def test_every_section_has_its_place_on_the_page() -> None:
    assert set(run.SECTIONS) <= set(document.TITLES)
