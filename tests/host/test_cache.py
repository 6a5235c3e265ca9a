"""The kernel cache: hits, keys, damage, its commands, and its limit."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]


def entry_of(cache: Path) -> Path:
    (entry,) = (cache / "kernels").glob("*/nvrtc-*")
    return entry


def test_second_process_reads_the_first_ones_kernel(run_python: Run, cache: Path) -> None:
    script = "a = _C.build(source()); print(a.origin, a.lowered_name, _C.hash_hex(a.image), a.stats['registers'] > 0)"
    first, second = run_python(script).out.split(), run_python(script).out.split()
    assert (first[0], second[0]) == ("compiled", "disk")
    assert first[1:] == second[1:] == ["_Z5probePf", first[2], "True"]
    files = sorted(file.name for file in entry_of(cache).iterdir())
    assert files == ["image", "kernel.cu", "log.txt", "record.txt"]
    assert list((cache / "tmp").iterdir()) == list((cache / "locks").iterdir()) == []


def test_a_hit_needs_no_compiler_in_memory(run_python: Run) -> None:
    run_python("_C.build(source())")
    script = "print(_C.build(source()).origin, 'libnvrtc' in open('/proc/self/maps').read())"
    assert run_python(script).out == "disk False\n"


def test_what_the_key_covers(run_python: Run, cache: Path) -> None:
    script = """
probe = source()
other_entry = _C.KernelSource("probe", "__global__ void probe(float*) {} __global__ void other(float*) {}", "other")
other_name = _C.KernelSource("renamed", probe.code, probe.entry)
replay = _C.KernelSource("probe", probe.code, probe.entry, "another line")
print(_C.build(probe).origin, _C.build(source(1)).origin, _C.build(other_entry).origin, _C.build(replay).origin,
      _C.build(probe, arch="100a").origin, _C.build(probe, kind="ptx").origin)
"""
    assert run_python(script).out == "compiled compiled compiled disk compiled compiled\n"
    again = "print(_C.build(source()).origin)"
    assert run_python(again, DG_JIT_WITH_LINEINFO="1").out == "compiled\n"
    assert run_python(again, DG_JIT_OPTIONS="--fmad=false  --maxrregcount=64").lines == ["compiled"]
    assert run_python(again, DG_JIT_OPTIONS="--fmad=false --maxrregcount=64").lines == ["disk"]


def test_the_key_covers_every_device_header(run_python: Run, tmp_path: Path) -> None:
    """A library with one other character, in a comment of a header that the kernel does not even include, has kernels of
    its own: what a header means for which kernel is not guessed."""
    import deep_gemm

    package, other = Path(deep_gemm.__file__).parent, tmp_path / "other" / "deep_gemm"
    other.mkdir(parents=True)
    for path in package.iterdir():
        if path != Path(deep_gemm._C.__file__):
            (other / path.name).symlink_to(path)
    script = "print(_C.build(source()).origin, _C.__file__)"
    content = Path(deep_gemm._C.__file__).read_bytes()
    header = deep_gemm._C.device_headers()["deep_gemm/kernel/sample.cuh"].encode()
    comment = header[: header.index(b"\n") + 1]
    assert comment.startswith(b"// ") and content.count(comment) == 1
    library = other / Path(deep_gemm._C.__file__).name
    run_python(script)
    for text, origin in ((comment, "disk"), (comment.replace(b"// ", b"//!", 1), "compiled")):
        library.write_bytes(content.replace(comment, text))
        assert run_python(script, PYTHONPATH=other.parent).out.split() == [origin, str(library)]


@pytest.mark.parametrize("file", ["image", "record.txt"])
@pytest.mark.parametrize("damage", ["truncate", "flip", "delete", "empty"])
def test_damaged_entries_are_built_again(run_python: Run, cache: Path, file: str, damage: str) -> None:
    run_python("_C.build(source())")
    victim = entry_of(cache) / file
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "delete":
        victim.unlink()
    else:
        victim.write_bytes({"truncate": content[:-1], "flip": content, "empty": b""}[damage])
    assert [row["damaged"] for row in eval(run_python("print(_C.cache_verify())").out)] == [True]
    done = run_python("print(_C.build(source()).origin)")
    assert done.out == "compiled\n"
    assert "is damaged and will be built again" in done.err
    assert run_python("print(_C.build(source()).origin)").out == "disk\n"


def test_cache_commands(run_python: Run, cache: Path) -> None:
    run_python("_C.build(source()); _C.build(source(1))")
    (row, _) = eval(run_python("print(_C.cache_list())").out)
    told = [row[name] for name in ("name", "arch", "kind", "entry", "writable")]
    assert told == ["probe", "90a", "cubin", "probe", True]
    assert row["num_bytes"] > 1000
    (Path(row["folder"]) / "image").write_bytes(b"?")
    leftover = cache / "tmp" / "probe.abcdef"
    leftover.mkdir()
    os.utime(leftover, (0, 0))
    repaired = eval(run_python("print(_C.cache_verify(repair=True))").out)
    assert [row["damaged"] for row in repaired].count(True) == 1
    assert not leftover.exists()
    assert len(eval(run_python("print(_C.cache_verify())").out)) == 1
    assert eval(run_python("print(_C.cache_clear())").out)[0] == 1
    assert eval(run_python("print(_C.cache_list())").out) == []


def test_what_cannot_be_removed_is_said(run_python: Run, cache: Path) -> None:
    """Folders of /proc stand for those of another user: nobody, root neither, can move or delete them."""
    (cache / "tmp").mkdir(parents=True)
    (cache / "kernels").symlink_to("/proc/self/task")
    script = """
