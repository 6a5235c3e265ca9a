"""bf16 activations times packed FP4 weights: what is multiplied is exact, so that only fp32 sums round."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from fp4_cases import Case, run_contiguous, run_dense, run_gathered, run_masked

import deep_gemm
from deep_gemm import _C
from deep_gemm.demo.arrays import put

BF16 = {"bf16_tokens": True}
DENSE = [
    Case(64, 256, m=1, **BF16),
    Case(2, 32, m=1, **BF16),
    Case(66, 160, m=9, **BF16),
    Case(130, 288, m=3, d="fp32", **BF16),
    Case(64, 512, m=70, **BF16),
    Case(96, 256, m=17, accumulate=True, **BF16),
    Case(66, 288, m=9, span=(106, 135), **BF16),
    Case(66, 288, m=9, span=(106, 135), form="mx_e4m3", **BF16),
    Case(130, 256, m=20, span=(70, 140), d="fp32", **BF16),
    Case(64, 256, m=9, form="nv_exact", **BF16),
    Case(66, 176, m=3, form="nv_exact", d="fp32", **BF16),
    Case(66, 256, m=20, form="nv_exact", span=(0, 0x7F), **BF16),
]
GATHERED = [
    Case(64, 256, rows=(1,), **BF16),
    Case(66, 160, rows=(0, 3, 0, 9, 1), **BF16),
    Case(64, 128, rows=(20, 0, 0, 41), form="nv_exact", **BF16),
]
SPECS: list[dict[str, Any]] = [
    {"block_m": 8, "k_blocks": 2, "stages": 3, "ctas_per_sm": 3},
    {"block_m": 8, "k_blocks": 1, "stages": 4, "warpgroups": 3},
    {"block_m": 16, "k_blocks": 2, "stages": 3, "warpgroups": 2},
    {"block_m": 24, "k_blocks": 1, "stages": 3, "warpgroups": 4},
    {"block_m": 48, "k_blocks": 2, "stages": 3, "warpgroups": 2, "load_warps": 4},
    {"block_m": 112, "k_blocks": 1, "stages": 4, "warpgroups": 2, "load_warps": 2},
]


@pytest.mark.parametrize("case", DENSE, ids=str)
def test_dense(device: Any, case: Case) -> None:
    run_dense(device, case)


@pytest.mark.parametrize("rows_of", ["both", "none"])
@pytest.mark.parametrize("case", GATHERED, ids=str)
def test_gathered(device: Any, case: Case, rows_of: str) -> None:
    run_gathered(device, case, launches=2, rows_of=rows_of)


def test_masked_and_contiguous(device: Any) -> None:
    run_masked(device, Case(66, 160, m=40, rows=(0, 40, 1, 9), **BF16))
    run_contiguous(device, Case(66, 160, rows=(100, 128, 130), **BF16))
    run_contiguous(device, Case(66, 128, rows=(3, 0, 5), **BF16), psum=True)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_specs(device: Any, spec: dict[str, Any]) -> None:
    rows = (5, 0, spec["block_m"] + 11, 1)
    run_gathered(device, Case(200, 544, rows=rows, spec={**spec, "queue": True}, **BF16))


@pytest.mark.parametrize("form", ["mx_e4m3", "mx_e5m2", "nv_exact"])
def test_every_code_with_every_scale_is_exact(device: Any, form: str) -> None:
    """One-hot tokens read the weights back, bit for bit: all codes, and all scales that a window has."""
    rows, k = 64, 256
    nvfp4 = form == "nv_exact"
    group = 16 if nvfp4 else 32
    row, column = np.arange(rows)[:, None], np.arange(k // group)
    number = row // 2 * (k // group) + column + row % 2 * 5
    scales = 0x20 + number % 64 if nvfp4 else 113 + number % (29 if form == "mx_e5m2" else 15)
    codes = ((np.arange(k) + row * 3) % 16).astype(np.uint8)
    joined = codes[:, 0::2] | codes[:, 1::2] << 4
    weights = deep_gemm.pack_fp4_weights(joined, scales.astype(np.uint8), 1.0 if nvfp4 else None, form=form)
    assert not weights.split
    magnitudes = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])[codes & 7] * np.where(codes & 8, -1, 1)
    values = (
        scales.astype(np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float64)
        if nvfp4
        else 2.0 ** (scales - 127)
    )
    expected = magnitudes * np.repeat(values, group, axis=1)
    out = put(device, np.full((k, rows), np.nan, np.float32))
    from fp4_cases import on_device, take

    deep_gemm.fp8_fp4_gemm_nt(
        put(device, np.eye(k).astype(ml_dtypes.bfloat16)), on_device(device, weights), out, device=device
    )
    assert (expected == take(out).T).all()


def test_a_row_does_not_depend_on_its_batch() -> None:
    emulator = _C.Device("emulator:sm_90a,sms=4")
    case = Case(64, 512, m=20, **BF16)
    together = run_dense(emulator, case)
    for spec in SPECS:
        one = run_dense(emulator, replace(case, spec=spec))
        assert (one.view(np.uint16) == together.view(np.uint16)).all(), spec
    for count in (1, 8, 11):
        alone = run_dense(emulator, case, rows=slice(20 - count, 20))
        assert (alone.view(np.uint16) == together[-count:].view(np.uint16)).all(), count


def test_what_is_refused(emulator: Any) -> None:
    a, d = np.zeros((4, 64), ml_dtypes.bfloat16), np.zeros((4, 64), ml_dtypes.bfloat16)
    codes, scales = np.zeros((64, 32), np.uint8), np.full((64, 4), 0x38, np.uint8)
    single = deep_gemm.pack_fp4_weights(codes, scales, 1.0)
    with pytest.raises(ValueError, match="nv_single, which is rounded for FP8 activations"):
        deep_gemm.fp8_fp4_gemm_nt(a, single, d, device=emulator)
    exact = deep_gemm.pack_fp4_weights(codes, scales, 1.0, form="nv_exact")
    with pytest.raises(TypeError, match="a is a tensor of fp32, expected"):
        deep_gemm.fp8_fp4_gemm_nt(a.astype(np.float32), exact, d, device=emulator)
    with pytest.raises(ValueError, match="bf16 tokens have no scales"):
        _C.fp4_kernel_source(deep_gemm.Fp4GemmSpec(a="bf16", per_token=True))
    with pytest.raises(ValueError, match="expected multiples of 4"):
        deep_gemm.fp8_fp4_gemm_nt(np.zeros((4, 65), ml_dtypes.bfloat16)[:, 1:], exact, d, device=emulator)
