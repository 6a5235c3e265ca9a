"""CudaDevice and the device registry over a stand-in libcuda: what is called, in which context, and every error text."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
Run = Callable[..., Any]

OPEN = "print(*fails(_C.Device, 'cuda'), sep='|')"


def test_missing_driver(run_python: Run) -> None:
    line = run_python(OPEN, DG_LIBCUDA_PATH="/nowhere/libcuda.so.1").out
    assert line.startswith("Error|driver|no CUDA driver: opening '/nowhere/libcuda.so.1' failed")
    assert "correct DG_LIBCUDA_PATH" in line
    assert "DG_DEVICE=emulator" in line


def test_driver_too_old(run_python: Run, fake_libcuda: Path) -> None:
    line = run_python(OPEN, DG_LIBCUDA_PATH=fake_libcuda, FAKE_VERSION="11040").out
    assert "is too old: got CUDA 11.4, expected 12.4 or newer; update the NVIDIA driver" in line
    assert str(fake_libcuda) in line


def test_driver_without_an_entry_point(run_python: Run, compiler: str, tmp_path: Path) -> None:
    library = tmp_path / "libcuda.so.1"
    source = str(FOLDER / "fake_libcuda.cpp")
    command = [
        compiler,
        "-std=c++17",
        "-shared",
        "-fPIC",
        "-DWITHOUT_GRAPH_LAUNCH",
        "-o",
        str(library),
        source,
    ]
    subprocess.run(command, check=True)
    assert "has no cuGraphLaunch" in run_python(OPEN, DG_LIBCUDA_PATH=library).out


def test_no_gpu(run_python: Run, fake_libcuda: Path) -> None:
    line = run_python(OPEN, DG_LIBCUDA_PATH=fake_libcuda, FAKE_DEVICES="0").out
    assert "the CUDA driver sees no GPU: got 0 devices; check nvidia-smi and CUDA_VISIBLE_DEVICES" in line


def test_default_device_without_a_gpu(run_python: Run, fake_libcuda: Path) -> None:
    script = "print(_C.Device().emulated, _C.Device().emulated)"
    done = run_python(script, DG_LIBCUDA_PATH="/nowhere/libcuda.so.1")
    assert (done.out, done.err) == ("True True\n", "")
    done = run_python(script, DG_LIBCUDA_PATH=fake_libcuda, FAKE_VERSION="11040")
    assert done.out == "True True\n"
    # A driver that is there and not used is news.
    assert done.err.count("using the emulated GPU, because: CUDA driver") == 1
    done = run_python("print(_C.Device().arch)", DG_DEVICE="emulator:sm_100a", DG_LIBCUDA_PATH=fake_libcuda)
    assert done.out == "100a\n"


def test_ordinal_out_of_range(run_python: Run, fake_libcuda: Path) -> None:
    line = run_python("print(*fails(_C.Device, 'cuda:3'), sep='|')", DG_LIBCUDA_PATH=fake_libcuda).out
    assert line.startswith("ValueError||device: got cuda:3, expected cuda:0 to cuda:0")


def test_bad_names(run_python: Run) -> None:
    script = "for name in ('gpu', 'cuda:x', 'cuda:'): print(fails(_C.Device, name)[2])"
    for line in run_python(script).lines:
        assert line.startswith("device: got '")
    script = "print(fails(_C.Device, 'cuda', seed=3)[2])"
    assert "only the emulated GPU has options" in run_python(script).out


def test_a_failing_call_says_all(run_python: Run, fake_libcuda: Path) -> None:
    script = "print(*fails(_C.Device('cuda').allocate, 1 << 20), sep='|')"
    line = run_python(script, DG_LIBCUDA_PATH=fake_libcuda, FAKE_FAIL="cuMemAlloc_v2").out
    assert line.startswith("Error|driver|cuMemAlloc_v2(0x")
    assert ", 1048576) failed at csrc/driver/" in line
    assert "got CUDA_ERROR_OUT_OF_MEMORY (2, as asked for), expected success; free device memory" in line


def test_a_failing_launch_names_the_kernel(run_python: Run, fake_libcuda: Path) -> None:
    script = """
device = _C.Device("cuda")
kernel = device.load_module(b"image").kernel("my_kernel")
print(fails(device.launch, kernel, b"12345678", grid=7, block=128, cluster=(1, 1, 1), smem_bytes=99)[2])
"""
    line = run_python(script, DG_LIBCUDA_PATH=fake_libcuda, FAKE_FAIL="cuLaunchKernelEx", FAKE_CODE="700").out
    assert "kernel my_kernel, grid 7x1x1, cluster 1x1x1, block 128x1x1, 99 bytes of shared memory" in line
    assert "run the same call on the emulated GPU" in line


def test_properties(run_python: Run, fake_libcuda: Path) -> None:
    script = """
