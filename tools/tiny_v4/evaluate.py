"""What an exported model is worth, measured by the runtime that it is for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from deep_gemm import Engine

CONTEXT = 1024
PROMPT, PRODUCED = 128, 192


def evaluate(folder: Path, held: np.ndarray, bytes_held: int, windows: int, prompts: int) -> dict[str, Any]:
    """Loss of held-out tokens in windows of CONTEXT, and tokens a step of greedy speculation with three rows."""
    engine = Engine(folder, context=CONTEXT, max_rows=512)
    session = engine.session(window=1)
    nats, count, right = 0.0, 0, 0
    starts = range(0, len(held) - CONTEXT, CONTEXT)
    for start in list(starts)[:windows] or [0]:
        ids = held[start : start + CONTEXT]
        logits = session.logits_of(ids.tolist())[:-1].astype(np.float64)
        logits -= logits.max(1, keepdims=True)
        picked = logits[np.arange(len(logits)), ids[1:]]
        nats += float((np.log(np.exp(logits).sum(1)) - picked).sum())
        right += int((logits.argmax(1) == ids[1:]).sum())
        count += len(logits)
    rng = np.random.default_rng(1)
    speculative = engine.session(window=3)
    for start in rng.integers(0, max(1, len(held) - PROMPT), prompts):
        speculative.sync(held[start : start + PROMPT].tolist())
        for _ in speculative.generate(PRODUCED, eos=-1):
            pass
    stats = speculative.stats
    tokens_of_byte = len(held) / max(1, bytes_held)
    return {
        "held_out_tokens": count,
        "nats_per_token": nats / count,
        "bits_per_byte": nats / count * tokens_of_byte / np.log(2),
        "right_tokens": right / count,
        "tokens_per_step_of_3_rows": stats["tokens"] / max(1, stats["steps"]),
        "accepted_drafts": stats["accepted"] / max(1, stats["drafted"]),
    }
