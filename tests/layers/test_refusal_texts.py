"""Every refusal of arguments, files and plans says what was got, what is expected, and what to do."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]
FOLDERS = ("base", "driver", "jit", "op", "plan", "python", "runtime")
FILES = sorted(
    str(file.relative_to(TOP))
    for folder in FOLDERS
    for pattern in ("*.cpp", "*.h")
    for file in (TOP / "csrc" / folder).rglob(pattern)
) + sorted(str(file.relative_to(TOP)) for file in (TOP / "python" / "deep_gemm").rglob("*.py"))
CALL = re.compile(r"\b(?:DG_CHECK|fail)\(")
LITERAL = re.compile(r'"((?:[^"\\]|\\.)*)"')
EXPECTED = re.compile(r"\bexpected\b")
REMEDY = re.compile(r"[;:] |\b(?:as in|such as) ")  # after "expected": what to do, or an example of it
# The rest of the sentence is an argument, which has the remedy.
REMEDY_IS_AN_ARGUMENT = {
    "{}: {} has shape {}, expected [{}]{}",
    "linear: x has {} columns, expected {}{}",
    "{}: {} have shape {}, expected {}{}",
    "{}: {} are {}, expected {}{}",
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


def texts_of_python(source: str) -> list[str]:
    """The messages of `raise ValueError("...")` and the like, with {} for what is put in. AssertionError refuses nothing:
    it tells what differs."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
            if ast.unparse(node.exc.func) == "AssertionError":
                continue
            match node.exc.args[0]:
                case ast.Constant(value=str(text)):
                    found.append(text)
                case ast.JoinedStr(values=parts):
                    pieces = [str(part.value) if isinstance(part, ast.Constant) else "{}" for part in parts]
                    found.append("".join(pieces))
    return found


def all_texts(file: str) -> list[str]:
    source = (TOP / file).read_text(encoding="utf-8")
    return texts_of_python(source) if file.endswith(".py") else texts(source)


@pytest.mark.parametrize("file", FILES)
def test_got_expected_remedy(file: str) -> None:
    for text in all_texts(file):
        expected = EXPECTED.search(text)
        if expected and text not in REMEDY_IS_AN_ARGUMENT:
            assert REMEDY.search(text[expected.end() :]), f"{file}: what to do about: {text}"


def test_there_are_refusals() -> None:
    assert sum(len(all_texts(file)) for file in FILES) > 500
