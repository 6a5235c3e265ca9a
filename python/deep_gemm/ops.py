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
    "hc_head",
    "hc_post",
    "hc_pre",
    "index_query",
    "index_scores",
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


def project(
    x: Any,
    w: Any,
    y: Any,
    *,
    x_scale: Any = None,
    w_scale: Any = None,
    add: Any = None,
    device: Any = None,
    stream: int | None = None,
) -> None:
    """y = add + x w^T, for x [t, k] or [t, groups, k]; w fp32, bf16, FP8 (128 x 128 scales) or MXFP4 bytes."""
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


def embed(tokens: Any, table: Any, x: Any, *, device: Any = None, stream: int | None = None) -> None:
    """Every stream of x [t, (streams,) d] becomes the token's row of the table."""
    _C.op_embed(**locals())


def expand_streams(
    value: Any, x: Any, *, accumulate: bool = False, device: Any = None, stream: int | None = None
) -> None:
    """Every stream of x becomes value [t, d], or has it added."""
    _C.op_expand_streams(**locals())


def rms_norm(
    x: Any, y: Any, *, weight: Any = None, eps: float = 1e-6, device: Any = None, stream: int | None = None
) -> None:
    """y = x / sqrt(mean(x^2) + eps) * weight over the last dimension."""
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
    sinkhorn_iterations: int = 20,
    hc_eps: float = 1e-6,
    rms_eps: float = 1e-6,
    device: Any = None,
    stream: int | None = None,
) -> None:
    """A sublayer's (normed) input y from the streams x [t, h, d], and post and comb for hc_post."""
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


def rope_frequencies(
    dims: int = 64,
    theta: float = 10000,
    *,
    yarn_factor: float = 0,
    yarn_original_context: float = 65536,
    yarn_beta_fast: float = 32,
    yarn_beta_slow: float = 1,
) -> npt.NDArray[np.float32]:
    """fp32 [dims / 2, 2]: turns per position, each as the sum of two floats. For `frequencies` of the operations."""
    return np.array(_C.op_rope_frequencies(**locals()), np.float32).reshape(-1, 2)


def rope(
    x: Any,
    frequencies: Any,
    positions: Any,
    y: Any,
    *,
    weight: Any = None,
    norm: bool = False,
    inverse: bool = False,
    pairs: str = "interleaved",
    eps: float = 1e-6,
    device: Any = None,
    stream: int | None = None,
) -> None:
    """Rotates the last channels of x [t, (heads,) d], after the RMS norm of each head if `norm`."""
    _C.op_rope(**locals())


