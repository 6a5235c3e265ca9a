"""What a GEMM call does to the driver: one launch of a kernel that profilers find by its name, on the device of its tensors,
and nothing at all where the call is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deep_gemm import _C

Run = Callable[..., Any]

SETUP = """
import ml_dtypes, numpy as np
import deep_gemm
from deep_gemm.demo.arrays import put

M, N, K, GROUPS = 128, 128, 256, 2
FP8, BF16 = ml_dtypes.float8_e4m3fn, ml_dtypes.bfloat16

def fp8(device, *shape):
    return put(device, np.zeros(shape, FP8)), put(device, np.ones((*shape[:-2], -(-shape[-2] // 128), K // 128), np.float32))

def tokens(device, *shape):
    return put(device, np.zeros(shape, FP8)), put(device, np.ones((*shape[:-1], K // 128), np.float32))

def zeros(device, kind, *shape):
    return put(device, np.zeros(shape, kind))

def seen(*starts):
    lines = open(os.environ["FAKE_LOG"]).read().splitlines()
    open(os.environ["FAKE_LOG"], "w").close()
    return [line for line in lines if line.startswith(starts)]
"""

# What DeepGEMM's own tests look for among a profiler's kernels.
FP8_NAME, BF16_NAME = "gemm_", "bf16_gemm"


def test_a_call_is_one_launch_of_a_gemm(run_python: Run, fake_libcuda: Path, tmp_path: Path) -> None:
    script = """
device = _C.Device("cuda")
d, wide = zeros(device, BF16, M, N), zeros(device, BF16, GROUPS, M, N)
a, b = tokens(device, M, K), fp8(device, N, K)
turned = a[0], put(device, np.ones((K // 128, M), np.float32)).strided((M, K // 128), (1, M))
rows = zeros(device, np.int32, M)
seen()
for call in (
    lambda: deep_gemm.fp8_gemm_nt(a, b, d),
    lambda: deep_gemm.fp8_gemm_nt(turned, b, d),  # scales of any layout are read where they are
    lambda: deep_gemm.fp8_gemm_nt(a, b, d),
    lambda: deep_gemm.bf16_gemm_nt(zeros(device, BF16, M, K), zeros(device, BF16, N, K), d),
    lambda: deep_gemm.m_grouped_fp8_gemm_nt_contiguous(a, fp8(device, GROUPS, N, K), d, rows),
    lambda: deep_gemm.m_grouped_fp8_gemm_nt_masked(tokens(device, GROUPS, M, K), fp8(device, GROUPS, N, K), wide, zeros(device, np.int32, GROUPS), 64),
):
    call()
    print(len(seen("launch")), deep_gemm.last_plan()["kernel"])
"""
    done = run_python(SETUP + script, DG_LIBCUDA_PATH=fake_libcuda, FAKE_LOG=tmp_path / "calls")
    counts, names = zip(*(line.split() for line in done.lines), strict=True)
    assert counts == ("1",) * 6
    assert [(FP8_NAME in name, BF16_NAME in name) for name in names] == [
        *[(True, False)] * 3,
        (True, True),
        *[(True, False)] * 2,
    ]


def kernels() -> list[tuple[str, str]]:
    """(header, kernel) of all kernels."""
    return [
        (header, name)
        for header, text in _C.device_headers().items()
        for name in re.findall(r"^DG_KERNEL\(.*\)\n(\w+)\(", text, re.MULTILINE)
    ]


def test_no_other_kernel_looks_like_a_gemm() -> None:
    for header, name in kernels():
        assert "gemm" not in name or "gemm" in Path(header).name, (header, name)


def test_layout_helpers_are_found_by_their_names() -> None:
    for part in ("transpose", "pack_fp32_into_ue8m0"):
        assert [header for header, name in kernels() if part in name] == ["deep_gemm/kernel/scale_layout.cuh"]


def test_two_devices(run_python: Run, fake_libcuda: Path, tmp_path: Path) -> None:
    """Each has its kernels; tensors of both, or of the host, are refused before anything is launched."""
    script = """
zero, one = _C.Device("cuda:0"), _C.Device("cuda:1")
(a0, b0, d0), (a1, b1, d1) = ((tokens(x, M, K), fp8(x, N, K), zeros(x, BF16, M, N)) for x in (zero, one))
host = np.zeros((M, N), BF16)
seen()
for a, b, d in ((a0, b0, d0), (a1, b1, d1), (a0, b0, d0)):
    deep_gemm.fp8_gemm_nt(a, b, d)
    print([line.split(" grid")[0] for line in seen("load", "launch")])
for call in (
    lambda: deep_gemm.fp8_gemm_nt(a1, b0, d0),
    lambda: deep_gemm.fp8_gemm_nt(a0, b1, d0),
    lambda: deep_gemm.fp8_gemm_nt((a0[0], a1[1]), b0, d0),
    lambda: deep_gemm.fp8_gemm_nt(a0, (b0[0], b1[1]), d0),
    lambda: deep_gemm.fp8_gemm_nt(a0, b0, d1),
    lambda: deep_gemm.fp8_gemm_nt(a0, b0, d0, c=d1),
    lambda: deep_gemm.fp8_gemm_nt(a0, b0, host),
    lambda: deep_gemm.fp8_gemm_nt(a0, b0, d0, device=one),
    lambda: deep_gemm.fp8_gemm_nt(a0, b0, d0, device="emulator"),
    lambda: deep_gemm.fp8_gemm_nt((np.zeros((M, K), FP8), np.ones((M, 2), np.float32)), b0, d0, device=zero),
    lambda: deep_gemm.m_grouped_fp8_gemm_nt_contiguous(a0, fp8(zero, GROUPS, N, K), d0, zeros(one, np.int32, M)),
):
    print(*fails(call)[::2], sep="|")
print(seen("load", "launch"))
"""
    done = run_python(
        SETUP + script, DG_LIBCUDA_PATH=fake_libcuda, FAKE_LOG=tmp_path / "calls", FAKE_DEVICES="2"
    )
    assert done.lines[:3] == ["['load in a', 'launch']", "['load in b', 'launch']", "['launch']"]
    *refused, count = done.lines[3:]
    other = "{} is on another device than a; move it to a's device".format
    asked_for = "a is on CUDA device 0, expected memory of the device that was asked for; leave device= out"
    expected = [
        *map(other, ("b", "b", "scales of a", "scales of b", "d", "c", "d")),
        *(asked_for, asked_for, "a is in host memory, expected memory of Fake GPU; move it there"),
        other("grouped_layout"),
    ]
    for line, sentence in zip(refused, expected, strict=True):
        assert line.startswith("ValueError|") and line.endswith(sentence)
    assert count == "[]"


def test_no_compiler(run_python: Run, cache: Path) -> None:
    """The first call says where NVRTC was looked for, and touches neither D nor the cache."""
    script = """
device = _C.Device("emulator:sm_90a")
d = np.full((M, N), 7, BF16)
for _ in range(2):
    print(*fails(deep_gemm.fp8_gemm_nt, tokens(device, M, K), fp8(device, N, K), d)[:2], deep_gemm.last_plan(), (d == 7).all())
print(fails(deep_gemm.fp8_gemm_nt, tokens(device, M, K), fp8(device, N, K), d)[2])
"""
    done = run_python(SETUP + script, DG_NVRTC_PATH="/nowhere", DG_DEVICE="emulator")
    assert done.lines[:2] == ["Error compile None True"] * 2
    text = "\n".join(done.lines[2:])
    for part in ("no NVRTC found", "expected libnvrtc 12", "correct DG_NVRTC_PATH (/nowhere)", "cannot open"):
        assert part in text
    assert not cache.exists()
