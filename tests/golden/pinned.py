"""Lines pinned in a file: plans, one a problem. `--update-golden` rewrites the file; a missing one is a failure."""

from __future__ import annotations

from pathlib import Path

import pytest


def check_pinned(golden: Path, lines: list[str], request: pytest.FixtureRequest) -> None:
    """Fails with the lines that changed, old and new."""
    if request.config.getoption("--update-golden"):
        golden.write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert golden.exists(), f"{golden} is missing; make it with pytest tests/golden --update-golden"
    expected = golden.read_text(encoding="utf-8").splitlines()
    changed = [f"- {old}\n+ {new}" for old, new in zip(expected, lines, strict=False) if old != new]
    assert not changed and len(expected) == len(lines), (
        f"{len(changed)} plans changed ({len(expected)} -> {len(lines)} problems); if that is meant, --update-golden:\n"
        + "\n".join(changed[:20])
    )
