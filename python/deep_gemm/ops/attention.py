"""Rotary positions, cache rows, the compressor, the indexer and attention over cached rows. See deep_gemm.ops.

A `table`, int32 [sequences, n], makes rows pages that lie anywhere: page i of a sequence is page table[sequence, i] of
[pages, page_rows, d], or of [pages, page bytes] for FP8 rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from deep_gemm import _C


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


def index_page_bytes(page_rows: int) -> int:
    """Bytes of a page of the indexer's FP4 rows: 68 a row, rounded up to a multiple of 64."""
    return -(-68 * page_rows // 64) * 64


def latent_write(
    x: Any,
    weight: Any,
    frequencies: Any,
    positions: Any,
    rows: Any,
    *,
    sequences: Any = None,
    page_rows: int = 0,
    table: Any = None,
    fp8_round_trip: bool = False,
    eps: float = 1e-6,
    device: Any = None,
    stream: int | None = None,
) -> None:
    """Norm, rotation, rounding and cache row (position % rows) of x [t, d] in one kernel."""
    _C.op_latent_write(**locals())


def cache_write(
    x: Any,
    positions: Any,
    rows: Any,
    *,
    sequences: Any = None,
    table: Any = None,
    device: Any = None,
    stream: int | None = None,
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
    table: Any = None,
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
    page_rows: int = 0,
    table: Any = None,
    peaks: Any = None,
    ratio: int = 4,
    only_above: int = 0,
    scale: float = 1,
    device: Any = None,
    stream: int | None = None,
) -> None:
    """scores[t, w] = scale * the sum over heads of weights[t, h] relu(query[t, h] . rows[w]) for visible rows w.

    `peaks`, int32 [t, ceil(rows / 16)]: memory for what lets top_k() read fewer scores; with bf16 queries of 128
    channels over bf16 or FP4 rows.
    """
    _C.op_index_scores(**locals())


def index_select(
    query: Any,
    frequencies: Any,
    weights: Any,
    rows: Any,
    positions: Any,
    picks: Any,
    *,
    sequences: Any = None,
    page_rows: int = 0,
    table: Any = None,
    finish: str = "hadamard_fp4",
    ratio: int = 4,
    scale: float = 1,
    device: Any = None,
    stream: int | None = None,
) -> None:
    """index_query(), index_scores() and top_k() of at most 8 tokens in one launch, the same picks bit for bit.

    bf16 queries of at most 64 heads of 128 channels, up to 64 of them rotated, as projected, over bf16 or FP4 rows with
    room for at most 2048 of a sequence; ValueError for others, and on devices without room for clusters of 16 blocks.
    """
    _C.op_index_select(**locals())


def top_k(
    scores: Any,
    positions: Any,
    picks: Any,
    *,
    peaks: Any = None,
    ratio: int = 4,
    device: Any = None,
    stream: int | None = None,
) -> None:
    """The k largest visible scores of each row, exactly: ascending indices, then -1. Ties go to the lower index.

    `peaks`: what index_scores() has left there for the same scores; makes many of them faster and changes nothing.
    """
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
    ring_table: Any = None,
    compressed_table: Any = None,
    records: Any = None,
    window: int = 128,
    ratio: int = 0,
    scale: float = 0,
    raw_queries: bool = False,
    eps: float = 1e-6,
    device: Any = None,
    stream: int | None = None,
) -> None:
    """Attention over the window's rows and compressed rows (picked, or all that are visible), with sinks.

    `raw_queries`: rope() with norm (and `eps`) has not been called on q, what it does is done here. At most 8 tokens of
    bf16 queries over FP8 rows, at most 1024: the window's, and those picked or all that there is room for.

    `records`: memory that makes few bf16 queries over FP8 rows faster and changes nothing, fp32
    [t, ceil(heads / 16), ceil(rows seen / 64), 16 * 516].
    """
    _C.op_latent_attention(**locals())


def gqa_records_shape(tokens: int, heads: int, rows: int, d: int) -> tuple[int, ...]:
    """The shape of `records` in gqa_attention, for keys of `rows` rows."""
    return tuple(_C.op_gqa_records_shape(tokens, heads, rows, d))


def gqa_attention(
    q: Any,
    keys: Any,
    values: Any,
    positions: Any,
    records: Any,
    out: Any,
    *,
    sequences: Any = None,
    table: Any = None,
    codes: Any = None,
    scales: Any = None,
    scale: float = 0,
    device: Any = None,
    stream: int | None = None,
) -> None:
    """Causal grouped-query attention over keys and values [sequences, rows, kv heads, d]; `records` is memory for what
    is between its two kernels. bf16 heads of 128 channels also as FP8, if `codes` and `scales` [t, heads] are given."""
    _C.op_gqa_attention(**locals())
