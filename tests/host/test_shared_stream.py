"""Threads that call operations on one stream: what one puts in the stream's workspace, its own next kernel reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]

# Launches go to a stand-in for the driver, which does nothing: what is tested is their order. The first call of each
# operation, alone, compiles its kernels.
SETUP = """
import threading
import ml_dtypes, numpy as np
import deep_gemm
from deep_gemm.demo.arrays import put

device = _C.Device("cuda")
N, K = 256, 128
FP8 = ml_dtypes.float8_e4m3fn

def on_device(w):
    return w.with_tensors(put(device, w.blobs), put(device, w.row_scales), None)

def fp4_call(m, stream):
    a, scales = put(device, np.zeros((m, K), FP8)), put(device, np.zeros((m, 1), np.float32))
    d = put(device, np.zeros((m, N), ml_dtypes.bfloat16))
    deep_gemm.fp8_fp4_gemm_nt((a, scales), weights, d, spec=wide, stream=stream)

def q8_call(m, stream):
    x, y = put(device, np.zeros((m, K), ml_dtypes.bfloat16)), put(device, np.zeros((m, N), ml_dtypes.bfloat16))
    deep_gemm.linear(x, q8, y, stream=stream)

def launches():
    lines = [line for line in open(os.environ["FAKE_LOG"]).read().splitlines() if line.startswith("launch")]
    return [line.split(" first")[0] for line in lines]

def allocations():
    return open(os.environ["FAKE_LOG"]).read().count("allocate 1048576")

def at_once(call, streams, calls=20):
    start = threading.Barrier(len(streams))
    def work(stream):
        start.wait()
        for _ in range(calls): call(4, stream)
    threads = [threading.Thread(target=work, args=(stream,)) for stream in streams]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
"""
FP4 = """
weights = on_device(deep_gemm.pack_fp4_weights(np.zeros((N, K // 2), np.uint8), np.full((N, K // 32), 127, np.uint8)))
wide = deep_gemm.Fp4GemmSpec(wide=True, block_m=64, warpgroups=2, k_blocks=1, stages=4, cluster=2)
call = fp4_call
"""
Q8 = """
w = deep_gemm.quantize(np.ones((N, K), np.float32), "q8_0")
parts = [None if part is None else put(device, part) for part in (w.data, w.scales, w.zeros)]
q8 = deep_gemm.QuantizedMatrix(w.format, w.n, w.k, *parts, w.global_scale)
call = q8_call
"""


@pytest.mark.parametrize("operation", [FP4, Q8], ids=["fp4", "q8_0"])
def test_a_threads_two_launches_stay_together(
    run_python: Run, fake_libcuda: Path, tmp_path: Path, operation: str
) -> None:
    script = """
call(4, 16)
pair = launches()
assert len(pair) == 2 and pair[0] != pair[1], pair
at_once(call, [16, 16, 16])
assert launches() == pair * 61, launches()
"""
    run_python(
        SETUP + operation + script,
        DG_LIBCUDA_PATH=fake_libcuda,
        FAKE_LOG=tmp_path / "calls",
        FAKE_LAUNCH_MS=1,
    )


def test_streams_that_have_a_workspace_of_their_own(
    run_python: Run, fake_libcuda: Path, tmp_path: Path
) -> None:
    """The handle 2 is another stream in each thread."""
    script = """
call(4, 16)
call(4, 16)
print(allocations())
call(4, 32)
print(allocations())
for _ in range(2): at_once(call, [2, 2])
print(allocations())
call(4, 2)
call(4, 2)
print(allocations())
"""
    done = run_python(SETUP + FP4 + script, DG_LIBCUDA_PATH=fake_libcuda, FAKE_LOG=tmp_path / "calls")
    assert done.lines == ["1", "2", "6", "7"]


def test_a_layer_has_its_arranged_tokens_in_the_callers_workspace(
    run_python: Run, fake_libcuda: Path, tmp_path: Path
) -> None:
    """With wide plans too, fused_moe allocates nothing, not even in its first call: it may be captured."""
    script = """
T, TOP_K, E, HIDDEN, CHANNELS = 150, 2, 3, 1024, 1024
deep_gemm.set_num_sms(4)

def experts(n, k):
    codes, scales = np.zeros((E, n, k // 2), np.uint8), np.full((E, n, k // 32), 127, np.uint8)
    return on_device(deep_gemm.pack_fp4_weights(codes, scales))

w13, w2 = experts(2 * CHANNELS, HIDDEN), experts(HIDDEN, CHANNELS)
x, out = (put(device, np.zeros((T, HIDDEN), ml_dtypes.bfloat16)) for _ in range(2))
ids, weights = put(device, np.zeros((T, TOP_K), np.int32)), put(device, np.zeros((T, TOP_K), np.float32))
size = _C.moe_workspace_bytes(T, TOP_K, E, HIDDEN, CHANNELS, True)
workspace = put(device, np.zeros(size, np.int8))
before = open(os.environ["FAKE_LOG"]).read().count("allocate")
deep_gemm.fused_moe(x, ids, weights, w13, w2, out, workspace=workspace)
assert deep_gemm.last_fp4_plan()["spec"].to_dict()["wide"]
print(open(os.environ["FAKE_LOG"]).read().count("allocate") - before, len(launches()))
"""
    done = run_python(SETUP + script, DG_LIBCUDA_PATH=fake_libcuda, FAKE_LOG=tmp_path / "calls")
    assert done.lines == ["0 8"]  # both products after their arrange