device = _C.Device()
print(device.name, device.arch, device.num_sms, device.emulated, device.image_kind, device.properties["driver_version"])
assert _C.Device("cuda:0").name == device.name
"""
    out = run_python(script, DG_LIBCUDA_PATH=fake_libcuda).out
    assert out == "Fake GPU 90a 132 False cubin 13000\n"


def test_launch_attributes(run_python: Run, fake_libcuda: Path, tmp_path: Path) -> None:
    script = """
device = _C.Device("cuda")
kernel = device.load_module(b"image").kernel("k")
assert kernel.attributes == {"num_registers": 168, "local_bytes": 0, "static_smem_bytes": 1024}
device.launch(kernel, b"\\x2a" * 448, grid=132, block=384, smem_bytes=200000)
device.launch(kernel, b"\\x01" * 448, grid=132, block=384, cluster=2, programmatic_launch=True)
for size in (8, 449):
    try:
        device.launch(kernel, bytes(size), grid=132, block=384)
    except ValueError as error:
        assert str(error) == f"launch of k: got {size} bytes of parameters, expected 448; pass the kernel's whole parameter struct"
    else:
        raise AssertionError(f"{size} bytes were accepted")
assert device.max_active_clusters(kernel, grid=132, block=384, cluster=2) == 66
"""
    log = tmp_path / "calls"
    run_python(script, DG_LIBCUDA_PATH=fake_libcuda, FAKE_LOG=log, FAKE_PARAM_BYTES="448")
    assert log.read_text().splitlines() == [
        "retain 0",
        "load in a",
        "attribute 8 = 231424",  # dynamic shared memory: all that the static part leaves, once per kernel
        "attribute 14 = 1",
        "launch grid 132 block 384 shared 200000 first 42",
        "launch grid 132 block 384 shared 0 attribute 4 = 2 attribute 6 = 1 first 1",
        "unload",
    ]


def test_a_capture_allows_what_a_first_call_needs(run_python: Run, fake_libcuda: Path) -> None:
    """Memory and kernels, and the thread's mode is what it was before."""
    script = """
device = _C.Device("cuda")
assert device.allocate(16) != 0
kernel = device.load_module(b"image").kernel("k")
import ctypes
mode = ctypes.c_int(2)
ctypes.CDLL(__import__("os").environ["DG_LIBCUDA_PATH"]).cuThreadExchangeStreamCaptureMode(ctypes.byref(mode))
print(mode.value)
"""
    assert run_python(script, DG_LIBCUDA_PATH=fake_libcuda, FAKE_CAPTURING="1").out == "0\n"


def test_two_devices_do_not_mix(run_python: Run, fake_libcuda: Path, tmp_path: Path) -> None:
    script = """
first, second = _C.Device("cuda:0"), _C.Device("cuda:1")
image = source()
for device in (first, second, first):
    print(_C.load_kernel(device, image)[1])
"""
    log = tmp_path / "calls"
    done = run_python(script, DG_LIBCUDA_PATH=fake_libcuda, FAKE_DEVICES="2", FAKE_LOG=log)
    assert done.lines == ["compiled", "disk", "memory"]
    calls = [line for line in log.read_text().splitlines() if line.startswith(("retain", "load"))]
    assert calls == ["retain 0", "retain 1", "load in a", "load in b"]


def test_memory_and_streams(run_python: Run, fake_libcuda: Path, tmp_path: Path) -> None:
    script = """
device = _C.Device("cuda")
a, b = device.allocate(16), device.allocate(16)
device.copy_to_device(a, bytes(range(16)))
device.copy_on_device(b, a, 16)
device.fill_bytes(b, 9, 4)
host = bytearray(16)
device.copy_to_host(host, b)
assert bytes(host) == bytes([9] * 4 + list(range(4, 16)))
device.copy_to_host(bytearray(0), b)
device.release(a)
device.release(b)
stream, start, stop = device.create_stream(), device.create_event(), device.create_event()
device.record(start, stream)
device.record(stop, stream)
assert device.elapsed_ms(start, stop) == 1.5
print(fails(device.begin_capture, 0)[2])
device.begin_capture(stream)
graph = device.end_capture(stream)
device.launch_graph(graph, stream)
device.destroy_graph(graph)
"""
    log = tmp_path / "calls"
    out = run_python(script, DG_LIBCUDA_PATH=fake_libcuda, FAKE_LOG=log).out
    assert "capture on create_stream()" in out
    assert log.read_text().splitlines() == ["retain 0", "allocate 16", "allocate 16", "capture 1", "graph"]


