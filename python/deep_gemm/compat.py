"""DeepGEMM's names for what this package calls otherwise, and its calls that have nothing to do here.

Code written for DeepGEMM finds everything in `deep_gemm` itself; this module only holds the mapping.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from deep_gemm._C import (
    bf16_gemm_nt,
    fp8_gemm_nt,
    m_grouped_bf16_gemm_nt_contiguous,
    m_grouped_bf16_gemm_nt_masked,
    m_grouped_fp8_gemm_nt_contiguous,
    m_grouped_fp8_gemm_nt_masked,
)
from deep_gemm.utils import arrays

fp8_m_grouped_gemm_nt_masked = m_grouped_fp8_gemm_nt_masked
bf16_m_grouped_gemm_nt_masked = m_grouped_bf16_gemm_nt_masked

_ignored: dict[str, Any] = {"tc_util": 100, "compile_dims": False, "block_size_multiple_of": (1, 1)}


def set_tc_util(new_tc_util: int) -> None:
    """Kept for its getter: plans cost the tensor cores from measured constants."""
    if not 0 < new_tc_util <= 100:
        raise ValueError(f"set_tc_util: got {new_tc_util}, expected 1 to 100 percent")
    _ignored["tc_util"] = new_tc_util


def get_tc_util() -> int:
    return int(_ignored["tc_util"])


def set_ignore_compile_dims(new_value: bool) -> None:
    """Accepted: no kernel here is compiled for one shape, so there is nothing to ignore."""
    _ignored["compile_dims"] = bool(new_value)


def set_block_size_multiple_of(new_value: int | tuple[int, int]) -> None:
    """Accepted: blocks are multiples of 64 columns and change no result; `spec=` chooses a block exactly."""
    _ignored["block_size_multiple_of"] = (
        (new_value, new_value) if isinstance(new_value, int) else tuple(new_value)
    )


def init(library_root: str = "", cuda_home: str = "") -> None:
    """Accepted: device code travels inside the library, and no CUDA toolkit is needed."""
    del library_root, cuda_home


def _transposed(pair: Any) -> Any:
    return tuple(_transposed(part) for part in pair) if isinstance(pair, tuple) else pair.swapaxes(-1, -2)


def fp8_gemm_nn(a: Any, b: Any, d: Any, *args: Any, **kwargs: Any) -> None:
    """b given as [k, n]; Hopper multiplies FP8 along contiguous K only, so b must be a view of an [n, k] tensor."""
    fp8_gemm_nt(a, _transposed(b), d, *args, **kwargs)


def fp8_gemm_tn(a: Any, b: Any, d: Any, *args: Any, **kwargs: Any) -> None:
    """a given as [k, m] and b as [k, n]; see fp8_gemm_nn."""
    fp8_gemm_nt(_transposed(a), _transposed(b), d, *args, **kwargs)


def fp8_gemm_tt(a: Any, b: Any, d: Any, *args: Any, **kwargs: Any) -> None:
    """a given as [k, m]; see fp8_gemm_nn."""
    fp8_gemm_nt(_transposed(a), b, d, *args, **kwargs)


def bf16_gemm_nn(a: Any, b: Any, d: Any, c: Any = None, **kwargs: Any) -> None:
    """b given as [k, n], contiguous along either."""
    bf16_gemm_nt(a, _transposed(b), d, c, **kwargs)


def bf16_gemm_tn(a: Any, b: Any, d: Any, c: Any = None, **kwargs: Any) -> None:
    """a given as [k, m] and b as [k, n], contiguous along either."""
    bf16_gemm_nt(_transposed(a), _transposed(b), d, c, **kwargs)


def bf16_gemm_tt(a: Any, b: Any, d: Any, c: Any = None, **kwargs: Any) -> None:
    """a given as [k, m], contiguous along either."""
    bf16_gemm_nt(_transposed(a), b, d, c, **kwargs)


def m_grouped_bf16_gemm_nn_contiguous(
    a: Any, b: Any, d: Any, grouped_layout: Any, *args: Any, **kwargs: Any
) -> None:
    """m_grouped_bf16_gemm_nt_contiguous with b given as [groups, k, n], contiguous along either."""
    m_grouped_bf16_gemm_nt_contiguous(a, _transposed(b), d, grouped_layout, *args, **kwargs)


def m_grouped_fp8_gemm_nn_contiguous(
    a: Any, b: Any, d: Any, grouped_layout: Any, *args: Any, **kwargs: Any
) -> None:
    """m_grouped_fp8_gemm_nt_contiguous with b given as [groups, k, n]; see fp8_gemm_nn."""
    m_grouped_fp8_gemm_nt_contiguous(a, _transposed(b), d, grouped_layout, *args, **kwargs)


@contextlib.contextmanager
def _fp32_sums(torch: Any) -> Iterator[None]:
    """PyTorch lets cuBLAS add the parts of a split K in bf16, which DeepGEMM does not."""
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_bf16_reduced_precision_reduction
    matmul.allow_bf16_reduced_precision_reduction = False
    try:
        yield
    finally:
        matmul.allow_bf16_reduced_precision_reduction = before


def cublaslt_gemm_nt(a: Any, b: Any, d: Any, c: Any = None) -> None:
    """D = C + A B^T by cuBLASLt through PyTorch, FP8 without scales: what benchmarks compare with."""
    torch = arrays.torch_for("cublaslt_gemm_nt")
    with _fp32_sums(torch):
        _torch_gemm_nt(torch, a, b, d, c)


def _torch_gemm_nt(torch: Any, a: Any, b: Any, d: Any, c: Any) -> None:
    if a.dtype == torch.float8_e4m3fn:
        one = torch.ones((), dtype=torch.float32, device=a.device)
        product = torch._scaled_mm(a, b.T, one, one, out_dtype=d.dtype)
    elif d.dtype == a.dtype:
        if c is None:
            torch.mm(a, b.T, out=d)
        else:
            torch.addmm(c, a, b.T, out=d)
        return
    else:
        product = torch.mm(a, b.T, out_dtype=d.dtype)
    d.copy_(product if c is None else product + c)


fp8_fp4_gemm_nn, fp8_fp4_gemm_tn, fp8_fp4_gemm_tt = fp8_gemm_nn, fp8_gemm_tn, fp8_gemm_tt
m_grouped_fp8_fp4_gemm_nn_contiguous = m_grouped_fp8_gemm_nn_contiguous

__all__ = [
    "bf16_gemm_nn",
    "bf16_gemm_tn",
    "bf16_gemm_tt",
    "bf16_m_grouped_gemm_nt_masked",
    "cublaslt_gemm_nt",
    "fp8_fp4_gemm_nn",
    "fp8_fp4_gemm_tn",
    "fp8_fp4_gemm_tt",
    "fp8_gemm_nn",
    "fp8_gemm_tn",
    "fp8_gemm_tt",
    "fp8_m_grouped_gemm_nt_masked",
    "get_tc_util",
    "init",
    "m_grouped_bf16_gemm_nn_contiguous",
    "m_grouped_bf16_gemm_nt_contiguous",
    "m_grouped_bf16_gemm_nt_masked",
    "m_grouped_fp8_fp4_gemm_nn_contiguous",
    "m_grouped_fp8_gemm_nn_contiguous",
    "set_block_size_multiple_of",
    "set_ignore_compile_dims",
    "set_tc_util",
]
