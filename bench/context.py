"""What the sections of one run share: how long to measure, and the ceilings measured so far."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Context:
    quick: bool = False
    rounds: int = 7
    seconds: float = 150.0  # regret, the last section, stops where the run would pass this
    started: float = field(default_factory=time.monotonic)
    read_gbs: float = 0.0  # 0: not measured yet
    deepgemm: Path | None = None  # the folder of a built DeepGEMM package

    @staticmethod
    def of(quick: bool, seconds: float | None = None) -> Context:
        context = Context(quick=True, rounds=3, seconds=60.0) if quick else Context()
        if seconds is not None:
            context.seconds = seconds
        return context

    def seconds_left(self) -> float:
        return self.seconds - (time.monotonic() - self.started)