def test_tensor_maps(run_python: Run, fake_libcuda: Path, tmp_path: Path) -> None:
    script = """
device = _C.Device("cuda")
good = dict(address=4096, format="fp8_e4m3", dims=[256, 64], strides_bytes=[256], box=[128, 64], swizzle=128)
assert len(device.encode_tensor_map(**good)) == 128
assert len(device.encode_tensor_map(**{**good, "format": "bf16", "strides_bytes": [512], "box": [64, 64]})) == 128
fp4 = {**good, "format": "fp4_e2m1", "strides_bytes": [128], "box": [256, 64]}
assert len(device.encode_tensor_map(**fp4)) == 128
for change in (dict(address=8), dict(box=[512, 64]), dict(strides_bytes=[200]), dict(swizzle=48),
               dict(dims=[0, 64]), dict(format="fp5"), dict(strides_bytes=[])):
    print(*fails(device.encode_tensor_map, **{**good, **change})[::2])
"""
    log = tmp_path / "calls"
    lines = run_python(script, DG_LIBCUDA_PATH=fake_libcuda, FAKE_LOG=log).lines
    assert len(lines) == 7
    assert all(line.startswith("ValueError") and "expected" in line for line in lines)
    assert log.read_text().splitlines()[1:] == [
        "tensor map type 0 rank 2 dim 256 box 128 swizzle 3 promotion 3",
        "tensor map type 9 rank 2 dim 256 box 64 swizzle 3 promotion 3",
        "tensor map type 0 rank 2 dim 128 box 128 swizzle 3 promotion 3",  # pairs of FP4 are bytes
    ]


def test_cuda_does_not_survive_fork(run_python: Run, fake_libcuda: Path) -> None:
    script = """
_C.Device("cuda")
if os.fork() == 0:
    print(fails(_C.Device, "cuda")[2], flush=True)
    os._exit(0)
os.wait()
"""
    line = run_python(script, DG_LIBCUDA_PATH=fake_libcuda).out
    assert "cannot be used in its forked child" in line
    assert "'spawn'" in line


def test_fork_after_import_is_fine(run_python: Run, fake_libcuda: Path) -> None:
    script = """
if os.fork() == 0:
    assert _C.Device("cuda").num_sms == 132
    assert _C.load_kernel(_C.Device("cuda"), source())[1] == "compiled"
    os._exit(0)
print(os.waitstatus_to_exitcode(os.wait()[1]))
"""
    assert run_python(script, DG_LIBCUDA_PATH=fake_libcuda).out == "0\n"


def test_an_image_newer_than_the_driver(run_python: Run, fake_libcuda: Path) -> None:
    script = "print(fails(_C.load_kernel, _C.Device('cuda'), source())[2])"
    line = run_python(
        script,
        DG_LIBCUDA_PATH=fake_libcuda,
        FAKE_FAIL="cuModuleLoadDataEx",
        FAKE_CODE="200",
        FAKE_VERSION="12040",
    ).out
    assert "cuModuleLoadDataEx" in line
    assert "made by a CUDA that the driver does not know (python -m deep_gemm env" in line


NUMPY_CALL = """
import ml_dtypes, numpy as np, deep_gemm
a, b = (np.zeros((rows, 64), ml_dtypes.bfloat16) for rows in (8, 64))
d = np.ones((8, 64), ml_dtypes.bfloat16)
print(*fails(deep_gemm.bf16_gemm_nt, a, b, d), sep='|')
"""


def test_a_mistyped_default_device_is_refused_for_arrays_of_the_host(run_python: Run) -> None:
    for name in ("gpu", "cuda:x", "emulated"):
        line = run_python(NUMPY_CALL, DG_DEVICE=name).out
        assert line.startswith(f"ValueError||DG_DEVICE: got '{name}', expected cuda"), line


def test_numbers_of_the_emulator_are_not_cut(run_python: Run) -> None:
    line = run_python("print(*fails(_C.Device, 'emulator'), sep='|')", DG_EMULATOR_THREADS="99999999999").out
    assert line == "ValueError||DG_EMULATOR_THREADS: got 99999999999, expected at most 65536; correct it\n"
    line = run_python("print(*fails(_C.Device, 'emulator:sm_90a,sms=4294967297'), sep='|')").out
    assert line == "ValueError||emulator option sms: got 4294967297, expected at most 65536; correct it\n"
