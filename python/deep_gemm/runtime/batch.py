"""Several timelines of an engine, decoded together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deep_gemm import _C
from deep_gemm.runtime.arguments import count, sampling_of, token_ids

__all__ = ["Batch"]


class Batch:
    """Slots for timelines that take each step together. Made by Engine.batch(); for one thread at a time.

    A slot's tokens and logits are bit for bit those of a session that decodes plainly, whatever the other slots do.
    """

    def __init__(self, engine: Any, slots: int) -> None:
        self.engine = engine
        self._batch = _C.Batch(engine._engine, count("batch", "slots", slots))

    def __len__(self) -> int:
        return int(self._batch.num_slots)

    def tokens(self, slot: int) -> list[int]:
        """All tokens of a slot, prompt and produced."""
        return list(self._batch.tokens(count("tokens", "slot", slot)))

    def room(self, slot: int) -> int:
        """Tokens that still fit in the slot's context."""
        return int(self._batch.room(count("room", "slot", slot)))

    def start(
        self,
        slot: int,
        tokens: Sequence[int],
        *,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        seed: int = 0,
    ) -> None:
        """Starts a slot anew with a prompt; it takes part in steps from then on. Sampling as Session.set_sampling().

        ValueError, with the slot as it was, for an empty prompt, ids outside the vocabulary and more tokens than the
        context holds.
        """
        chosen = sampling_of("start", temperature, top_k, top_p, min_p, seed)
        self._batch.start(count("start", "slot", slot), token_ids("start", tokens), **chosen)

    def stop(self, slot: int) -> None:
        """Takes a slot out of the steps."""
        self._batch.stop(count("stop", "slot", slot))

    def step(self) -> dict[int, int]:
        """slot -> its next token, for every slot that takes part and has room; empty: there is none.

        ValueError where a slot's logits hold NaN: that slot is stopped, and nothing was added to any. Error where a
        call of the device fails: all slots that took part are stopped; start() them anew, their tokens are kept.
        """
        return {slot: token for slot, token in enumerate(self._batch.step()) if token >= 0}

    def logits(self, slot: int) -> NDArray[np.float32]:
        """fp32 [vocab] of the token that follows the slot's last one."""
        return np.frombuffer(self._batch.logits(count("logits", "slot", slot)), np.float32)
