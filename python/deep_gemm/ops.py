"""The operations that chain matrix products into DeepSeek-V4 and Qwen3-MoE.

Tensors are those of any framework, or numpy arrays on the emulated GPU; `device` and `stream` as for the GEMMs.
csrc/op/model_ops.h documents each one completely: shapes, formats, the meaning of idle rows, what a row depends on.
Every function writes into tensors that it is given and returns nothing. Row i of a result depends on row i of the
inputs alone, bit for bit. Wrong arguments raise ValueError or TypeError, and then nothing was launched.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from deep_gemm import _C

__all__ = [
    "cache_write",
    "embed",
    "expand_streams",
    "expert_down",
    "expert_up",
    "hc_head",
    "hc_post",
    "hc_pre",
    "index_query",
    "latent_page_bytes",
    "latent_write",
    "project",
    "rms_norm",
    "rope",
    "rope_frequencies",
    "route",
]


def project(x: Any, w: Any, y: Any, *, x_scale: Any = None, w_scale: Any = None, add: Any = None, device: Any = None,
            stream: int | None = None) -> None:  # fmt: skip
    """y = add + x w^T, for x [t, k] or [t, groups, k]; w fp32, bf16, FP8 (128 x 128 scales) or MXFP4 bytes."""
    _C.ops.project(**locals())


def expert_up(x: Any, w1: Any, w3: Any, mid: Any, *, x_scale: Any = None, w1_scale: Any = None, w3_scale: Any = None,
              experts: Any = None, weights: Any = None, limit: float = 0, device: Any = None,
              stream: int | None = None) -> None:  # fmt: skip
    """mid[t, j] = silu(x w1[e]^T) * (x w3[e]^T) * weights[t, j], clamped at `limit`, for e = experts[t, j]."""
    _C.ops.expert_up(**locals())


def expert_down(mid: Any, w2: Any, y: Any, *, mid_scale: Any = None, w2_scale: Any = None, experts: Any = None,
                weights: Any = None, add: Any = None, device: Any = None, stream: int | None = None) -> None:  # fmt: skip
    """y = add + the sum over slots j, in order, of mid[t, j] w2[experts[t, j]]^T."""
    _C.ops.expert_down(**locals())


def embed(tokens: Any, table: Any, x: Any, *, device: Any = None, stream: int | None = None) -> None:
    """Every stream of x [t, (streams,) d] becomes the token's row of the table."""
    _C.ops.embed(**locals())


def expand_streams(value: Any, x: Any, *, accumulate: bool = False, device: Any = None,
                   stream: int | None = None) -> None:  # fmt: skip
    """Every stream of x becomes value [t, d], or has it added."""
    _C.ops.expand_streams(**locals())


def rms_norm(x: Any, y: Any, *, weight: Any = None, eps: float = 1e-6, device: Any = None,
             stream: int | None = None) -> None:  # fmt: skip
    """y = x / sqrt(mean(x^2) + eps) * weight over the last dimension."""
    _C.ops.rms_norm(**locals())


def hc_pre(x: Any, fn: Any, base: Any, scale: Any, y: Any, post: Any, comb: Any, *, weight: Any = None,
           sinkhorn_iterations: int = 20, hc_eps: float = 1e-6, rms_eps: float = 1e-6, device: Any = None,
           stream: int | None = None) -> None:  # fmt: skip
    """A sublayer's (normed) input y from the streams x [t, h, d], and post and comb for hc_post."""
    _C.ops.hc_pre(**locals())


def hc_post(
    x: Any, y: Any, post: Any, comb: Any, out: Any, *, device: Any = None, stream: int | None = None
) -> None:
    """out[:, b] = post[:, b] y + sum over a of comb[:, a, b] x[:, a]."""
    _C.ops.hc_post(**locals())


def hc_head(x: Any, fn: Any, base: Any, scale: Any, y: Any, *, weight: Any = None, hc_eps: float = 1e-6,
            rms_eps: float = 1e-6, device: Any = None, stream: int | None = None) -> None:  # fmt: skip
    """The streams' weighted sum before the output head, and the RMS norm that follows it if `weight` is given."""
    _C.ops.hc_head(**locals())


def route(logits: Any, experts: Any, weights: Any, *, bias: Any = None, hash: Any = None, tokens: Any = None,
          score: str = "sqrt_softplus", normalize: bool = True, scale: float = 1, device: Any = None,
          stream: int | None = None) -> None:  # fmt: skip
    """Experts int32 [t, k] of each row and their weights, by score (ties to the lower expert) or by token id."""
    _C.ops.route(**locals())


def rope_frequencies(dims: int = 64, theta: float = 10000, *, yarn_factor: float = 0, yarn_original_context: float = 65536,
                     yarn_beta_fast: float = 32, yarn_beta_slow: float = 1) -> npt.NDArray[np.float32]:  # fmt: skip
    """fp32 [dims / 2, 2]: turns per position, each as the sum of two floats. For `frequencies` of the operations."""
    return np.array(_C.ops.rope_frequencies(**locals()), np.float32).reshape(-1, 2)


def rope(x: Any, frequencies: Any, positions: Any, y: Any, *, weight: Any = None, norm: bool = False, inverse: bool = False,
         pairs: str = "interleaved", eps: float = 1e-6, device: Any = None, stream: int | None = None) -> None:  # fmt: skip
    """Rotates the last channels of x [t, (heads,) d], after the RMS norm of each head if `norm`."""
    _C.ops.rope(**locals())


def latent_page_bytes(page_rows: int) -> int:
    """Bytes of a page of FP8 rows: 584 a row, rounded up to a multiple of 576."""
    return -(-584 * page_rows // 576) * 576


def latent_write(x: Any, weight: Any, frequencies: Any, positions: Any, rows: Any, *, sequences: Any = None,
                 page_rows: int = 0, fp8_round_trip: bool = False, eps: float = 1e-6, device: Any = None,
                 stream: int | None = None) -> None:  # fmt: skip
    """Norm, rotation, rounding and cache row (position % rows) of x [t, d] in one kernel."""
    _C.ops.latent_write(**locals())


def cache_write(x: Any, positions: Any, rows: Any, *, sequences: Any = None, device: Any = None,
                stream: int | None = None) -> None:  # fmt: skip
    """rows[sequence, position % n] = x [t, heads, d]."""
    _C.ops.cache_write(**locals())


def index_query(x: Any, frequencies: Any, positions: Any, y: Any, *, finish: str = "hadamard_fp4", device: Any = None,
                stream: int | None = None) -> None:  # fmt: skip
    """Indexer queries: rotation, then none, hadamard or hadamard_fp4."""
    _C.ops.index_query(**locals())
