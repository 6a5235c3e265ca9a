"""What the bug tests of the model operations share: parameters from a list of fields, the text of a kernel, verdicts."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
from emulator import injection as bugs
from emulator.injection import Bug, Launch, check_caught, check_clean
from ops_cases import DTYPES

__all__ = [
    "BF16",
    "Bug",
    "Launch",
    "bug_tests",
    "bugs",
    "check_caught",
    "check_clean",
    "pack",
    "text",
]

BF16 = DTYPES["bf16"]


def pack(*fields: Any) -> Callable[[Any, dict[str, int]], bytes]:
    """Parameters in order: the name of an array (or None) is its address, ints are u32, (int,) is u64, floats fp32; (name,
    bytes) is an address in an array; a list is a struct of its own, aligned and padded to 8 bytes."""

    def flat(at: dict[str, int], values: Any) -> bytes:
        out = b""
        for value in values:
            if isinstance(value, list):
                out += bytes(-len(out) % 8) + flat(at, value)
                out += bytes(-len(out) % 8)
                continue
            if isinstance(value, float):
                piece = np.float32(value).tobytes()
            elif isinstance(value, tuple):
                piece = (at[value[0]] + value[1] if len(value) == 2 else value[0]).to_bytes(8, "little")
            elif isinstance(value, int):
                piece = value.to_bytes(4, "little")
            else:
                piece = (at[value] if value else 0).to_bytes(8, "little")
            out += bytes(-len(out) % len(piece)) + piece
        return out

    def make(_: Any, at: dict[str, int]) -> bytes:
        out = flat(at, fields)
        return out + bytes(-len(out) % 8)

    return make


def text(header: str, spec: str, fields: str) -> str:
    return str(
        bugs.flatten(
            f"#include <deep_gemm/kernel/{header}.cuh>\nusing namespace deep_gemm;\nconstexpr {spec} kSpec{{{fields}}};\n"
        )
    )


def bug_tests(
    cases: dict[str, Any], of: list[tuple[str, Bug]], check: Callable[[Launch, str, Bug], None]
) -> tuple[Any, Any]:
    """test_clean and test_bugs of a file: each case is made once, runs clean as it is, and is noticed with each bug."""
    made = lru_cache(lambda name: cases[name]())

    @pytest.mark.parametrize("name", cases)
    def test_clean(name: str) -> None:
        check_clean(*made(name))

    @pytest.mark.parametrize(("name", "bug"), of, ids=lambda value: getattr(value, "name", value))
    def test_bugs(name: str, bug: Bug) -> None:
        check(*made(name), bug)

    return test_clean, test_bugs
