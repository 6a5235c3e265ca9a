"""FP8 and BF16 matrix kernels, compiled while your program runs, on an NVIDIA GPU or an emulated one.

    import deep_gemm
    deep_gemm.fp8_gemm_nt((a, a_scales), (b, b_scales), d)

Importing starts nothing: no CUDA context, no thread, no file. Names and arguments are DeepGEMM's.
"""

from deep_gemm import compat, ops, testing, utils
from deep_gemm._C import (
    Device,
    Error,
    Fp4Weights,
    GemmSpec,
    __version__,
    bf16_gemm_nt,
    enumerate_specs,
    explain,
    fp8_gemm_nt,
    get_num_sms,
    get_pdl,
    last_plan,
    m_grouped_bf16_gemm_nt_contiguous,
    m_grouped_bf16_gemm_nt_masked,
    m_grouped_fp8_gemm_nt_contiguous,
    m_grouped_fp8_gemm_nt_masked,
    plan,
    set_num_sms,
    set_pdl,
    view_as,
    warmup,
)
from deep_gemm.compat import *  # noqa: F403
from deep_gemm.compat import __all__ as _compat_names
from deep_gemm.runtime import Engine, Session
from deep_gemm.fp4 import pack_fp4_weights
from deep_gemm.utils import *  # noqa: F403
from deep_gemm.utils import __all__ as _utils_names

__all__ = [
    "Device",
    "Engine",
    "Error",
    "Fp4Weights",
    "GemmSpec",
    "Session",
    "__version__",
    "bf16_gemm_nt",
    "compat",
    "enumerate_specs",
    "explain",
    "fp8_gemm_nt",
    "get_num_sms",
    "get_pdl",
    "last_plan",
    "m_grouped_bf16_gemm_nt_contiguous",
    "m_grouped_bf16_gemm_nt_masked",
    "m_grouped_fp8_gemm_nt_contiguous",
    "m_grouped_fp8_gemm_nt_masked",
    "ops",
    "pack_fp4_weights",
    "plan",
    "set_num_sms",
    "set_pdl",
    "testing",
    "utils",
    "view_as",
    "warmup",
    *_compat_names,
    *_utils_names,
]
