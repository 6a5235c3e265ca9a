"""The certificate of FP4 operations: tokens that are NaN, by value or by scale, change no bit of the tokens beside them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from fp4_cases import Case, make_data, on_device

import deep_gemm
from deep_gemm.demo.arrays import put, take

Array = np.ndarray[Any, np.dtype[Any]]
N, K, ROWS = 66, 416, 20
Operands = tuple[Any, Any]
Launch = Callable[[Any, Operands, deep_gemm.Fp4Weights, Any], None]


def dense(device: Any, a: Operands, weights: deep_gemm.Fp4Weights, d: Any) -> None:
    deep_gemm.fp8_fp4_gemm_nt(a, weights, d, device=device)


def contiguous(device: Any, a: Operands, weights: deep_gemm.Fp4Weights, d: Any) -> None:
    layout = put(device, np.zeros(ROWS, np.int32))
    deep_gemm.m_grouped_fp8_fp4_gemm_nt_contiguous(a, weights, d, layout, device=device)


def masked(device: Any, a: Operands, weights: deep_gemm.Fp4Weights, d: Any) -> None:
    count = put(device, np.array([ROWS], np.int32))
    deep_gemm.m_grouped_fp8_fp4_gemm_nt_masked(a, weights, d, count, ROWS, device=device)


def gathered(device: Any, a: Operands, weights: deep_gemm.Fp4Weights, d: Any) -> None:
    rows = put(device, np.arange(ROWS, dtype=np.int32))
    entries, head = np.array([[0, 0, ROWS, 0]], np.int32), np.array([1, 0, 0, 0], np.int32)
    deep_gemm.m_grouped_fp8_fp4_gemm_nt_gathered(
        a, weights, d, put(device, entries), put(device, head), rows, rows, device=device
    )


MODES: dict[str, tuple[Launch, tuple[int, ...]]] = {
    "dense": (dense, (ROWS,)),
    "contiguous": (contiguous, (ROWS,)),
    "masked": (masked, (1, ROWS)),
    "gathered": (gathered, (ROWS,)),
}
FORMS = {
    "mx_e4m3": Case(N, K, form="mx_e4m3"),
    "mx_e5m2": Case(N, K, form="mx_e5m2", span=(105, 133)),
    "split": Case(N, K, form="mx_e4m3", span=(100, 133)),
    "nv_single": Case(N, K, form="nv_single"),
    "nv_exact": Case(N, K, form="nv_exact"),
    "nv_exact split": Case(N, K, form="nv_exact", span=(1, 0x7F)),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("poison", ["values", "scales"])
def test_a_token_of_nan_stays_alone(device: Any, mode: str, form: str, poison: str) -> None:
    launch, shape = MODES[mode]
    data = make_data(FORMS[form], shape)
    assert data.weights.split == form.endswith("split")
    weights = on_device(device, data.weights)

    def run(values: Array, scales: Array) -> Array:
        d = put(device, np.zeros((*shape, N), ml_dtypes.bfloat16))
        launch(device, (put(device, values), put(device, scales)), weights, d)
        return take(d).reshape(ROWS, N)

    clean = run(data.a.values, data.a.scales)
    values, scales = data.a.values.copy(), data.a.scales.copy()
    if poison == "values":
        values.reshape(ROWS, K)[::3, 5] = np.nan
    else:
        scales.reshape(ROWS, -1)[::3, 1] = np.nan
    beside = run(values, scales)
    sick = np.arange(ROWS) % 3 == 0
    assert (beside.view(np.uint16)[~sick] == clean.view(np.uint16)[~sick]).all()
    assert np.isnan(beside[sick].astype(np.float32)).all() and not np.isnan(clean.astype(np.float32)).any()


@pytest.mark.parametrize("products", ["scale", "bf16"])
def test_an_infinity_meets_no_runs_of_other_rows(products: str) -> None:
    """Row 100 alone has two runs: rows of other blocks take as many passes where a CTA holds both, by the batch."""
    emulator = deep_gemm.Device("emulator:sm_90a,sms=8")
    n, batches = 130, (1, 3, 70, 300)
    scales = np.full((n, K // 32), 127, np.uint8)
    scales[100, 0] -= 60
    weights = deep_gemm.pack_fp4_weights(np.full((n, K // 2), 0x22, np.uint8), scales)
    assert [int(run) & 0xFF for run in np.asarray(weights.runs)] == [1, 2, 1]
    tokens = np.ones((max(batches), K), np.float32)
    blocks = np.ones((max(batches), -(-K // 128)), np.float32)
    if products == "scale":
        blocks[0, 1] = np.inf
    else:
        tokens[0, 100] = np.inf
    for rows in batches:
        d = np.zeros((rows, n), np.float32)
        if products == "scale":
            a: Any = (tokens[:rows].astype(ml_dtypes.float8_e4m3fn), blocks[:rows].copy())
            deep_gemm.fp8_fp4_gemm_nt(a, weights, d, device=emulator)
        else:
            a = tokens[:rows].astype(ml_dtypes.bfloat16)
            deep_gemm.fp8_fp4_gemm_nt(a, weights, d, bf16_products=True, device=emulator)
        assert np.isinf(d[0, :64]).all() and np.isinf(d[0, 128:]).all(), rows
        assert np.isnan(d[0, 64:128]).all(), "zeros of the other run met the infinity"
        assert np.isfinite(d[1:]).all(), rows