def latent_page_bytes(page_rows: int) -> int:
    """Bytes of a page of FP8 rows: 584 a row, rounded up to a multiple of 576."""
    return -(-584 * page_rows // 576) * 576


def latent_write(
    x: Any,
    weight: Any,
    frequencies: Any,
    positions: Any,
    rows: Any,
    *,
    sequences: Any = None,
    page_rows: int = 0,
    fp8_round_trip: bool = False,
    eps: float = 1e-6,
    device: Any = None,
    stream: int | None = None,
) -> None:
    """Norm, rotation, rounding and cache row (position % rows) of x [t, d] in one kernel."""
    _C.op_latent_write(**locals())


def cache_write(
    x: Any, positions: Any, rows: Any, *, sequences: Any = None, device: Any = None, stream: int | None = None
) -> None:
    """rows[sequence, position % n] = x [t, heads, d]."""
    _C.op_cache_write(**locals())


def index_query(
    x: Any,
    frequencies: Any,
    positions: Any,
    y: Any,
    *,
    finish: str = "hadamard_fp4",
    device: Any = None,
    stream: int | None = None,
) -> None:
    """Indexer queries: rotation, then none, hadamard or hadamard_fp4."""
    _C.op_index_query(**locals())


def compressor_update(
    kv: Any,
    gate: Any,
    ape: Any,
    weight: Any,
    frequencies: Any,
    positions: Any,
    state: Any,
    rows: Any,
    *,
    sequences: Any = None,
    journal: Any = None,
    page_rows: int = 0,
    ratio: int = 4,
    overlap: bool = True,
    finish: str = "none",
    eps: float = 1e-6,
    device: Any = None,
    stream: int | None = None,
) -> None:
    """Pushes tokens into the running pool of their sequence; a token that closes a window writes its row."""
    _C.op_compressor_update(**locals())


def compressor_restore(
    journal: Any, row: Any, state: Any, *, sequence: int = 0, device: Any = None, stream: int | None = None
) -> None:
    """state[sequence] = journal[row]: takes back the tokens after that row of the call that wrote the journal."""
    _C.op_compressor_restore(**locals())


def index_scores(
    query: Any,
    weights: Any,
    rows: Any,
    positions: Any,
    scores: Any,
    *,
    sequences: Any = None,
    ratio: int = 4,
    only_above: int = 0,
    scale: float = 1,
    device: Any = None,
    stream: int | None = None,
) -> None:
    """scores[t, w] = scale * the sum over heads of weights[t, h] relu(query[t, h] . rows[w]) for visible rows w."""
    _C.op_index_scores(**locals())


def top_k(
    scores: Any, positions: Any, picks: Any, *, ratio: int = 4, device: Any = None, stream: int | None = None
) -> None:
    """The k largest visible scores of each row, exactly: ascending indices, then -1. Ties go to the lower index."""
    _C.op_top_k(**locals())


def latent_attention(
    q: Any,
    ring: Any,
    positions: Any,
    out: Any,
    *,
    compressed: Any = None,
    picks: Any = None,
    sinks: Any = None,
    frequencies: Any = None,
    sequences: Any = None,
    ring_page_rows: int = 0,
    compressed_page_rows: int = 0,
    window: int = 128,
    ratio: int = 0,
    scale: float = 0,
    device: Any = None,
    stream: int | None = None,
) -> None:
    """Attention over the window's rows and compressed rows (picked, or all that are visible), with sinks."""
    _C.op_latent_attention(**locals())


def gqa_attention(
    q: Any,
    keys: Any,
    values: Any,
    positions: Any,
    out: Any,
    *,
    sequences: Any = None,
    scale: float = 0,
    device: Any = None,
    stream: int | None = None,
) -> None:
    """Causal grouped-query attention over keys and values [sequences, rows, kv heads, d]."""
    _C.op_gqa_attention(**locals())


def argmax(logits: Any, tokens: Any, *, device: Any = None, stream: int | None = None) -> None:
    """tokens int32 [t]: the largest logit of each row, ties to the lower id; -1 if a row holds a NaN."""
    _C.op_argmax(**locals())


def sample_distribution(
    logits: Any,
    temperature: Any,
    top_k: Any,
    top_p: Any,
    min_p: Any,
    probabilities: Any,
    *,
    device: Any = None,
    stream: int | None = None,
) -> None:
    """Truncated, renormalised probabilities; the parameters are tensors with one value a row."""
    _C.op_sample_distribution(**locals())


def sample_draw(
    probabilities: Any,
    seed: Any,
    positions: Any,
    tokens: Any,
    *,
    purpose: int = 0,
    device: Any = None,
    stream: int | None = None,
) -> None:
    """A token of each row, by the random number of (seed, position, purpose)."""
    _C.op_sample_draw(**locals())


def accept_drafts(
    tokens: Any,
    positions: Any,
    record: Any,
    *,
    targets: Any = None,
    p: Any = None,
    q: Any = None,
    seed: Any = None,
    device: Any = None,
    stream: int | None = None,
) -> None:
    """How many drafts of a window are accepted, and the next token: record int32 [4]."""
    _C.op_accept_drafts(**locals())


def fill_positions(
    base: Any,
    positions: Any,
    *,
    count: Any = None,
    offset: int = 0,
    device: Any = None,
    stream: int | None = None,
) -> None:
    """positions[i] = base + offset + i; -1 from `count` on."""
    _C.op_fill_positions(**locals())
