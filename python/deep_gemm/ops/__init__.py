"""The operations that chain matrix products into DeepSeek-V4 and Qwen3-MoE.

Tensors are those of any framework, or numpy arrays on the emulated GPU; `device` and `stream` as for the GEMMs.
csrc/op/model_ops.h documents each one completely: shapes, formats, the meaning of idle rows, what a row depends on.
Every function writes into tensors that it is given and returns nothing. Row i of a result depends on row i of the
inputs alone, bit for bit. Wrong arguments raise ValueError or TypeError, and then nothing was launched.

What a model has loaded (weights and their scales, frequencies, sinks) may be read while operations of this package that
precede in the stream still run: to use what one of them has just written as such, synchronise, or set_pdl(False) first.
"""

from __future__ import annotations

from deep_gemm.ops.attention import (
    cache_write,
    compressor_restore,
    compressor_update,
    gqa_attention,
    gqa_records_shape,
    index_page_bytes,
    index_query,
    index_scores,
    index_select,
    latent_attention,
    latent_page_bytes,
    latent_write,
    rope,
    rope_frequencies,
    top_k,
)
from deep_gemm.ops.layers import (
    embed,
    expand_streams,
    expert_down,
    expert_up,
    hc_head,
    hc_post,
    hc_pre,
    project,
    rms_norm,
    route,
)
from deep_gemm.ops.tokens import (
    accept_drafts,
    argmax,
    fill_positions,
    sample_distribution,
    sample_draw,
)

__all__ = [
    "accept_drafts",
    "argmax",
    "cache_write",
    "compressor_restore",
    "compressor_update",
    "embed",
    "expand_streams",
    "expert_down",
    "expert_up",
    "fill_positions",
    "gqa_attention",
    "gqa_records_shape",
    "hc_head",
    "hc_post",
    "hc_pre",
    "index_page_bytes",
    "index_query",
    "index_scores",
    "index_select",
    "latent_attention",
    "latent_page_bytes",
    "latent_write",
    "project",
    "rms_norm",
    "rope",
    "rope_frequencies",
    "route",
    "sample_distribution",
    "sample_draw",
    "top_k",
]
