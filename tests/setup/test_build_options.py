"""What the build asks of a compiler: warnings are errors for us, and never for a user whose compiler knows more of them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("options", "strict"),
    [([], False), (["-DDG_TESTS=ON"], True), (["-DDG_TESTS=ON", "-DDG_WERROR=OFF"], False)],
)
def test_warnings_are_errors_in_tests_only(tmp_path: Path, options: list[str], strict: bool) -> None:
    command = ["cmake", "-S", str(TOP), "-B", str(tmp_path), "-G", "Ninja", *options]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    commands = (tmp_path / "compile_commands.json").read_text()
    assert "-Wextra" in commands
    assert ("-Werror" in commands) == strict
