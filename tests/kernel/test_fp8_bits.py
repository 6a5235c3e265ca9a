"""FP8 GEMMs bit for bit: what the published model of the tensor core and the documented order of a sum give.

The bound that other tests allow (reference/hopper.py) holds whatever the data and is far wider than a right kernel's
error; here there is no tolerance at all. The specs are those of other tests, one of each structure that takes K in
order.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from gemm_cases import Case, dense_operands, run_dense
from reference import gemm as reference
from reference import hopper

NARROW = {"swap_ab": True, "block_m": 64, "block_n": 64, "warpgroups": 1, "stages": 4}
WIDE = {"swap_ab": False, "block_m": 128, "block_n": 192, "warpgroups": 2, "stages": 3}
TALL = {**WIDE, "block_m": 256, "block_n": 128}
CASES = [
    Case(64, 256, 128, d="fp32"),  # whatever the plan chooses: one block of K
    Case(70, 131, 400, d="fp32", spec=NARROW),
    Case(40, 96, 384, d="fp32", accumulate=True, spec=NARROW),
    Case(160, 136, 512, d="fp32", scale_b="per_row_128", spec={**NARROW, "block_n": 128, "warpgroups": 2}),
    Case(150, 200, 656, spec=NARROW),
    Case(150, 200, 656, spec=WIDE),
    Case(150, 200, 656, spec=TALL),
]


def by_row(operand: reference.Scaled) -> Any:
    return np.repeat(operand.scales, operand.rows_per_scale, axis=0)[: len(operand.values)]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_bits(device: Any, case: Case) -> None:
    got = run_dense(device, case)
    rng = np.random.default_rng(0)
    a, b = dense_operands(rng, case)
    expected = hopper.fp8_gemm(a.values, by_row(a), b.values, by_row(b))
    if case.accumulate:
        expected = expected + rng.standard_normal(expected.shape).astype(np.float32)
    if case.d == "bf16":
        expected = expected.astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(got.view(np.uint8), expected.view(np.uint8))


@pytest.mark.parametrize("seed", range(1, 40, 13))
def test_other_data_stays_within_the_bound(emulator: Any, seed: int) -> None:
    run_dense(emulator, Case(64, 256, 128, d="fp32"), seed)
