"""Matrix products, experts, embedding, norms, hyper-connections: a layer without its attention. See deep_gemm.ops."""

from __future__ import annotations

from typing import Any

from deep_gemm import _C


def project(
    x: Any,
    w: Any,
    y: Any,
    *,
    x_scale: Any = None,
    w_scale: Any = None,
    add: Any = None,
    round_x: bool = False,
    device: Any = None,
    stream: int | None = None,
) -> None:
    """y = add + x w^T, for x [t, k] or [t, groups, k]; w fp32, bf16, FP8 (128 x 128 scales) or MXFP4 bytes.

    `round_x`: up to 8 rows of bf16 x meet FP8 w as quantize(recipe="fp8_128", rule="up") would leave them.
    """
    _C.op_project(**locals())


def expert_up(
    x: Any,
    w1: Any,
    w3: Any,
    mid: Any,
    *,
    x_scale: Any = None,
    w1_scale: Any = None,
    w3_scale: Any = None,
    experts: Any = None,
    weights: Any = None,
    limit: float = 0,
    device: Any = None,
    stream: int | None = None,
) -> None:
    """mid[t, j] = silu(x w1[e]^T) * (x w3[e]^T) * weights[t, j], clamped at `limit`, for e = experts[t, j]."""
    _C.op_expert_up(**locals())


def expert_down(
    mid: Any,
    w2: Any,
    y: Any,
    *,
    mid_scale: Any = None,
    w2_scale: Any = None,
    experts: Any = None,
    weights: Any = None,
    add: Any = None,
    device: Any = None,
    stream: int | None = None,
) -> None:
    """y = add + the sum over slots j, in order, of mid[t, j] w2[experts[t, j]]^T."""
    _C.op_expert_down(**locals())


def route(
    logits: Any,
    experts: Any,
    weights: Any,
    *,
    bias: Any = None,
    hash: Any = None,
    tokens: Any = None,
    score: str = "sqrt_softplus",
    normalize: bool = True,
    scale: float = 1,
    device: Any = None,
    stream: int | None = None,
) -> None:
    """Experts int32 [t, k] of each row and their weights, by score (ties to the lower expert) or by token id."""
    _C.op_route(**locals())


def embed(tokens: Any, table: Any, x: Any, *, device: Any = None, stream: int | None = None) -> None:
    """Every stream of x [t, (streams,) d] becomes the token's row of the table."""
    _C.op_embed(**locals())


def expand_streams(
    value: Any, x: Any, *, accumulate: bool = False, device: Any = None, stream: int | None = None
) -> None:
    """Every stream of x becomes value [t, d], or has it added."""
    _C.op_expand_streams(**locals())


def rms_norm(
    x: Any,
    y: Any,
    *,
    weight: Any = None,
    eps: float = 1e-6,
    codes: Any = None,
    scales: Any = None,
    global_scale: Any = None,
    recipe: str = "fp8_128",
    rule: str = "up",
    device: Any = None,
    stream: int | None = None,
) -> None:
    """y = x / sqrt(mean(x^2) + eps) * weight over the last dimension; bf16 rows [t, d] also in a narrow form, if
    `codes` and `scales` are given: FP8, 'mxfp4', or 'nvfp4' with a global scale for each token. FP8 scales are powers
    of two, or with rule 'exact' any."""
    _C.op_rms_norm(**locals())


def hc_pre(
    x: Any,
    fn: Any,
    base: Any,
    scale: Any,
    y: Any,
    post: Any,
    comb: Any,
    *,
    weight: Any = None,
    add: Any = None,
    codes: Any = None,
    scales: Any = None,
    global_scale: Any = None,
    recipe: str = "fp8_128",
    sinkhorn_iterations: int = 20,
    hc_eps: float = 1e-6,
    rms_eps: float = 1e-6,
    device: Any = None,
    stream: int | None = None,
) -> None:
    """A sublayer's (normed) input y from the streams x [t, h, d], and post and comb for hc_post.

    `add`: the output of the sublayer before, which x takes in first as hc_post does with the present post and comb.
    `codes`, `scales`: y also in a narrow form, as in rms_norm().
    """
    _C.op_hc_pre(**locals())


def hc_post(
    x: Any, y: Any, post: Any, comb: Any, out: Any, *, device: Any = None, stream: int | None = None
) -> None:
    """out[:, b] = post[:, b] y + sum over a of comb[:, a, b] x[:, a]."""
    _C.op_hc_post(**locals())


def hc_head(
    x: Any,
    fn: Any,
    base: Any,
    scale: Any,
    y: Any,
    *,
    weight: Any = None,
    hc_eps: float = 1e-6,
    rms_eps: float = 1e-6,
    device: Any = None,
    stream: int | None = None,
) -> None:
    """The streams' weighted sum before the output head, and the RMS norm that follows it if `weight` is given."""
    _C.op_hc_head(**locals())
