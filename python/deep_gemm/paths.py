"""Names of files as arguments: text, bytes or a path object; a number is refused, which str() would make a name of."""

from __future__ import annotations

import os
from typing import Any

__all__ = ["path_text"]


def path_text(call: str, path: Any) -> str:
    """`path` as text."""
    try:
        return os.fsdecode(path)
    except TypeError:
        raise TypeError(
            f"{call}: path is {path!r} of type {type(path).__name__}, expected a str or a pathlib.Path; "
            "pass the name of a file"
        ) from None
