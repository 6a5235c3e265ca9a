"""Every refusal of an operation's arguments says what was got, what is expected, and what to do."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]
FOLDERS = ("op", "plan", "python", "runtime")
FILES = sorted(
    str(file.relative_to(TOP))
    for folder in FOLDERS
    for pattern in ("*.cpp", "*.h")
    for file in (TOP / "csrc" / folder).rglob(pattern)
)
CALL = re.compile(r"\b(?:DG_CHECK|fail)\(")
LITERAL = re.compile(r'"((?:[^"\\]|\\.)*)"')
EXPECTED = re.compile(r"\bexpected\b")
REMEDY = re.compile(r"[;:] |\bas in ")  # after "expected": what to do, or an example of it
# The rest of the sentence is an argument, which has the remedy.
REMEDY_IS_AN_ARGUMENT = {
    "{}: {} has shape {}, expected [{}]{}",
    "linear: x has {} columns, expected {}{}",
}


def texts(source: str) -> list[str]:
    """The longest run of string literals of each check: its message."""
    found = []
    for call in CALL.finditer(source):
        depth, at, quoted = 1, call.end(), False
        while depth:
            character = source[at]
            if character == "\\":
                at += 1
            elif character == '"':
                quoted = not quoted
            elif not quoted:
                depth += (character == "(") - (character == ")")
            at += 1
        runs = re.findall(r'(?:"(?:[^"\\]|\\.)*"\s*)+', source[call.end() : at])
        if runs:
            found.append(max(("".join(LITERAL.findall(run)) for run in runs), key=len))
    return found


@pytest.mark.parametrize("file", FILES)
def test_got_expected_remedy(file: str) -> None:
    found = texts((TOP / file).read_text(encoding="utf-8"))
    for text in found:
        expected = EXPECTED.search(text)
        if expected and text not in REMEDY_IS_AN_ARGUMENT:
            assert REMEDY.search(text[expected.end() :]), f"{file}: what to do about: {text}"


def test_there_are_refusals() -> None:
    assert sum(len(texts((TOP / file).read_text(encoding="utf-8"))) for file in FILES) > 300
