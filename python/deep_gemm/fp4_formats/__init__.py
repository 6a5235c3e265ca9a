"""Narrow formats: FP4 checkpoints as stored, and casts to MXFP4 and NVFP4. docs/formats.md has the rules."""

from deep_gemm.fp4_formats.blocks import (
    dequantize_mxfp4,
    dequantize_nvfp4,
    nvfp4_global_scale,
    quantize_mxfp4,
    quantize_nvfp4,
)
from deep_gemm.fp4_formats.importers import (
    from_deepgemm,
    from_deepseek,
    from_gguf_mxfp4,
    from_nvfp4,
    swizzle_scales,
    unswizzle_scales,
)
from deep_gemm.fp4_formats.tokens import quantize_tokens

__all__ = [
    "dequantize_mxfp4",
    "dequantize_nvfp4",
    "from_deepgemm",
    "from_deepseek",
    "from_gguf_mxfp4",
    "from_nvfp4",
    "nvfp4_global_scale",
    "quantize_mxfp4",
    "quantize_nvfp4",
    "quantize_tokens",
    "swizzle_scales",
    "unswizzle_scales",
]
