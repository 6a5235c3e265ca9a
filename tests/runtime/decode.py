"""What the tests of sessions share: producing tokens, and comparing sessions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from deep_gemm import Engine, Session

Load = Callable[..., Engine]  # load(numerics)
# For commands, which take a name: conftest.py says why.
WITHOUT_RACES = "emulator:sm_90a,sms=16,races=off"


@dataclass(frozen=True)
class Plain:
    """Plain decoding after the prompt: the tokens, and the state digest after each number of them."""

    text: list[int]
    digests: list[str]


def produce(session: Session, count: int, eos: int = -1) -> list[int]:
    return [token for step in session.generate(count, eos) for token in step.tokens]


def same(a: Session, b: Session) -> bool:
    """Tokens, logits and everything that later tokens depend on, bit for bit."""
    return (
        a.tokens == b.tokens
        and a.state_digest() == b.state_digest()
        and np.array_equal(a.logits().view(np.uint32), b.logits().view(np.uint32))
    )
