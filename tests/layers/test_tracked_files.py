"""What lies at the top of the repository is known by name, and a binary file by its kind: nothing strays in."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]
FOLDERS = {
    ".ci", "bench", "csrc", "deep_gemm_include", "docs", "python", "tests", "third-party", "tools",
}  # fmt: skip
FILES = {
    ".clang-format", ".gitignore", "ARCHITECTURE.md", "CHANGELOG.md", "CMakeLists.txt", "CONTRIBUTING.md", "LICENSE",
    "MANIFEST.in", "README.md", "THIRD_PARTY_NOTICES", "pyproject.toml", "setup.py",
}  # fmt: skip
BINARY = {".safetensors", ".npz", ".xz", ".png"}


def tracked() -> list[Path]:
    found = subprocess.run(["git", "ls-files"], cwd=TOP, capture_output=True, text=True, check=False)
    if found.returncode != 0:
        pytest.skip("not a git checkout")
    return [Path(line) for line in found.stdout.splitlines()]


def test_the_top_holds_what_it_should() -> None:
    strays = {
        str(path) for path in tracked() if path.parts[0] not in (FOLDERS if len(path.parts) > 1 else FILES)
    }
    assert not strays, "move them, or add them to the list of this test"


def test_binary_files_are_of_known_kinds() -> None:
    strays = [
        path
        for path in tracked()
        if path.suffix not in BINARY and (TOP / path).is_file() and b"\0" in (TOP / path).read_bytes()[:4096]
    ]
    assert strays == []
