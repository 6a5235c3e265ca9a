"""Tokens with a single 1 read packed weights back through the kernels, so that every weight is seen by itself.

The tolerance of the other tests is that of the tensor core's accumulator beside the largest product of a step, which
hides a weight far below it.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from fp4_cases import Data, activations, on_device
from reference import fp4
from reference import gemm as reference

import deep_gemm
from deep_gemm.demo.arrays import put, take

N, K = 66, 288
EVERY_BYTE, E4M3_RUNS, E5M2_RUNS = (0, 255), (113, 133), (100, 133)
FORMS = {
    "one run": ("mx_e4m3", (116, 128)),
    "e4m3, runs": ("mx_e4m3", E4M3_RUNS),
    "e4m3, every scale": ("mx_e4m3", EVERY_BYTE),
    "e5m2, runs": ("mx_e5m2", E5M2_RUNS),
    "e5m2, every scale": ("mx_e5m2", EVERY_BYTE),
    "nvfp4, every scale": ("nv_exact", (0, 0x7F)),
}
TOKENS = ("blocks of 128", "blocks of 32", "per token", "bf16")
# Blocks of 32 are served by the kernel for few tokens alone.
KERNELS = [
    (tokens, wide) for tokens in TOKENS for wide in (False, True) if not (wide and tokens == "blocks of 32")
]
WIDE = {"wide": True, "warpgroups": 2, "k_blocks": 1, "stages": 4, "block_m": 96}


def identity(tokens: str) -> Any:
    ones = np.eye(K)
    if tokens == "bf16":
        return ones.astype(ml_dtypes.bfloat16)
    block = 32 if tokens == "blocks of 32" else 128
    scales = np.ones((K, -(-K // block)), np.float32)
    if tokens == "per token":
        scales = np.broadcast_to(np.ones((K, 1), np.float32), scales.shape)
    return reference.Scaled(ones.astype(ml_dtypes.float8_e4m3fn), scales, 1, block)


def pack(form: str, span: tuple[int, int]) -> tuple[deep_gemm.Fp4Weights, np.ndarray]:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 256, (N, K // 2), np.uint8)
    if form == "nv_exact":
        scales = rng.integers(*span, (N, K // 16)).astype(np.uint8)
        packed = deep_gemm.pack_fp4_weights(codes, scales, 1.0, form=form)
        return packed, fp4.dequantise_nvfp4(codes, scales, 1.0)
    scales = rng.integers(*span, (N, K // 32)).astype(np.uint8)
    return deep_gemm.pack_fp4_weights(codes, scales, form=form), fp4.dequantise(codes, scales)


@pytest.mark.parametrize(
    ("tokens", "wide"), KERNELS, ids=[f"{t}-{'wide' if w else 'few'}" for t, w in KERNELS]
)
@pytest.mark.parametrize("name", FORMS)
def test_every_weight_is_read_back_exactly(device: Any, name: str, tokens: str, wide: bool) -> None:
    form, span = FORMS[name]
    weights, matrix = pack(form, span)
    assert weights.split == (name != "one run")
    spec = deep_gemm.Fp4GemmSpec(
        form=weights.form,
        split=weights.split,
        d="fp32",
        a="bf16" if tokens == "bf16" else "fp8_e4m3",
        per_token=tokens == "per token",
        by_32=tokens == "blocks of 32",
        **WIDE,
    )
    operand = activations(device, Data(weights, matrix, identity(tokens)))
    d = put(device, np.full((K, N), np.nan, np.float32))
    deep_gemm.fp8_fp4_gemm_nt(
        operand, on_device(device, weights), d, device=device, **({"spec": spec} if wide else {})
    )
    with np.errstate(over="ignore"):  # 6 times the largest scale is an infinity in fp32 too
        np.testing.assert_array_equal(take(d), matrix.T.astype(np.float32))
