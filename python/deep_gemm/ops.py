"""The operations that chain matrix products into DeepSeek-V4 and Qwen3-MoE.

Tensors are those of any framework, or numpy arrays on the emulated GPU; `device` and `stream` as for the GEMMs.
csrc/op/model_ops.h documents each one completely: shapes, formats, the meaning of idle rows, what a row depends on.
Every function writes into tensors that it is given and returns nothing. Row i of a result depends on row i of the
inputs alone, bit for bit. Wrong arguments raise ValueError or TypeError, and then nothing was launched.
"""

from __future__ import annotations

from typing import Any

from deep_gemm import _C

__all__ = [
    "embed",
    "expand_streams",
    "expert_down",
    "expert_up",
    "hc_head",
    "hc_post",
    "hc_pre",
    "project",
    "rms_norm",
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
