"""Speculative decoding checks itself: step by step against plain decoding, every tensor of the state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Difference", "verify_exact"]


@dataclass(frozen=True)
class Difference:
    """The first thing that differed: "token", or a tensor of the state, after so many tokens."""

    what: str
    length: int
    detail: str

    def __str__(self) -> str:
        return f"{self.what} differs after {self.length} tokens: {self.detail}"


def compare(session: Any, plain: Any) -> Difference | None:
    """The first difference between two sessions that should be equal."""
    for position, (got, expected) in enumerate(zip(session.tokens, plain.tokens, strict=False)):
        if got != expected:
            return Difference(
                "token", position, f"got {got}, plain decoding gives {expected} at position {position}"
            )
    length = len(session.tokens)
    if length != len(plain.tokens):
        return Difference("token", length, f"got {length} tokens, plain decoding has {len(plain.tokens)}")
    for (name, got), (_, expected) in zip(session.state_parts(), plain.state_parts(), strict=True):
        if got != expected:
            return Difference(name, length, f"digest {got[:8]}, plain decoding has {expected[:8]}")
    return None


def compare_rows(session: Any, got: Any, expected: Any) -> Difference | None:
    """The first of the last step's tokens after which other logits followed."""
    for i, (row, wanted) in enumerate(zip(got, expected, strict=True)):
        if not np.array_equal(row.view(np.uint32), wanted.view(np.uint32)):
            off = float(abs(row - wanted).max())
            return Difference("logits", len(session.tokens) - len(got) + i + 1, f"by up to {off:.3g}")
    return None


def verify_exact(
    engine: Any,
    prompt: Sequence[int],
    max_tokens: int,
    *,
    window: int | None = None,
    adaptive: bool = False,
    strict: bool = False,
    eos: int | None = None,
    after_step: Callable[[Any], None] | None = None,
) -> Difference | None:
    """Greedy decoding of `max_tokens` tokens with `window` rows a step and graphs, against one row and no graphs.

    None: after every step, all tokens, the logits after each of them, and every tensor that later tokens depend on were
    equal. `after_step` gets the checked session before each comparison: tests damage its state there.
    """
    session = engine.session(window=window, adaptive=adaptive, strict=strict)
    plain = engine.session(window=1, graphs=False)
    session.sync(prompt)
    plain.sync(prompt)
    for step in session.generate(max_tokens, eos):
        rows = session.last_logits()
        expected = []
        for _ in step.tokens:
            plain.step(1)
            expected.append(plain.logits())
        if after_step is not None:
            after_step(session)
        difference = compare(session, plain) or compare_rows(session, rows, np.stack(expected))
        if difference is not None:
            return difference
    return None
