"""Every refusal of an operation's arguments says what was got, what is expected, and what to do."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]
FILES = [f"csrc/op/{name}.cpp" for name in ("gemm_check", "fp4_check", "linear_check", "overlap")]
CALL = re.compile(r"\b(?:DG_CHECK|fail)\(")
LITERAL = re.compile(r'"((?:[^"\\]|\\.)*)"')
# The rest of the sentence is an argument, which has the remedy.
REMEDY_IS_AN_ARGUMENT = {
    "{}: {} has shape {}, expected [{}]{}",
    "fp8_fp4_gemm: {} has shape {}, expected [{}]{}",
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
        if "expected" in text and text not in REMEDY_IS_AN_ARGUMENT:
            assert re.search(r"[;:] ", text[text.index("expected") :]), f"{file}: what to do about: {text}"


def test_there_are_refusals() -> None:
    assert sum(len(texts((TOP / file).read_text(encoding="utf-8"))) for file in FILES) > 100
