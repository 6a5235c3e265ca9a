"""The kernel cache under several threads and processes: built once, whoever is killed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Run = Callable[..., Any]
SLOW = 1200  # statements of a kernel that takes some tenths of a second to compile


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