count = len(_C.cache_list())
for done in (fails(_C.cache_clear), fails(_C.cache_verify, repair=True)): print(*done, count)
"""
    for line in run_python(script).lines:
        assert line.startswith("Error io kernel cache: ")
        got = line.split("cache: ")[1].split()
        assert got[0] == got[2] and int(got[0]) > 0
        assert f"in '{cache}' could not be removed (" in line
        assert "as the folder's owner, or choose another folder with DG_JIT_CACHE_DIR" in line


def test_clearing_beside_a_builder(run_python: Run) -> None:
    """Whatever moment a clear hits, the builder goes on storing what it builds."""
    script = """
import threading
done = False
def clear():
    while not done: _C.cache_clear()
thread = threading.Thread(target=clear)
thread.start()
for i in range(30): _C.build(source(i))
done = True
thread.join()
_C.build(source(30))
print(len(_C.cache_list()), [row["damaged"] for row in _C.cache_verify()][-1])
"""
    finished = run_python(script)
    assert finished.err == ""
    count, damaged = finished.out.split()
    assert int(count) >= 1
    assert damaged == "False"


FILL = """
import shutil
def fill(count, bytes=1 << 18):
    (one,) = os.listdir(KERNELS)
    for i in range(count):
        copy = f"{KERNELS}/{one.rpartition('.')[0]}.{i:032x}"
        shutil.copytree(f"{KERNELS}/{one}", copy)
        (entry,) = os.listdir(copy)
        with open(f"{copy}/{entry}/log.txt", "w") as log: log.write("x" * bytes)
        os.utime(f"{copy}/{entry}/record.txt", (1000 + i, 1000 + i))

def kept():
    return sorted(int(name.rpartition(".")[2], 16) for name in os.listdir(KERNELS) if int(name.rpartition(".")[2], 16) < 1 << 20)
