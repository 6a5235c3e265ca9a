"""The tables of docs/weight-only.md are what the tools make: times of the file that the page names, errors of the kernels."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

TOP = Path(__file__).resolve().parents[2]
PAGE = (TOP / "docs" / "weight-only.md").read_text(encoding="utf-8")


def tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, TOP / "tools" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_times_are_those_of_the_file() -> None:
    assert tool("weight_only_times").replaced(PAGE) == PAGE


def test_errors_are_those_of_the_kernels() -> None:
    errors = tool("weight_only_errors")
    assert PAGE.partition(errors.START)[2].partition(errors.END)[0].strip() == errors.table()
