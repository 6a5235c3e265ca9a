"""`pytest bench`: makes the package of this folder importable, and runs each section once for all its tests."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="fewer points and rounds")
    parser.addoption("--out", default=str(ROOT / "bench" / "out"), help="folder for results.json and its kin")
