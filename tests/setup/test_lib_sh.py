"""tools/lib.sh on machines that lack something: it says what is missing, and no failure is swallowed."""

from __future__ import annotations

import signal
import stat
import subprocess
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]
BASICS = ("bash", "cat", "cut", "dirname", "env", "nproc", "paste", "sha256sum", "true")


def run(script: str, path: Path) -> subprocess.CompletedProcess[str]:
    """Runs a script that has sourced tools/lib.sh, seeing only the programs in `path`; one that SIGINT ends, whatever
    the tests themselves were started with (in the background, shells make their children ignore it)."""
    environment = {"PATH": str(path), "HOME": str(path)}
    return subprocess.run(
        ["/bin/bash", "-c", f". {TOP}/tools/lib.sh\nPATH={path}\n{script}"],
        env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False, timeout=60,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def program(folder: Path, name: str, body: str) -> None:
    file = folder / name
    file.write_text(f"#!/bin/bash\n{body}\n")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A PATH with nothing but basic tools and no root."""
    for name in BASICS:
        for folder in ("/usr/bin", "/bin"):
            if Path(folder, name).exists() and not (tmp_path / name).exists():
                (tmp_path / name).symlink_to(Path(folder, name))
    program(tmp_path, "id", "echo 1000")
    return tmp_path


def test_without_apt_it_names_what_to_install(bare: Path) -> None:
    result = run("ensure_system", bare)
    assert result.returncode != 0
    last = result.stdout.strip().splitlines()[-1]
    assert last.startswith("FAILED: installing Debian packages: g++ libfmt-dev")
    assert "no apt-get" in last


def test_without_root_it_says_what_to_run_as_root(bare: Path) -> None:
    program(bare, "apt-get", "echo must not be called; exit 1")
    result = run("ensure_system", bare)
    assert result.returncode != 0 and "must not be called" not in result.stdout
    assert "run 'apt-get install g++ libfmt-dev" in result.stdout


def test_with_sudo_it_installs_and_checks_again(bare: Path) -> None:
    program(bare, "sudo", '[ "$1" = -n ] && shift; exec "$@"')
    program(bare, "apt-get", 'echo "apt-get $*"')
    result = run("ensure_system", bare)
    assert "apt-get -q -y --no-install-recommends install g++ libfmt-dev" in result.stdout
    assert result.returncode != 0 and "still missing after installation: g++" in result.stdout


def test_a_failing_step_names_itself_and_keeps_its_exit_status(bare: Path) -> None:
    result = run('step "doing the thing" "do it by hand"; bash -c "exit 7"; echo not reached', bare)
    assert result.returncode == 7
    assert result.stdout.endswith("\nFAILED: doing the thing (do it by hand)\n")


def test_stamps_depend_on_contents(bare: Path) -> None:
    file = bare / "input.txt"
    stamps = set()
    for text in ("a", "b"):
        file.write_text(text)
        stamps.add(run(f"stamp_of word {file}", bare).stdout)
    assert len(stamps) == 2


def test_an_interruption_is_not_the_fault_of_the_step(bare: Path) -> None:
    result = run('step "installing" "look at the network"; kill -INT $$; echo not reached', bare)
    assert result.returncode == 130
    assert result.stdout.endswith(
        "\nFAILED: interrupted while installing (run the command again; it goes on where it can)\n"
    )


def test_a_working_venv_is_kept_whatever_python_comes_first(bare: Path) -> None:
    venv = bare / "venv"
    (venv / "bin").mkdir(parents=True)
    program(bare, "python3", 'echo "other $*" >>"$HOME/calls"')
    program(venv / "bin", "python", "exit 0")
    (bare / "grep").symlink_to("/usr/bin/grep")
    script = f"VENV={venv}; base=$(base_python); echo $base; make_venv $base"
    assert run(script, bare).stdout.splitlines()[0] == str(bare / "python3")  # not made at this place
    (venv / "bin" / "activate").write_text(f'VIRTUAL_ENV="{venv}"\n')
    assert run(script, bare).stdout == f"{venv}/bin/python\n"
    program(venv / "bin", "python", "exit 1")
    assert run(script, bare).stdout.splitlines()[0] == str(bare / "python3")


def test_a_link_to_an_environment_elsewhere_is_not_cleared(bare: Path) -> None:
    (bare / "elsewhere" / "bin").mkdir(parents=True)
    (bare / "venv").symlink_to(bare / "elsewhere")
    (bare / "readlink").symlink_to("/usr/bin/readlink")
    program(bare, "python3", 'echo "python $*"')
    result = run(f"VENV={bare}/venv; make_venv python3", bare)
    assert result.returncode != 0 and "-m venv" not in result.stdout
    assert "expected a folder of this checkout: remove the link)" in result.stdout
    assert (bare / "elsewhere" / "bin").is_dir()


@pytest.mark.parametrize(
    ("flags", "level"),
    [("fpu avx2 bmi1 bmi2 f16c fma abm movbe", "x86-64-v3"), ("fpu avx2 bmi1 bmi2 f16c fma4 abm movbe", "")],
)
def test_the_level_of_the_processor(bare: Path, flags: str, level: str) -> None:
    """Only what all flags speak for: a library built for more ends in an illegal instruction."""
    (bare / "grep").symlink_to("/usr/bin/grep")
    (bare / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: {flags}\n")
    assert run(f"CPUINFO={bare}/cpuinfo cpu_level", bare).stdout.strip() == level