"""


def test_a_limit_removes_what_was_used_last_the_longest_ago(run_python: Run, cache: Path) -> None:
    run_python("_C.build(source())")
    script = f"""KERNELS = {str(cache / "kernels")!r}
{FILL}
import fcntl
fill(6)
os.makedirs({str(cache / "locks")!r}, exist_ok=True)
held = open({str(cache / "locks")!r} + f"/{{1:032x}}", "w")
fcntl.flock(held, fcntl.LOCK_EX)  # someone builds kernel 1
print(_C.build(source()).origin, kept())  # a hit removes nothing
print(_C.build(source(1)).origin, kept())
print(_C.build(source()).origin, _C.build(source(1)).origin)
"""
    done = run_python(script, DG_JIT_CACHE_MAX_MB="1", DG_LOG_LEVEL="info")
    # 1.5 MiB and two small kernels: down to nine tenths of one, the oldest first, but not the one in use.
    assert done.lines == ["disk [0, 1, 2, 3, 4, 5]", "compiled [1, 4, 5]", "disk disk"]
    assert "3 of 8 kernels removed, 0 of 1 MiB (DG_JIT_CACHE_MAX_MB=1)" in done.err
    assert not list((cache / "tmp").iterdir())


def test_no_limit(run_python: Run, cache: Path) -> None:
    run_python("_C.build(source())")
    script = f"KERNELS = {str(cache / 'kernels')!r}\n{FILL}\nfill(6)\n_C.build(source(1))\nprint(len(kept()))"
    assert run_python(script, DG_JIT_CACHE_MAX_MB="0").out == "6\n"
    assert (
        "expected a whole number"
        in run_python("print(fails(_C.cache_list)[2])", DG_JIT_CACHE_MAX_MB="1G").out
    )


def test_a_hit_renews_an_entry(run_python: Run, cache: Path) -> None:
    run_python("_C.build(source())")
    record = entry_of(cache) / "record.txt"
    os.utime(record, (0, 0))
    run_python("_C.build(source())")
    assert record.stat().st_mtime > time.time() - 600


def test_any_version_is_better_than_no_compiler(run_python: Run, cache: Path) -> None:
    run_python("_C.build(source())")
    entry = entry_of(cache)
    older = entry.with_name("nvrtc-12.8")
    shutil.copytree(entry, older)
    newest = entry.with_name("nvrtc-13.10")
    shutil.copytree(entry, newest)
    shutil.copytree(entry, entry.with_name("nvrtc-13.9"))
    touched = {folder: (folder / "record.txt").stat().st_mtime_ns for folder in entry.parent.iterdir()}
    assert run_python("print(_C.build(source()).origin)", DG_NVRTC_PATH="/nowhere").out == "disk\n"
    renewed = [f.name for f in entry.parent.iterdir() if (f / "record.txt").stat().st_mtime_ns != touched[f]]
    assert renewed == ["nvrtc-13.10"]  # the newest, in numbers
    for folder in (entry, newest, entry.with_name("nvrtc-13.9")):
        shutil.rmtree(folder)
    assert run_python("print(_C.build(source()).origin)", DG_NVRTC_PATH="/nowhere").out == "disk\n"
    assert run_python("print(_C.build(source()).origin)").out == "compiled\n"  # a compiler of another version


def test_assembler_log(run_python: Run) -> None:
    script = """
code = '''__global__ void __launch_bounds__(1024, 2) spill(float* p) {
    float x[64];
    for (int i = 0; i < 64; ++i) x[i] = p[i * 7 + threadIdx.x];
    __syncthreads();
    for (int i = 0; i < 64; ++i) for (int j = 0; j < 64; ++j) x[i] += x[j] * p[j];
    for (int i = 0; i < 64; ++i) p[i * 5 + threadIdx.x] = x[i];
}'''
stats = _C.build(_C.KernelSource("spill", code, "spill")).stats
print(stats["registers"], stats["spill_store_bytes"] > 0, stats["spill_load_bytes"] > 0, stats["stack_bytes"] > 0)
"""
    done = run_python(script)
    assert done.out == "32 True True True\n"
    assert "spill for sm_90a spills registers" in done.err
