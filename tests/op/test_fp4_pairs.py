"""FP4 weights passed as DeepGEMM passes them, codes and scales: the bits of the same call with packed weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import deep_gemm
from deep_gemm import utils
from deep_gemm.demo.arrays import put, take

N, K, M = 128, 256, 130
BF16 = ml_dtypes.bfloat16


def pair(groups: int, seed: int = 0) -> tuple[Any, Any]:
    """Codes int8 [groups, N, K / 2] and UE8M0 bytes of 32."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(-128, 128, (groups, N, K // 2)).astype(np.int8)
    return codes, rng.integers(116, 128, (groups, N, K // 32)).astype(np.uint8)


def tokens(*shape: int) -> tuple[Any, Any]:
    x = np.random.default_rng(1).standard_normal((*shape, K)).astype(np.float32)
    values, scales = utils.per_token_cast_to_fp8(x.reshape(-1, K))
    return values.reshape(*shape, K), scales.reshape(*shape, -1)


def as_fp32(scales: Any) -> Any:
    return (scales.astype(np.uint32) << 23).view(np.float32)


def as_int32(scales: Any) -> Any:
    return np.ascontiguousarray(scales).view(np.int32)


def dense(device: Any, b: Any, d: Any) -> None:
    deep_gemm.fp8_fp4_gemm_nt(
        placed(device, tokens(M)), b, d, recipe_a=(1, 128), recipe_b=(1, 32), device=device
    )


def contiguous(device: Any, b: Any, d: Any) -> None:
    rows = np.repeat(np.array([1, -1], np.int32), [M - 2, 2])
    deep_gemm.m_grouped_fp8_fp4_gemm_nt_contiguous(
        placed(device, tokens(M)), b, d, put(device, rows), device=device
    )


def masked(device: Any, b: Any, d: Any) -> None:
    counts = np.array([3, 0], np.int32)
    deep_gemm.m_grouped_fp8_fp4_gemm_nt_masked(
        placed(device, tokens(2, 8)), b, d, put(device, counts), 3, device=device
    )


def placed(device: Any, arrays: tuple[Any, Any]) -> tuple[Any, Any]:
    return put(device, arrays[0]), put(device, arrays[1])


@pytest.mark.parametrize("scales", [as_fp32, as_int32, np.asarray], ids=["fp32", "int32", "bytes"])
@pytest.mark.parametrize(
    ("operation", "groups", "shape"),
    [(dense, 0, (M, N)), (contiguous, 2, (M, N)), (masked, 2, (2, 8, N))],
    ids=["dense", "contiguous", "masked"],
)
def test_a_pair(
    emulator: Any,
    operation: Callable[..., None],
    groups: int,
    shape: tuple[int, ...],
    scales: Callable[[Any], Any],
) -> None:
    codes, raw = pair(max(groups, 1))
    if groups == 0:
        codes, raw = codes[0], raw[0]
    results = []
    for b in (deep_gemm.pack_fp4_weights(codes, raw), (codes, scales(raw))):
        d = put(emulator, np.zeros(shape, BF16))
        operation(emulator, b, d)
        results.append(take(d).view(np.uint16))
    assert results[0].any() and (results[0] == results[1]).all()


def test_not_on_a_stream_of_its_own(emulator: Any) -> None:
    codes, raw = pair(1)
    with pytest.raises(ValueError, match="expected either"):
        deep_gemm.fp8_fp4_gemm_nt(
            tokens(M), (codes[0], as_fp32(raw[0])), np.zeros((M, N), BF16), stream=1, device=emulator
        )


def test_codes_along_n() -> None:
    torch = pytest.importorskip("torch")
    codes, raw = (torch.from_numpy(x[0]) for x in pair(1))
    with pytest.raises(ValueError, match="share a byte"):
        deep_gemm.fp8_fp4_gemm_nt(
            tuple(torch.from_numpy(x.view(np.uint8)) for x in tokens(M)),
            (codes.T.contiguous().T, raw),
            torch.zeros(M, N),
        )


def test_not_while_captured() -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("PyTorch sees no GPU")
    codes, raw = (torch.from_numpy(x[0]).cuda() for x in pair(1))
    values, scales = (torch.from_numpy(x.view(np.uint8)).cuda() for x in tokens(M))
    a = values.view(torch.float8_e4m3fn), scales.view(torch.float32)
    d, packed = (
        torch.zeros(M, N, dtype=torch.bfloat16, device="cuda"),
        torch.zeros(M, N, dtype=torch.bfloat16, device="cuda"),
    )
    deep_gemm.fp8_fp4_gemm_nt(a, (codes, raw), d)
    deep_gemm.fp8_fp4_gemm_nt(a, deep_gemm.pack_fp4_weights(codes, raw), packed)
    assert torch.equal(d, packed)
    with (
        torch.cuda.graph(torch.cuda.CUDAGraph()),
        pytest.raises(RuntimeError, match="while the stream is captured"),
    ):
        deep_gemm.fp8_fp4_gemm_nt(a, (codes, raw), d)
