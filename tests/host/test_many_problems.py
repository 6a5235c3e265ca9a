"""A process that meets more problems than its tables hold: it forgets the oldest, and serves all of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

Run = Callable[..., Any]

# Launches go to a stand-in for the driver, which does nothing: what is tested is what the host keeps.
SETUP = """
import ml_dtypes, numpy as np
import deep_gemm
from deep_gemm.demo.arrays import put

device = _C.Device("cuda")
N, K, HELD = 8, 8, 4096
b = put(device, np.zeros((N, K), ml_dtypes.bfloat16))

def call(m):
    a, d = put(device, np.zeros((m, K), ml_dtypes.bfloat16)), put(device, np.zeros((m, N), np.float32))
    deep_gemm.bf16_gemm_nt(a, b, d)
    assert deep_gemm.last_plan()["problem"].startswith(f"gemm m={m} "), deep_gemm.last_plan()
"""


def test_the_oldest_plans_are_forgotten(run_python: Run, fake_libcuda: Path) -> None:
    script = """
for m in range(1, HELD + 1): call(m)
full = _C.num_plans()
call(1)  # no slot of this thread holds it any more, so the table is asked: 2 is the oldest now
for m in range(HELD + 1, HELD + 301): call(m)
for m in (1, 2, 2, HELD + 300): call(m)
print(full, _C.num_plans())
"""
    done = run_python(SETUP + script, DG_LIBCUDA_PATH=fake_libcuda, DG_LOG_LEVEL="info")
    assert done.lines == ["4096 4096"]
    plans = [line.split("gemm m=")[1].split()[0] for line in done.err.splitlines() if "gemm m=" in line]
    assert plans == [*map(str, range(1, 4397)), "2"]  # each once, and the forgotten one once more


def test_tensor_maps_of_many_matrices_are_encoded_once(
    run_python: Run, fake_libcuda: Path, tmp_path: Path
) -> None:
    """A model has more matrices than the table of maps has slots at first: the table grows until all are found."""
    script = """
weights = [put(device, np.zeros((N, K), ml_dtypes.bfloat16)) for _ in range(600)]
a, d = put(device, np.zeros((64, K), ml_dtypes.bfloat16)), put(device, np.zeros((64, N), np.float32))
for step in range(12):
    for b in weights: deep_gemm.bf16_gemm_nt(a, b, d)
    print(open(os.environ["FAKE_LOG"]).read().count("tensor map"))
"""
    done = run_python(SETUP + script, DG_LIBCUDA_PATH=fake_libcuda, FAKE_LOG=tmp_path / "calls")
    encoded = [int(line) for line in done.lines]
    assert encoded[0] >= 600
    # Two matrices of one slot displace each other, so some of 600 in the 2048 to 8192 slots of now remain.
    assert encoded[-1] - encoded[-2] < 200, encoded
