"""FP8 and BF16 matrix kernels, compiled while your program runs, on an NVIDIA GPU or an emulated one.

    import deep_gemm
    deep_gemm.fp8_gemm_nt((a, a_scales), (b, b_scales), d)

Importing starts nothing: no CUDA context, no thread, no file. Names and arguments are DeepGEMM's.
"""

from deep_gemm import compat, fp4_formats, ops, testing, utils
from deep_gemm._C import (
    Device,
    Error,
    Fp4GemmSpec,
    Fp4Weights,
    GemmSpec,
    __version__,
    bf16_gemm_nt,
    enumerate_specs,
    explain,
    explain_fp4,
    fp8_fp4_gemm_nt,
    fp8_gemm_nt,
    get_num_sms,
    get_pdl,
    last_fp4_plan,
    last_plan,
    m_grouped_bf16_gemm_nt_contiguous,
    m_grouped_bf16_gemm_nt_masked,
    m_grouped_fp8_fp4_gemm_nt_contiguous,
    m_grouped_fp8_fp4_gemm_nt_gathered,
    m_grouped_fp8_fp4_gemm_nt_masked,
    m_grouped_fp8_gemm_nt_contiguous,
    m_grouped_fp8_gemm_nt_masked,
    plan,
    plan_fp4,
    set_num_sms,
    set_pdl,
    view_as,
    warmup,
)
from deep_gemm.bundles import open_bundle, write_bundle
from deep_gemm.compat import *  # noqa: F403
from deep_gemm.compat import __all__ as _compat_names
from deep_gemm.fp4 import pack_fp4_weights
from deep_gemm.fp4_checkpoint import Fp4Report, pack_fp4_checkpoint
from deep_gemm.grouping import TokenGroups, group_tokens
from deep_gemm.linear_ops import *  # noqa: F403
from deep_gemm.linear_ops import __all__ as _linear_names
from deep_gemm.moe import fused_moe, moe_workspace
from deep_gemm.quantized import QuantizedMatrix, quantize
from deep_gemm.runtime import Engine, Session
from deep_gemm.utils import *  # noqa: F403
from deep_gemm.utils import __all__ as _utils_names

__all__ = [
    "fp4_formats",
    "Device",
    "Engine",
    "Error",
    "Fp4GemmSpec",
    "Fp4Weights",
    "GemmSpec",
    "Session",
    "QuantizedMatrix",
    "__version__",
    "bf16_gemm_nt",
    "compat",
    "enumerate_specs",
    "explain",
    "fp8_fp4_gemm_nt",
    "explain_fp4",
    "last_fp4_plan",
    "m_grouped_fp8_fp4_gemm_nt_contiguous",
    "m_grouped_fp8_fp4_gemm_nt_gathered",
    "m_grouped_fp8_fp4_gemm_nt_masked",
    "plan_fp4",
    "fp8_gemm_nt",
    "fused_moe",
    "get_num_sms",
    "group_tokens",
    "TokenGroups",
    "get_pdl",
    "last_plan",
    "m_grouped_bf16_gemm_nt_contiguous",
    "m_grouped_bf16_gemm_nt_masked",
    "m_grouped_fp8_gemm_nt_contiguous",
    "m_grouped_fp8_gemm_nt_masked",
    "ops",
    "Fp4Report",
    "pack_fp4_checkpoint",
    "pack_fp4_weights",
    "moe_workspace",
    "open_bundle",
    "plan",
    "quantize",
    "set_num_sms",
    "set_pdl",
    "testing",
    "utils",
    "view_as",
    "warmup",
    "write_bundle",
    *_compat_names,
    *_linear_names,
    *_utils_names,
]
