"""Groups of tokens serve the gathered GEMMs: a layer's two products, pair by pair against the expert's own."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from reference import fp4

import deep_gemm

EXPERTS, TOP_K, K, N = 5, 2, 128, 64


@pytest.fixture
def device(device: Any) -> Any:
    """None on a GPU, where arrays are PyTorch's: group_tokens makes more of the kind that it gets."""
    if "emulator" in repr(device):
        return device
    pytest.importorskip("torch")
    return None


def put(device: Any, array: np.ndarray) -> Any:
    if device is not None:
        return array
    import torch

    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16).cuda()
    return torch.from_numpy(array).cuda()


def take(array: Any) -> np.ndarray:
    if isinstance(array, np.ndarray):
        return array
    return array.float().cpu().numpy() if array.is_floating_point() else array.cpu().numpy()


def random_weights(rng: np.random.Generator, n: int, k: int) -> tuple[deep_gemm.Fp4Weights, np.ndarray]:
    codes = rng.integers(0, 256, (EXPERTS, n, k // 2), np.uint8)
    scales = rng.integers(118, 126, (EXPERTS, n, k // 32)).astype(np.uint8)
    return deep_gemm.pack_fp4_weights(codes, scales), fp4.dequantise(codes, scales)


def on(device: Any, weights: deep_gemm.Fp4Weights) -> deep_gemm.Fp4Weights:
    return weights.with_tensors(put(device, weights.blobs), put(device, weights.row_scales), None)


@pytest.mark.parametrize("tokens", [1, 7, 40])
def test_two_products_of_a_layer(device: Any, tokens: int) -> None:
    rng = np.random.default_rng(tokens)
    ids = np.stack([rng.permutation(EXPERTS + 1)[:TOP_K] for _ in range(tokens)]).astype(np.int32) - 1
    (w13, gate_up), (w2, down) = random_weights(rng, N, K), random_weights(rng, K, N)
    x = (rng.standard_normal((tokens, K)) * 0.1).astype(ml_dtypes.bfloat16)
    there = put(device, ids)
    groups = deep_gemm.group_tokens(there, EXPERTS, device=device)
    h = put(device, np.full((tokens * TOP_K, N), np.nan, ml_dtypes.bfloat16))
    y = put(device, np.full((tokens * TOP_K, K), np.nan, np.float32))
    listed = {"device": device, "d_rows": groups.slot_pairs}
    deep_gemm.m_grouped_fp8_fp4_gemm_nt_gathered(
        put(device, x), on(device, w13), h, groups.entries, groups.head, a_rows=groups.slot_tokens, **listed
    )
    deep_gemm.m_grouped_fp8_fp4_gemm_nt_gathered(
        h, on(device, w2), y, groups.entries, groups.head, a_rows=groups.slot_pairs, **listed
    )
    first, second = take(h).astype(np.float64), take(y)
    for pair, expert in enumerate(ids.ravel()):
        if expert < 0:
            assert np.isnan(first[pair]).all() and np.isnan(second[pair]).all()
            continue
        expected = gate_up[expert] @ x[pair // TOP_K].astype(np.float64)
        np.testing.assert_allclose(first[pair], expected, rtol=2**-7, atol=1e-3 * np.abs(expected).max())
        expected = down[expert] @ first[pair]
        np.testing.assert_allclose(second[pair], expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())
    assert groups.num_slots >= (ids >= 0).sum()
    slots = take(groups.pair_slots)
    assert (slots[ids.ravel() < 0] == -1).all()
    kept = np.flatnonzero(ids.ravel() >= 0)
    assert (take(groups.slot_pairs)[slots[kept]] == kept).all()
    assert (take(groups.slot_tokens)[slots[kept]] == kept // TOP_K).all()


def test_no_tokens(device: Any) -> None:
    groups = deep_gemm.group_tokens(put(device, np.zeros((0, 2), np.int32)), 3, device=device)
    assert take(groups.head)[0] == 0 and (take(groups.offsets) == 0).all()


@pytest.mark.parametrize(("ids", "experts"), [(np.zeros(4, np.int32), 3), (np.zeros((2, 2), np.int32), 0)])
def test_what_is_refused(ids: Any, experts: int) -> None:
    with pytest.raises(ValueError, match="group_tokens: got ids"):
        deep_gemm.group_tokens(ids, experts)
