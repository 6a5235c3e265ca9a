"""From logits to tokens: argmax, sampling, acceptance of drafts, positions. See deep_gemm.ops."""

from __future__ import annotations

from typing import Any

from deep_gemm import _C


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
