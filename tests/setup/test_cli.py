"""The command line: help on each command, plain output in pipes, one clear line on failure."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

COMMANDS = [
    "demo",
    "inspect",
    "fp4",
    "explain",
    "env",
    "cache",
    "cache list",
    "cache clear",
    "cache verify",
    "warmup",
    "bundle",
    "bench",
]


def cli(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "DG_DEVICE": "emulator:sm_90a", **variables}
    command = [sys.executable, "-m", "deep_gemm", *arguments]
    return subprocess.run(command, env=environment, text=True, capture_output=True, check=False, timeout=240)


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help(command: str) -> None:
    result = cli(*command.split(), "--help")
    assert result.returncode == 0 and "Usage: python -m deep_gemm" in result.stdout, result.stderr


def test_explain_shows_the_choice() -> None:
    result = cli("explain", "gemm m=64 n=7168 k=2048 a=fp8_e4m3 d=bf16")
    assert result.returncode == 0, result.stderr
    assert "m=64 n=7168 k=2048" in result.stdout and "rejected" in result.stdout


def test_a_bad_problem_is_one_line() -> None:
    result = cli("explain", "gemm m=64 n=banana k=2048")
    assert result.returncode == 1 and result.stdout == ""
    assert (
        result.stderr.startswith("Error: ") and "banana" in result.stderr and "Traceback" not in result.stderr
    )


@pytest.mark.parametrize("command", ["explain", "warmup", "bundle kernels.bundle"])
def test_a_problem_without_a_size_names_it(command: str) -> None:
    result = cli(*command.split(), "gemm m=64 n=7168")
    assert result.returncode == 1 and "'gemm m=64 n=7168' without k=;" in result.stderr
    assert "without n= and k=;" in cli(*command.split(), "gemm m=64").stderr


@pytest.mark.parametrize("tool", ["test", "demo", "check"])
def test_tools_have_help(tool: str) -> None:
    script = Path(__file__).resolve().parents[2] / "tools" / tool
    for argument in ("--help", "-h"):
        result = subprocess.run(["bash", script, argument], text=True, capture_output=True, timeout=60)
        assert result.returncode == 0 and result.stderr == ""
        assert len(result.stdout.splitlines()) >= 2 and "lib.sh" not in result.stdout


def test_env_names_the_device_and_unknown_variables() -> None:
    result = cli("env", DG_DEVICES="cuda")
    assert (
        result.returncode == 0 and "emulator:sm_90a" in result.stdout and "DG_JIT_CACHE_DIR" in result.stdout
    )
    assert "DG_DEVICES is set" in result.stderr
    assert cli("env", "--device").stdout == "emulator:sm_90a\n"


def test_cache_life(tmp_path: Path) -> None:
    folder = {"DG_JIT_CACHE_DIR": str(tmp_path / "cache")}
    assert "no kernels" in cli("cache", "list", **folder).stdout
    built = cli("warmup", "gemm m=1 n=256 k=256 a=fp8_e4m3 d=bf16", **folder)
    assert built.returncode == 0, built.stderr
    listing = cli("cache", "list", **folder)
    assert "sm90" in listing.stdout and " in all, " in listing.stdout and "block_n=" in listing.stdout
    assert cli("cache", "verify", **folder).returncode == 0
    assert cli("cache", "clear", "--yes", **folder).returncode == 0
    assert "no kernels" in cli("cache", "list", **folder).stdout


def test_demo_on_a_small_text(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 4)
    sizes = ["--tokens", "24", "--hidden", "256", "--outputs", "128", "--experts", "3"]
    result = cli("demo", "--part", "layer", str(text), *sizes)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.strip().splitlines()[-1].startswith("PASSED: grouped FP8 GEMM")
    assert "\x1b[" not in result.stdout


def test_demo_rejects_sizes_it_cannot_scale() -> None:
    result = cli("demo", "--hidden", "200")
    assert result.returncode == 1 and "multiples of 128" in result.stderr
