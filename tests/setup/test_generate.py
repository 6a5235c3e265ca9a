"""The generator of docs/api.md: what it prints of pybind11's signatures, and what it refuses."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

import generate


def documented(x: int) -> int:
    """x."""
    return x


def bare(x: int) -> int:
    return x


class Half:
    """A class with a method that says nothing."""

    def method(self) -> None:
        pass


def test_what_has_no_docstring_is_refused() -> None:
    assert "x." in generate.entry_of("documented", documented)
    with pytest.raises(SystemExit, match="bare has no docstring"):
        generate.entry_of("bare", bare)
    with pytest.raises(SystemExit, match=r"Half\.method has no docstring"):
        generate.entry_of("Half", Half)


def test_signatures_speak_of_python() -> None:
    page = generate.api_page()
    assert "SupportsInt" not in page and "device: object" not in page
    assert "explain(problem: str, device: Device | str | None = None, rows: int = 12) -> str" in page


def test_each_option_of_the_emulator_is_in_the_page() -> None:
    from deep_gemm import _C

    page = generate.env_page()
    for row in _C.emulator_options():
        assert f"| `{row['name']}` |" in page
    with pytest.raises(ValueError, match="got 'colour', expected one of seed, threads, sms, memory, steps"):
        _C.Device("emulator:sm_90a", colour=1)
