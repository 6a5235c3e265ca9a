"""Reads file names from standard input; reports lines per folder, fails on files too long to read.

A file also has to open with a comment (or docstring) that says what it is. Empty files are fine.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

ASK_AT = 400  # reported: is there a seam to split at?
SPLIT_AT = 600  # an error


def opening_problem(path: Path, text: str) -> str | None:
    """Why the opening lines do not say what the file is, or None."""
    first = text.lstrip().splitlines()[0] if text.strip() else ""
    if path.suffix == ".py" and path.name != "__init__.py":
        starts: tuple[str, ...] = ('"""', "#", 'r"""')
    else:
        starts = ("//", "/*", '"""', "#", "from", "import")
    good = not first or first.startswith(starts)
    return None if good else f"{path}:1: opens with no comment that says what it is"


def main() -> int:
    lines_in: Counter[str] = Counter()
    problems: list[str] = []
    long_files: list[str] = []
    for name in sys.stdin.read().split("\n"):
        if not name:
            continue
        path = Path(name)
        text = path.read_text(encoding="utf-8")
        count = text.count("\n")
        lines_in["/".join(path.parts[:2]) if len(path.parts) > 2 else path.parts[0]] += count
        problem = opening_problem(path, text)
        if problem:
            problems.append(problem)
        if count > SPLIT_AT:
            problems.append(f"{name}: {count} lines; split files at {SPLIT_AT}")
        elif count > ASK_AT:
            long_files.append(f"{name} {count}")
    print("    lines: " + ", ".join(f"{folder} {count}" for folder, count in sorted(lines_in.items())))
    if long_files:
        print(f"    over {ASK_AT}: " + ", ".join(long_files))
    print("\n".join(problems), end="\n" if problems else "")
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
