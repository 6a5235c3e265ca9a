"""DeepGEMM's names for what this package calls otherwise, and its calls that have nothing to do here.

Code written for DeepGEMM uses `deep_gemm` itself, which has these names too; docs/api.md ("DeepGEMM's names") lists
which of DeepGEMM's functions are here, and which are not.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from deep_gemm._C import (
    bf16_gemm_nn,
    bf16_gemm_tn,
    bf16_gemm_tt,
    fp8_fp4_gemm_nn,
    fp8_fp4_gemm_tn,
    fp8_fp4_gemm_tt,
    fp8_gemm_nn,
    fp8_gemm_tn,
    fp8_gemm_tt,
    m_grouped_bf16_gemm_nn_contiguous,
    m_grouped_bf16_gemm_nt_masked,
    m_grouped_fp8_fp4_gemm_nn_contiguous,
    m_grouped_fp8_gemm_nn_contiguous,
    m_grouped_fp8_gemm_nt_masked,
)
from deep_gemm.utils import arrays

fp8_m_grouped_gemm_nt_masked = m_grouped_fp8_gemm_nt_masked
bf16_m_grouped_gemm_nt_masked = m_grouped_bf16_gemm_nt_masked

_ignored: dict[str, Any] = {"tc_util": 100, "compile_dims": False, "block_size_multiple_of": (1, 1)}


def set_tc_util(new_tc_util: int) -> None:
    """Kept for its getter: plans cost the tensor cores from measured constants. 0 means 100 percent."""
    if not isinstance(new_tc_util, int) or not 0 <= new_tc_util <= 100:
        raise ValueError(
            f"set_tc_util: got {new_tc_util!r}, expected an int, 0 to 100 percent; 100 is the default"
        )
    _ignored["tc_util"] = new_tc_util


def get_tc_util() -> int:
    """The percentage that set_tc_util was told, 100 by default."""
    return int(_ignored["tc_util"]) or 100


def set_ignore_compile_dims(new_value: bool) -> None:
    """Accepted: no kernel here is compiled for one shape, so there is nothing to ignore."""
    _ignored["compile_dims"] = bool(new_value)


def set_block_size_multiple_of(new_value: int | tuple[int, int]) -> None:
    """Accepted: blocks are multiples of 64 columns and change no result; `spec=` chooses a block exactly."""
    pair = (new_value, new_value) if isinstance(new_value, int) else new_value
    if not isinstance(pair, tuple) or len(pair) != 2 or not all(isinstance(x, int) and x > 0 for x in pair):
        raise ValueError(
            f"set_block_size_multiple_of: got {new_value!r}, expected a positive int, or two as a tuple: (16, 64)"
        )
    _ignored["block_size_multiple_of"] = pair


def init(library_root: str = "", cuda_home: str = "") -> None:
    """Accepted: device code travels inside the library, and no CUDA toolkit is needed."""
    del library_root, cuda_home


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
    "m_grouped_fp8_fp4_gemm_nn_contiguous",
    "m_grouped_fp8_gemm_nn_contiguous",
    "set_block_size_multiple_of",
    "set_ignore_compile_dims",
    "set_tc_util",
]
