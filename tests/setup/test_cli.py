"""The command line: help on each command, plain output in pipes, one clear line on failure."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from deep_gemm.cli import main


def commands(group: click.Group, before: str = "") -> Iterator[str]:
    """Every command and group, as it is typed."""
    for name, command in group.commands.items():
        yield before + name
        if isinstance(command, click.Group):
            yield from commands(command, f"{before}{name} ")


def cli(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "DG_DEVICE": "emulator:sm_90a", **variables}
    command = [sys.executable, "-m", "deep_gemm", *arguments]
    return subprocess.run(command, env=environment, text=True, capture_output=True, check=False, timeout=240)


@pytest.mark.parametrize("command", [name for name in commands(main) if name != "bench"])
def test_help(command: str) -> None:
    result = CliRunner().invoke(main, [*command.split(), "--help"], prog_name="python -m deep_gemm")
    assert result.exit_code == 0, result.output
    assert "Usage: python -m deep_gemm" in result.output and len(result.output.splitlines()) > 4


@pytest.mark.parametrize("command", ["bench", "bench model", "bench speculation"])
def test_help_of_what_runs_in_a_process_of_its_own(command: str) -> None:
    result = cli(*command.split(), "--help")
    assert result.returncode == 0 and f"Usage: python -m deep_gemm {command}" in result.stdout, result.stderr


def test_help_of_the_program() -> None:
    result = cli("--help")
    assert result.returncode == 0 and result.stderr == ""
    assert result.stdout.startswith("Usage: python -m deep_gemm [OPTIONS] COMMAND")
    for command in ("demo", "explain", "env", "cache", "warmup", "bench"):
        assert f"\n  {command} " in result.stdout


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
    assert "unknown key 'kk'; expected m, n, k" in cli(*command.split(), "gemm m=64 n=7168 kk=64").stderr


def test_devices_of_plans_are_told() -> None:
    result = cli("explain", "gemm m=64 n=7168 k=2048", "--device", "90a")
    assert result.returncode == 1 and "as in 90a:132, or a device, as in cuda:0 or emulator" in result.stderr
    assert "mxfp4, nvfp4" in cli("explain", "linear w=mxfp5 m=1 n=128 k=128").stderr


def test_a_bundle_makes_no_folders(tmp_path: Path) -> None:
    result = cli("bundle", str(tmp_path / "new" / "kernels.bundle"), "gemm m=1 n=256 k=256")
    assert result.returncode == 1 and result.stdout == ""
    assert f"is in no folder that exists; make '{tmp_path / 'new'}' first" in result.stderr
    assert not (tmp_path / "new").exists()


def test_files_that_are_none_of_ours(tmp_path: Path) -> None:
    foreign = tmp_path / "README.md"
    foreign.write_text("# Not a checkpoint\n")
    for command in (["inspect", str(foreign)], ["generate", "Hi", "--model", str(foreign)]):
        assert (
            "expected a safetensors or GGUF file; pass a checkpoint's folder or file" in cli(*command).stderr
        )
    assert (
        "expected at most the model's 4096; pass less" in cli("generate", "Hi", "--context", "100000").stderr
    )


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
    assert cli("env", "--name", "--device", "emulator").stdout == "emulator:sm_90a\n"


def test_cache_life(tmp_path: Path) -> None:
    folder = {"DG_JIT_CACHE_DIR": str(tmp_path / "cache")}
    assert "no kernels" in cli("cache", "list", **folder).stdout
    built = cli("warmup", "gemm m=1 n=256 k=256 a=fp8_e4m3 d=bf16", **folder)
    assert built.returncode == 0, built.stderr
    listing = cli("cache", "list", **folder)
    assert "sm90" in listing.stdout and " in all, " in listing.stdout and "block_n=" in listing.stdout
    narrow = cli("cache", "list", **folder, COLUMNS="80").stdout.splitlines()[:-1]
    assert max(map(len, narrow)) == 80 and all(line.endswith("...") for line in narrow[1:])
    details = cli("cache", "list", "--verbose", **folder).stdout
    assert "accumulate=false" in details and str(tmp_path / "cache" / "kernels") in details
    assert cli("cache", "verify", **folder).returncode == 0
    assert cli("cache", "clear", "--yes", **folder).returncode == 0
    assert "no kernels" in cli("cache", "list", **folder).stdout


def test_demo_on_a_small_text(device: Any, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 4)
    sizes = ["--tokens", "24", "--hidden", "256", "--outputs", "128", "--experts", "3"]
    name = "emulator:sm_90a" if device.emulated else "cuda"
    result = cli("demo", "--part", "layer", str(text), *sizes, DG_DEVICE=name)
    assert result.returncode == 0, result.stdout + result.stderr
    assert (name if device.emulated else device.properties["name"]) in result.stdout
    assert result.stdout.strip().splitlines()[-1].startswith("PASSED: grouped FP8 GEMM")
    assert "\x1b[" not in result.stdout


def test_demo_rejects_sizes_it_cannot_scale() -> None:
    result = cli("demo", "--hidden", "200")
    assert result.returncode == 1 and "multiples of 128" in result.stderr


def test_a_demo_beyond_memory_is_one_line() -> None:
    """2^51 numbers of fp32, which no address space has."""
    result = cli("demo", "--part", "layer", "--experts", "2", "--outputs", str(1 << 40), "--tokens", "1")
    assert result.returncode == 1 and result.stderr.startswith("Error: "), result.stderr
    assert "Unable to allocate" in result.stderr and "ask for less" in result.stderr


def test_demo_names_what_is_empty(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    result = cli("demo", "--part", "layer", str(tmp_path / "empty.txt"))
    assert result.returncode == 1 and result.stdout == "" and "got an empty file" in result.stderr
    assert "got an empty prompt" in cli("demo", "--part", "text", "--prompt", "").stderr
    assert "got an empty prompt" in cli("generate", "").stderr
    assert "'--seed': -3 is not in the range" in cli("demo", "--seed", "-3").stderr


def test_explain_takes_every_family() -> None:
    assert "large-batch form" in cli("explain", "linear w=mxfp4 m=512 n=14336 k=4096").stdout
    assert "chosen" in cli("explain", "fp4_gemm m=4 n=4096 k=4096").stdout
    assert "expected a 'gemm' one" in cli("warmup", "fp4_gemm m=4 n=4096 k=4096").stderr


def test_a_home_without_a_cache_folder_is_said() -> None:
    nowhere = {"DG_JIT_CACHE_DIR": "", "XDG_CACHE_HOME": "", "HOME": ""}
    for command in (("cache", "list"), ("cache", "verify"), ("env",)):
        assert "no cache folder: none of DG_JIT_CACHE_DIR" in cli(*command, **nowhere).stdout


def test_env_without_a_compiler_fails() -> None:
    result = cli("env", DG_NVRTC_PATH="/nonexistent")
    assert result.returncode == 1 and "DG_NVRTC_PATH" in result.stdout


def test_damage_in_a_folder_that_is_only_read_stays_and_is_said(tmp_path: Path) -> None:
    (tmp_path / "shared" / "kernels" / "some.00" / "nvrtc-13.0").mkdir(parents=True)
    folders = {
        "DG_JIT_CACHE_DIR": str(tmp_path / "own"),
        "DG_JIT_READONLY_CACHE_DIRS": str(tmp_path / "shared"),
    }
    result = cli("cache", "verify", "--repair", **folders)
    assert result.returncode == 1
    assert "1 of 1 damaged, 0 removed; 1 in folders that are only read" in result.stdout


def test_bench_model_on_the_emulator_is_for_the_tiny_config() -> None:
    result = cli("bench", "model", "--config", "flash")
    assert result.returncode == 1 and "got config flash on the emulated GPU, expected tiny" in result.stderr


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        (
            "--ops=foo",
            "got --ops foo, expected one of decode, verify, draft, iterate, prefill, head and a number",
        ),
        ("--ops=decode:x", "got --ops decode:x, expected one of"),
        ("--ops=decode:0", "got --ops decode:0, expected one of"),
        ("--context=100000000", "got a context of 100000000, expected at most the model's 1048576"),
        ("--device=nothing", "device: got 'nothing', expected cuda"),
    ],
)
def test_bench_model_refuses_in_one_line(tmp_path: Path, option: str, sentence: str) -> None:
    result = cli("bench", "model", option, f"--out={tmp_path}")
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert result.returncode == 1 and len(errors) == 1 and sentence in errors[0], result.stderr
    assert "Traceback" not in result.stderr


def test_a_reader_that_has_gone_ends_it_quietly() -> None:
    """As in `python -m deep_gemm cache list | head`: nobody is left to tell."""
    read, write = os.pipe()
    os.close(read)
    try:
        command = [sys.executable, "-m", "deep_gemm", "explain", "gemm m=64 n=7168 k=2048"]
        environment = {**os.environ, "DG_DEVICE": "emulator:sm_90a"}
        result = subprocess.run(command, env=environment, stdout=write, stderr=subprocess.PIPE, timeout=240)
    finally:
        os.close(write)
    assert result.stderr == b""


@pytest.mark.parametrize(
    ("closed", "status", "said"),
    [
        ("<&-", 1, "got an empty prompt"),
        (">&-", 0, "prompt 2 tokens"),
        ("2>&-", 0, ""),
        ("<&- >&- 2>&-", 1, ""),
    ],
)
def test_closed_streams_are_empty(closed: str, status: int, said: str) -> None:
    prompt = "" if "<" in closed else "The"
    command = f"{sys.executable} -m deep_gemm generate {prompt} --max-tokens 1 --stats {closed}"
    environment = {**os.environ, "DG_DEVICE": "emulator:sm_90a"}
    result = subprocess.run(
        ["sh", "-c", command], env=environment, text=True, capture_output=True, check=False, timeout=240
    )
    assert result.returncode == status and said in result.stderr and "Traceback" not in result.stderr, result
