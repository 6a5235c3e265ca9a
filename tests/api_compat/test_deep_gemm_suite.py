"""What DeepGEMM's own tests exercise, in its calls and with its thresholds: FP8 1e-3, BF16 1e-5 of calc_diff.

On a GPU with PyTorch the shapes are its own; on the emulated one the same calls run with small shapes in numpy.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

import deep_gemm
from deep_gemm.testing import calc_diff
from deep_gemm.utils import align, arrays, per_block_cast_to_fp8, per_token_cast_to_fp8

FP8_DIFF, BF16_DIFF = 1e-3, 1e-5
ALIGNMENT = 128


class Maker:
    """Random matrices, empty outputs and products in the library of a device."""

    def __init__(self, device: Any) -> None:
        self.emulated = device.emulated
        self.keywords = {"device": device} if device.emulated else {}
        self.rng = np.random.default_rng(0)
        if not self.emulated:
            self.torch = pytest.importorskip("torch", reason="full shapes need PyTorch")
            self.torch.manual_seed(0)

    def randn(self, *shape: int) -> Any:
        if self.emulated:
            return self.rng.standard_normal(shape).astype(ml_dtypes.bfloat16)
        return self.torch.randn(shape, device="cuda", dtype=self.torch.bfloat16)

    def empty(self, *shape: int, kind: str = "bf16") -> Any:
        like = self.randn(1)
        return arrays.zeros(like, shape, kind) + float("nan")

    def integers(self, values: Any) -> Any:
        host = np.asarray(values, np.int32)
        return host if self.emulated else self.torch.from_numpy(host).cuda()

    def product(self, a: Any, b: Any) -> Any:
        return arrays.cast(a, "fp32") @ arrays.cast(b, "fp32").T

    def sizes(self, full: list[Any], small: list[Any]) -> list[Any]:
        return small if self.emulated else full


@pytest.fixture
def make(device: Any) -> Maker:
    return Maker(device)


NK = [(2112, 7168), (576, 7168), (24576, 1536), (32768, 512), (7168, 16384), (4096, 7168), (7168, 2048)]
GROUPED_NK = [(6144, 7168), (7168, 3072), (4096, 4096), (4096, 2048)]


def group_cast(x: Any) -> Any:
    parts = [per_block_cast_to_fp8(matrix) for matrix in x]
    if arrays.is_torch(x):
        import torch

        return tuple(torch.stack(list(part)) for part in zip(*parts, strict=True))
    return tuple(np.stack(list(part)) for part in zip(*parts, strict=True))


def token_cast(x: Any) -> Any:
    values, scales = per_token_cast_to_fp8(x.reshape(-1, x.shape[-1]))
    return values.reshape(x.shape), scales.reshape(*x.shape[:-1], -1)


def test_fp8_forward(make: Maker) -> None:
    for m in make.sizes([1, 128, 4096], [1, 40]):
        for n, k in make.sizes(NK, [(136, 384)]):
            a, b, d = make.randn(m, k), make.randn(n, k), make.empty(m, n)
            left, right = per_token_cast_to_fp8(a), per_block_cast_to_fp8(b)
            deep_gemm.fp8_fp4_gemm_nt(
                left, right, d, c=None, disable_ue8m0_cast=True, recipe=None, **make.keywords
            )
            assert calc_diff(d, make.product(a, b)) < FP8_DIFF, (m, n, k)


def test_fp8_weight_gradient(make: Maker) -> None:
    """fp32 accumulation into d itself, one scale for each row of both operands."""
    for m, n, k in make.sizes([(2112, 4096, 7168), (7168, 4096, 2048)], [(72, 96, 256)]):
        a, b = make.randn(m, k), make.randn(n, k)
        d = arrays.cast(make.randn(m, n), "fp32") * 32
        expected = make.product(a, b) + d
        left, right = per_token_cast_to_fp8(a), per_token_cast_to_fp8(b)
        deep_gemm.fp8_gemm_nt(left, right, d, c=d, recipe=(1, 1, 128), **make.keywords)
        assert calc_diff(d, expected) < FP8_DIFF, (m, n, k)


def contiguous_rows(make: Maker, groups: int, mean: int) -> tuple[list[int], list[int]]:
    actual = [int(mean * factor) for factor in make.rng.uniform(0.7, 1.3, groups)]
    return actual, [align(rows, ALIGNMENT) for rows in actual]


@pytest.mark.parametrize("use_psum_layout", [False, True])
@pytest.mark.parametrize("ab", ["fp8", "bf16"])
def test_contiguous(make: Maker, ab: str, use_psum_layout: bool) -> None:
    for groups, mean in make.sizes([(4, 8192), (8, 4096)], [(3, 100)]):
        for n, k in make.sizes(GROUPED_NK, [(136, 256)]):
            actual, padded = contiguous_rows(make, groups, mean)
            starts = [sum(padded[:i]) for i in range(groups)]
            a, b, d = make.randn(sum(padded), k), make.randn(groups, n, k), make.empty(sum(padded), n)
            indices = np.full(sum(padded), -1, np.int32)
            expected = arrays.zeros(a, (sum(padded), n), "fp32")
            for i, (start, rows, room) in enumerate(zip(starts, actual, padded, strict=True)):
                indices[start : start + rows] = i
                a[start + rows : start + room] = 0
                expected[start : start + rows] = make.product(a[start : start + rows], b[i])
            ends = [start + rows for start, rows in zip(starts, actual, strict=True)]
            layout = make.integers(ends if use_psum_layout else indices)
            if ab == "fp8":
                left, right = per_token_cast_to_fp8(a), group_cast(b)
                operation = deep_gemm.m_grouped_fp8_fp4_gemm_nt_contiguous
            else:
                left, right = a, b
                operation = deep_gemm.m_grouped_bf16_gemm_nt_contiguous
            operation(left, right, d, layout, use_psum_layout=use_psum_layout, **make.keywords)
            limit = FP8_DIFF if ab == "fp8" else BF16_DIFF
            assert calc_diff(d, expected) < limit, (groups, n, k)


@pytest.mark.parametrize("ab", ["fp8", "bf16"])
def test_masked(make: Maker, ab: str) -> None:
    for groups, mean in make.sizes([(32, 192), (6, 1024), (32, 20), (6, 20)], [(4, 20)]):
        max_m = 4096 if not make.emulated else 64
        for n, k in make.sizes(GROUPED_NK[1:3], [(136, 256)]):
            a, b, d = make.randn(groups, max_m, k), make.randn(groups, n, k), make.empty(groups, max_m, n)
            rows = [int(mean * factor) for factor in make.rng.uniform(0.7, 1.3, groups)]
            counts, expected_m = make.integers(rows), int(mean * 1.2)
            if ab == "fp8":
                operands = token_cast(a), group_cast(b)
                deep_gemm.m_grouped_fp8_gemm_nt_masked(*operands, d, counts, expected_m, **make.keywords)
            else:
                deep_gemm.m_grouped_bf16_gemm_nt_masked(a, b, d, counts, expected_m, **make.keywords)
            limit = FP8_DIFF if ab == "fp8" else BF16_DIFF
            for i, count in enumerate(rows):
                diff = calc_diff(d[i, :count], make.product(a[i, :count], b[i]))
                assert diff < limit, (groups, n, k, i, count)


@pytest.mark.parametrize("kind", ["bf16", "fp32"])
@pytest.mark.parametrize("accumulate", [False, True])
def test_bf16(make: Maker, kind: str, accumulate: bool) -> None:
    for m in make.sizes([1, 128, 4096], [1, 70]):
        for n, k in make.sizes([(2112, 7168), (576, 7168), (7168, 2048), (256, 7168)], [(136, 320)]):
            a, b = make.randn(m, k), make.randn(n, k)
            d = arrays.cast(make.randn(m, n), kind) * 32 if accumulate else make.empty(m, n, kind=kind)
            d = arrays.cast(d, kind)
            expected = make.product(a, b) + (arrays.cast(d, "fp32") if accumulate else 0)
            deep_gemm.bf16_gemm_nt(a, b, d, c=d if accumulate else None, **make.keywords)
            assert calc_diff(d, arrays.cast(expected, kind)) < BF16_DIFF, (m, n, k)


@pytest.mark.parametrize("form", ["nn", "tn", "tt"])
@pytest.mark.parametrize("accumulate", [False, True])
def test_bf16_backward(make: Maker, form: str, accumulate: bool) -> None:
    """Operands along M and N: as views of *_nt, and as what the letters say, with fp32 accumulation into d."""
    for m, n, k in make.sizes([(4096, 7168, 2112), (576, 4096, 7168), (2112, 4096, 7168)], [(72, 136, 96)]):
        left = make.randn(m, k) if form[0] == "n" else make.randn(k, m)
        right = make.randn(n, k) if form[1] == "t" else make.randn(k, n)
        a, b = left if form[0] == "n" else left.T, right if form[1] == "t" else right.T
        d = arrays.cast(make.randn(m, n), "fp32") * 32
        expected = make.product(a, b) + (d if accumulate else 0)
        for operation, operands in ((f"bf16_gemm_{form}", (left, right)), ("bf16_gemm_nt", (a, b))):
            out = d + 0
            getattr(deep_gemm, operation)(*operands, out, c=out if accumulate else None, **make.keywords)
            assert calc_diff(out, expected) < BF16_DIFF, (operation, m, n, k)


@pytest.mark.parametrize("use_psum_layout", [False, True])
def test_contiguous_along_n(make: Maker, use_psum_layout: bool) -> None:
    for groups, rows in make.sizes([(4, 2048), (8, 4096)], [(3, 128)]):
        for k, n in make.sizes(GROUPED_NK, [(256, 136)]):
            a, b = make.randn(groups * rows, k), make.randn(groups, k, n)
            ends, indices = rows * (np.arange(groups) + 1), np.repeat(np.arange(groups), rows)
            layout = make.integers(ends if use_psum_layout else indices)
            expected = [
                make.product(a[i * rows : (i + 1) * rows], b[i].swapaxes(0, 1)) for i in range(groups)
            ]
            calls = [("nn", b), ("nt", b.swapaxes(1, 2))]
            for form, right in calls:
                operation = getattr(deep_gemm, f"m_grouped_bf16_gemm_{form}_contiguous")
                d = make.empty(groups * rows, n)
                operation(a, right, d, layout, use_psum_layout=use_psum_layout, **make.keywords)
                for i in range(groups):
                    diff = calc_diff(d[i * rows : (i + 1) * rows], expected[i])
                    assert diff < BF16_DIFF, (form, groups, n, k, i)


def test_names_that_callers_import() -> None:
    """The entry points of DeepGEMM that serving engines use for these operations."""
    for name in [
        "fp8_gemm_nt",
        "fp8_fp4_gemm_nt",
        "m_grouped_fp8_gemm_nt_contiguous",
        "m_grouped_fp8_fp4_gemm_nt_contiguous",
        "m_grouped_fp8_gemm_nt_masked",
        "fp8_m_grouped_gemm_nt_masked",
        "bf16_m_grouped_gemm_nt_masked",
        "bf16_gemm_nt",
        "bf16_gemm_nn",
        "bf16_gemm_tn",
        "bf16_gemm_tt",
        "m_grouped_bf16_gemm_nn_contiguous",
        "m_grouped_bf16_gemm_nt_contiguous",
        "m_grouped_bf16_gemm_nt_masked",
        "cublaslt_gemm_nt",
        "get_num_sms",
        "set_num_sms",
        "get_tc_util",
        "set_tc_util",
        "get_pdl",
        "set_pdl",
        "set_ignore_compile_dims",
        "set_block_size_multiple_of",
        "init",
        "get_mk_alignment_for_contiguous_layout",
        "get_m_alignment_for_contiguous_layout",
        "get_tma_aligned_size",
        "get_theoretical_mk_alignment_for_contiguous_layout",
        "get_mn_major_tma_aligned_tensor",
        "get_mn_major_tma_aligned_packed_ue8m0_tensor",
        "transform_sf_into_required_layout",
    ]:
        assert callable(getattr(deep_gemm, name)), name
    for name in [
        "bench",
        "bench_kineto",
        "calc_diff",
        "count_bytes",
        "assert_bitwise_equal",
        "get_arch_major",
        "test_filter",
    ]:
        assert callable(getattr(deep_gemm.testing, name)), name
