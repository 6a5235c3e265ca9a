"""Where the kernel cache may be: folders that cannot be written, full ones, none at all, and where failures are kept."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]


def entry_of(cache: Path) -> Path:
    (entry,) = (cache / "kernels").glob("*/nvrtc-*")
    return entry


def test_relocatable_and_readonly_roots(run_python: Run, cache: Path, tmp_path: Path) -> None:
    run_python("_C.build(source())")
    moved = tmp_path / "elsewhere"
    shutil.move(cache, moved)
    roots = f"{tmp_path}/missing:{moved}"
    done = run_python("print(_C.build(source()).origin, _C.cache_roots())", DG_JIT_READONLY_CACHE_DIRS=roots)
    assert done.out.split()[0] == "disk"
    assert str(moved) in done.out
    assert not cache.exists()


def test_a_damaged_readonly_entry_is_left_alone(run_python: Run, cache: Path, tmp_path: Path) -> None:
    run_python("_C.build(source())")
    (entry_of(cache) / "image").write_bytes(b"")
    done = run_python(
        "print(_C.build(source()).origin)",
        DG_JIT_READONLY_CACHE_DIRS=cache,
        DG_JIT_CACHE_DIR=tmp_path / "own",
    )
    assert done.out == "compiled\n"
    assert (entry_of(cache) / "image").exists()


@pytest.mark.parametrize("place", ["a file", "sysfs", "a locked folder"])
def test_a_folder_that_cannot_be_written(run_python: Run, tmp_path: Path, place: str) -> None:
    """Also for root, whom no permission stops: not in /sys, and not as another user."""
    folder, become = Path("/sys/none"), ""
    if place == "a file":
        folder = tmp_path / "file"
        folder.write_text("")
    elif place == "a locked folder":
        folder = tmp_path / "locked"
        folder.mkdir(mode=0o555)
        if os.geteuid() == 0:
            for parent in (tmp_path, *tmp_path.parents[:2]):
                parent.chmod(parent.stat().st_mode | 0o055)
            become = "_C.nvrtc_info(); os.setuid(65534)\n"  # opened while its files can be read
    script = become + "print(_C.build(source()).origin, _C.build(source(1)).origin)"
    done = run_python(script, DG_JIT_CACHE_DIR=folder)
    assert done.out == "compiled compiled\n"
    assert done.err.count("stay in memory only") == 1  # one warning, not one per kernel
    remedy = "check the path" if place == "a file" else "check the permissions or choose another folder"
    assert remedy in done.err
    assert place == "sysfs" or not folder.is_dir() or list(folder.iterdir()) == []


def test_no_home(run_python: Run) -> None:
    done = run_python(
        "print(_C.build(source()).origin, _C.cache_roots())", DG_JIT_CACHE_DIR="", HOME="", XDG_CACHE_HOME=""
    )
    assert done.out == "compiled []\n"


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"HOME": "/h", "XDG_CACHE_HOME": ""}, "/h/.cache/deep_gemm"),
        ({"XDG_CACHE_HOME": "/x"}, "/x/deep_gemm"),
    ],
)
def test_default_folder(run_python: Run, variables: dict[str, str], expected: str) -> None:
    assert run_python("print(_C.cache_roots())", DG_JIT_CACHE_DIR="", **variables).out == f"['{expected}']\n"


def test_full_disk(run_python: Run, cache: Path) -> None:
    script = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
print(_C.build(source()).origin, len(_C.build(source(1)).image) > 1000)
"""
    done = run_python(script)
    assert done.out == "compiled True\n"
    assert done.err.count("stay in memory only") == 1
    assert "free some space or choose another folder" in done.err
    assert not list((cache / "kernels").glob("*/nvrtc-*"))
    assert list((cache / "tmp").iterdir()) == []
    # Nothing half-written is found later.
    assert run_python("print(_C.build(source()).origin)").out == "compiled\n"


def test_a_kernel_that_does_not_compile(run_python: Run, cache: Path) -> None:
    script = """
bad = _C.KernelSource("broken", "__global__ void broken() { undeclared = 1; }", "broken")
print(fails(_C.build, bad)[2])
"""
    text = run_python(script).out
    saved = Path(text.split("source: ")[1].splitlines()[0])
    assert saved.read_text() == "__global__ void broken() { undeclared = 1; }"
    assert saved.is_relative_to(cache / "failed")
    assert 'identifier "undeclared" is undefined' in text
    assert 'identifier "undeclared" is undefined' in (saved.parent / "log.txt").read_text()
    assert "broken does not compile for sm_90a with NVRTC 1" in text
    replay = text.split("replay: python -c ")[1].splitlines()[0]
    assert "undeclared" in run_python(f"import shlex; print(fails(exec, shlex.split({replay!r})[0])[2])").out
    assert "not saved" in run_python(script, DG_JIT_KEEP_FAILED="0").out


def test_failed_sources_without_a_cache(run_python: Run, tmp_path: Path) -> None:
    """In the temporary folder, which others can write to: under a name of this user's, and no link is followed."""
    script = """
bad = _C.KernelSource("broken", "__global__ void broken() { undeclared = 1; }", "broken")
print(fails(_C.build, bad)[2])
"""
    variables = {"DG_JIT_CACHE_DIR": "/proc/none", "TMPDIR": tmp_path}
    folder = tmp_path / f"deep_gemm-failed-{os.geteuid()}"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    folder.symlink_to(elsewhere)
    assert "not saved" in run_python(script, **variables).out
    assert list(elsewhere.iterdir()) == []
    folder.unlink()
    assert f"source: {folder}/broken." in run_python(script, **variables).out
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o777)
    assert "not saved" in run_python(script, **variables).out
