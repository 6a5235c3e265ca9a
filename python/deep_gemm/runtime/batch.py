"""Several timelines of an engine, decoded together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deep_gemm import _C
from deep_gemm.runtime.arguments import count, token_ids

__all__ = ["Batch"]


class Batch:
    """Slots for timelines that take each step together. Made by Engine.batch(); not for several threads at once.

    A slot's tokens and logits are bit for bit those of a session that decodes plainly, whatever the other slots do.
    """

    def __init__(self, engine: Any, slots: int) -> None:
        self.engine = engine
        self._batch = _C.Batch(engine._engine, count("batch", "slots", slots))

    def __len__(self) -> int:
        return int(self._batch.num_slots)

    def tokens(self, slot: int) -> list[int]:
        """All tokens of a slot, prompt and produced."""
        return list(self._batch.tokens(slot))

    def room(self, slot: int) -> int:
        """Tokens that still fit in the slot's context."""
        return int(self._batch.room(slot))

    def start(self, slot: int, tokens: Sequence[int], **sampling: float) -> None:
        """Starts a slot anew with a prompt; it takes part in steps from then on. `sampling` as Session.set_sampling().

        ValueError, with the slot as it was, for an empty prompt, ids outside the vocabulary and more tokens than the
        context holds.
        """
        self._batch.start(slot, token_ids("start", tokens), **sampling)

    def stop(self, slot: int) -> None:
        """Takes a slot out of the steps."""
        self._batch.stop(slot)

    def step(self) -> dict[int, int]:
        """slot -> its next token, for every slot that takes part and has room; empty: there is none.

        ValueError where a slot's logits hold NaN: that slot is stopped, and nothing was added to any.
        """
        return {slot: token for slot, token in enumerate(self._batch.step()) if token >= 0}

    def logits(self, slot: int) -> NDArray[np.float32]:
        """fp32 [vocab] of the token that follows the slot's last one."""
        return np.frombuffer(self._batch.logits(slot), np.float32)
