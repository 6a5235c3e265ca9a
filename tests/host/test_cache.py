"""The kernel cache: hits, damage, folders that cannot be written, races of processes, killed builders, bundles."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]
SLOW = 1200  # statements of a kernel that takes some tenths of a second to compile


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


def test_relocatable_and_readonly_roots(run_python: Run, cache: Path, tmp_path: Path) -> None:
    run_python("_C.build(source())")
    moved = tmp_path / "elsewhere"
    shutil.move(cache, moved)
    roots = f"{tmp_path}/missing:{moved}"
    done = run_python("print(_C.build(source()).origin, _C.cache_roots())", DG_JIT_READONLY_CACHE_DIRS=roots)
    assert done.out.split()[0] == "disk"
    assert str(moved) in done.out
    assert not cache.exists()


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


def test_eight_processes_race(start_python: Run, cache: Path) -> None:
    script = f"""
while not os.path.exists({str(cache)!r} + ".go"): time.sleep(0.001)
print(*[_C.build(source(i, {SLOW // 4})).origin for i in range(3)])
"""
    processes = [start_python(script) for _ in range(8)]
    time.sleep(1.0)
    cache.with_suffix(".go").touch()
    origins = []
    for process in processes:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert err == ""
        origins.append(out.split())
    for kernel in zip(*origins, strict=True):
        assert sorted(kernel) == ["compiled"] + ["disk"] * 7  # built once, whoever came first


def wait_for_lock(cache: Path) -> None:
    deadline = time.monotonic() + 30
    while not list((cache / "locks").glob("*")):
        assert time.monotonic() < deadline, "no build began"
        time.sleep(0.001)


def test_a_killed_builder_blocks_nobody(start_python: Run, run_python: Run, cache: Path) -> None:
    builder = start_python(f"_C.build(source(0, {SLOW}))")
    wait_for_lock(cache)
    builder.send_signal(signal.SIGKILL)
    builder.communicate()
    assert list((cache / "locks").iterdir()), "the builder was killed too late"
    done = run_python(f"t = time.time(); print(_C.build(source(0, {SLOW})).origin, time.time() - t < 20)")
    assert done.out == "compiled True\n"
    assert list((cache / "locks").iterdir()) == []


def test_a_killed_builder_with_a_living_child(start_python: Run, run_python: Run, cache: Path) -> None:
    # The child inherits the locked file: the kernel keeps the lock, the recorded process id gives it away.
    builder = start_python(f"""
import threading
threading.Thread(target=_C.build, args=(source(0, {SLOW}),), daemon=True).start()
while not os.path.isdir({str(cache / "locks")!r}) or not os.listdir({str(cache / "locks")!r}): time.sleep(0.001)
child = os.fork()
if child == 0:
    time.sleep(30)
    os._exit(0)
print(child, flush=True)
time.sleep(30)
""")
    child = int(builder.stdout.readline())
    try:
        builder.send_signal(signal.SIGKILL)
        builder.wait()
        done = run_python(f"t = time.time(); print(_C.build(source(0, {SLOW})).origin, time.time() - t < 20)")
        assert done.out == "compiled True\n"
    finally:
        os.kill(child, signal.SIGKILL)


def test_lock_timeout(start_python: Run, run_python: Run, cache: Path) -> None:
    # A holder that lives but does not finish: whoever waits builds for itself.
    holder = start_python(f"""
import fcntl, socket
_C.build(source())
os.makedirs({str(cache / "locks")!r}, exist_ok=True)
(entry,) = os.listdir({str(cache / "kernels")!r})
file = open({str(cache / "locks")!r} + "/" + entry.split(".")[-1], "w")
fcntl.flock(file, fcntl.LOCK_EX)
file.write(f"{{os.getpid()}} {{socket.gethostname()}}")
file.flush()
import shutil; shutil.rmtree({str(cache / "kernels")!r})
print("held", flush=True)
time.sleep(60)
""")
    assert holder.stdout.readline() == "held\n"
    try:
        done = run_python(
            "t = time.time(); print(_C.build(source()).origin, time.time() - t)", DG_JIT_LOCK_TIMEOUT_S="1"
        )
        assert done.out.split()[0] == "compiled"
        assert 1 <= float(done.out.split()[1]) < 10
    finally:
        holder.kill()


def test_other_threads_run_during_a_compile(run_python: Run) -> None:
    script = f"""
import threading
ticks, done = 0, False
def tick():
    global ticks
    while not done:
        ticks += 1
        time.sleep(0.001)
thread = threading.Thread(target=tick)
thread.start()
before = ticks
_C.build(source(0, {SLOW}))
print(ticks - before > 20)
done = True
"""
    assert run_python(script).out == "True\n"


def test_threads_build_once_and_in_parallel(run_python: Run, fake_libcuda: Path) -> None:
    script = """
import threading
device, origins = _C.Device("cuda"), []
def work():
    for number in range(4):
        origins.append((number, _C.load_kernel(device, source(number, 100))[1]))
threads = [threading.Thread(target=work) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(len(origins), {origin for _, origin in origins} <= {"compiled", "memory"}, len(_C.cache_list()))
print([_C.load_kernel(device, source(number, 100))[1] for number in range(4)])
"""
    done = run_python(script, DG_LIBCUDA_PATH=fake_libcuda, DG_LOG_LEVEL="info")
    assert done.lines == ["32 True 4", "['memory', 'memory', 'memory', 'memory']"]
    assert done.err.count("compiled in") == 4  # the threads that lost the race waited


def test_warm_up(run_python: Run, fake_libcuda: Path) -> None:
    script = """
device, calls = _C.Device("cuda"), []
sources = [source(i) for i in range(5)]
_C.load_all(device, sources, progress=lambda *call: calls.append(call), threads=2)
print([call[:2] for call in calls], {call[2:4] for call in calls}, _C.load_kernel(device, sources[3])[1])
artifacts = _C.build_all(sources, progress=lambda *call: None)
print([artifact.origin for artifact in artifacts])
bad = _C.KernelSource("broken", "error", "broken")
print(fails(_C.load_all, device, [bad, source(9)])[1], _C.load_kernel(device, source(9))[1])
def stop(*call): raise KeyError("stop")
print(fails(_C.build_all, sources, progress=stop)[0])
"""
    done = run_python(script, DG_LIBCUDA_PATH=fake_libcuda)
    assert done.lines == [
        "[(1, 5), (2, 5), (3, 5), (4, 5), (5, 5)] {('probe', 'compiled')} memory",
        "['disk', 'disk', 'disk', 'disk', 'disk']",
        "compile memory",
        "KeyError",
    ]


def test_bundle(run_python: Run, cache: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "sub" / "kernels.bundle"
    run_python(f"_C.write_bundle({str(bundle)!r}, [source(i) for i in range(3)])")
    assert [file.name for file in bundle.parent.iterdir()] == ["kernels.bundle"]
    shutil.rmtree(cache)
    script = """
a = _C.build(source(1))
print(a.origin, a.lowered_name, a.stats["registers"] > 0, len(a.image) > 1000)
print(fails(_C.build, source(7))[1])
"""
    expected = ["bundle _Z5probePf True True", "compile"]
    opened = f"print(_C.open_bundle({str(bundle)!r}))"
    without = {"DG_NVRTC_PATH": "/nowhere"}
    assert run_python(opened + script, **without).lines == ["3", *expected]
    assert run_python(script, DG_JIT_BUNDLES=f"/missing:{bundle}", **without).lines == expected
    assert not cache.exists() or not list((cache / "kernels").glob("*"))


def test_damaged_bundles(run_python: Run, tmp_path: Path) -> None:
    bundle = tmp_path / "kernels.bundle"
    run_python(f"_C.write_bundle({str(bundle)!r}, [source(0)])")
    content = bundle.read_bytes()
    opened = f"print(fails(_C.open_bundle, {str(bundle)!r})[1:])"
    for damaged in (b"", b"not a bundle" * 20, content[:40], content[:100] + b"!" + content[101:]):
        bundle.write_bytes(damaged)
        kind, message = eval(run_python(opened).out)
        assert kind == "io"
        assert "write it again" in message
    bundle.write_bytes(content[:-1])  # the index is sound, an image is not
    done = run_python(f"_C.open_bundle({str(bundle)!r}); print(_C.build(source(0)).origin)")
    assert done.out == "disk\n"
    assert "is damaged; it is looked for elsewhere" in done.err


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
