"""Helpers of the host tests: a fresh interpreter per case, a stand-in libcuda, kernels small enough to compile in ms.

Most cases run in a subprocess, because the library reads its environment once and keeps its devices per process.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent

PRELUDE = """
import os, sys, time
from deep_gemm import _C

def source(number=0, work=1):
    body = "".join(f"x = x * x + {i}.5f;" for i in range(work))
    code = f"__global__ void probe(float* p) {{ float x = p[0] + {number}; {body} p[0] = x; }}"
    return _C.KernelSource("probe", code, "probe")

def fails(function, *arguments, **named):
    try:
        function(*arguments, **named)
    except Exception as error:
        return type(error).__name__, getattr(error, "kind", ""), str(error)
    raise AssertionError("nothing was raised")
"""


@dataclass(frozen=True)
class Finished:
    """What a script printed."""

    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()


Start = Callable[..., "subprocess.Popen[str]"]
Run = Callable[..., Finished]


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """The cache folder of start_python and run_python; not made yet."""
    return tmp_path / "cache"


@pytest.fixture
def start_python(cache: Path) -> Start:
    """Starts a script after PRELUDE, with an empty cache and only the given DG_* variables."""

    def start(script: str, **variables: str | Path) -> subprocess.Popen[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("DG_")}
        environment["DG_JIT_CACHE_DIR"] = str(cache)
        environment.update({name: str(value) for name, value in variables.items()})
        return subprocess.Popen(
            [sys.executable, "-c", PRELUDE + script],
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    return start


@pytest.fixture
def run_python(start_python: Start) -> Run:
    """Runs a script to its end and expects success."""

    def run(script: str, **variables: str | Path) -> Finished:
        process = start_python(script, **variables)
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        return Finished(out, err)

    return run


@pytest.fixture(scope="session")
def compiler() -> str:
    """A C++ compiler on this machine."""
    found = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if found is None:
        pytest.skip("needs a C++ compiler")
    return found


@pytest.fixture(scope="session")
def fake_libcuda(compiler: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A libcuda without a GPU behind it; see fake_libcuda.cpp for what FAKE_* variables do."""
    library = tmp_path_factory.mktemp("fake") / "libcuda.so.1"
    command = [
        compiler,
        "-std=c++17",
        "-shared",
        "-fPIC",
        "-o",
        str(library),
        str(FOLDER / "fake_libcuda.cpp"),
    ]
    subprocess.run(command, check=True)
    return library
