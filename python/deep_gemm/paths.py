"""Names of files as arguments: text, bytes or a path object; a number is refused, which str() would make a name of."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

__all__ = ["path_text", "require_folder"]


def path_text(call: str, path: Any) -> str:
    """`path` as text."""
    try:
        text = os.fsdecode(path)
    except TypeError:
        raise TypeError(
            f"{call}: path is {path!r} of type {type(path).__name__}, expected a str or a pathlib.Path; "
            "pass the name of a file"
        ) from None
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"{call}: path is {text!r}, expected a name in UTF-8; rename it, or make a link to it"
        ) from None
    return text


def require_folder(what: str, path: str | Path) -> None:
    """ValueError where the folder that is to hold `path` does not exist: a typing error makes no folders."""
    folder = Path(path).parent
    if not folder.is_dir():
        raise ValueError(f"{what}: '{path}' is in no folder that exists; make '{folder}' first")
