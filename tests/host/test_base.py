"""The environment table, the log sink, the hash, and the layouts that were written down after the driver's ABI."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]
ROOT = Path(__file__).parents[2]


def test_env_table(run_python: Run) -> None:
    rows = {row["name"]: row for row in eval(run_python("print(_C.env())", DG_LOG_LEVEL="info").out)}
    assert rows["DG_LOG_LEVEL"]["value"] == "info"
    assert rows["DG_LOG_LEVEL"]["is_set"]
    assert rows["DG_JIT_LOCK_TIMEOUT_S"]["value"] == rows["DG_JIT_LOCK_TIMEOUT_S"]["default"]
    assert all(row["meaning"] and name.startswith("DG_") for name, row in rows.items())


def test_unknown_variables(run_python: Run) -> None:
    assert run_python("print(_C.unknown_env_names())", DG_JIT_CACHEDIR="/x").out == "['DG_JIT_CACHEDIR']\n"
    assert run_python("print(_C.unknown_env_names())").out == "[]\n"


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        (
            "DG_JIT_LOCK_TIMEOUT_S",
            "soon",
            "got 'soon', expected a whole number, not negative; unset it for the default (60)",
        ),
        ("DG_JIT_WITH_LINEINFO", "maybe", "got 'maybe', expected 1 or 0"),
        ("DG_LOG_LEVEL", "loud", "got 'loud', expected off, error, warning, info or debug"),
    ],
)
def test_bad_values(run_python: Run, name: str, value: str, expected: str) -> None:
    assert f"{name}: {expected}" in run_python("print(*fails(_C.build, source()))", **{name: value}).out


def test_log_sink(run_python: Run) -> None:
    script = """
lines = []
_C.set_log_sink(lambda level, message: lines.append(level + " " + message))
_C.build_all([source(i) for i in range(4)])
print(len(lines), lines[0].startswith("info probe for sm_90a: compiled in"))
_C.set_log_sink(None)
_C.build(source(9))
print(len(lines))
"""
    done = run_python(script, DG_LOG_LEVEL="info")
    assert done.lines == ["4 True", "4"]
    assert done.err == ""
    assert run_python("_C.build(source())", DG_JIT_CACHE_DIR="/dev/null/x", DG_LOG_LEVEL="off").err == ""


def test_hash(run_python: Run) -> None:
    script = """
seen = {_C.hash_hex(bytes(n)) for n in range(300)} | {_C.hash_hex(bytes([1]) + bytes(n)) for n in range(300)}
assert len(seen) == 600
base = int(_C.hash_hex(b"deep gemm" * 9), 16)
flips = []
for bit in range(8 * 81):
    data = bytearray(b"deep gemm" * 9)
    data[bit // 8] ^= 1 << bit % 8
    flips.append((int(_C.hash_hex(data), 16) ^ base).bit_count())
assert min(flips) > 35 and 62 < sum(flips) / len(flips) < 66, (min(flips), sum(flips) / len(flips))
print(_C.hash_hex(b""), _C.hash_hex(b"deep_gemm"))
"""
    assert run_python(script).out == "a5461c47b7ab271983e5ddda629cd3ac 42047d766d3cd1e96f492fa47d32d716\n"


def test_driver_abi(compiler: str, tmp_path: Path) -> None:
    header = Path("/usr/local/cuda/include/cuda.h")
    if not header.exists():
        pytest.skip("needs cuda.h, to compare our declarations with")
    fmt = next(
        (p for p in (Path("/usr/include"), Path("/usr/local/include")) if (p / "fmt/format.h").exists()), None
    )
    command = [compiler, "-std=c++20", "-fsyntax-only", "-DFMT_HEADER_ONLY=1", f"-I{ROOT}/csrc"]
    command += [
        f"-I{ROOT}/deep_gemm_include",
        f"-I{header.parent}",
        str(Path(__file__).parent / "cuda_abi.cpp"),
    ]
    if fmt is None:
        pytest.skip("needs fmt in a system folder")
    subprocess.run(command, check=True)


def test_a_flag_is_read_as_the_table_says(run_python: Run) -> None:
    """bench_kineto's, too: it read the variable for itself, and as a number."""
    script = "from deep_gemm.testing import bench_kineto\nprint(bench_kineto(None, ('a', 'b')))"
    assert run_python(script, DG_USE_NVIDIA_TOOLS="true").out == "(1.0, 1.0)\n"
    bad = "from deep_gemm.testing import bench_kineto\nprint(*fails(bench_kineto, None, 'a'), sep='|')"
    line = run_python(bad, DG_USE_NVIDIA_TOOLS="maybe").out
    assert line.startswith("ValueError||DG_USE_NVIDIA_TOOLS: got 'maybe', expected 1 or 0")
    assert "env_flag: got 'DG_X'" in run_python("print(fails(_C.env_flag, 'DG_X')[2])").out
