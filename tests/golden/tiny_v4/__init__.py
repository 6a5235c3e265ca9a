"""Logits of the shipped tiny model: prompts and greedy continuations p0 (14 + 24 tokens) and p1 (151 + 24).

Made in float64 from the stored weights with exact activations, by the code that trained the model; the same code agrees
with transformers 5.17 on these prompts within 1e-4 and with tests/reference/deepseek_v4_model.py within 1e-6.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np


@cache
def arrays() -> dict[str, np.ndarray]:
    with np.load(Path(__file__).with_name("logits.npz")) as file:
        return dict(file)


def ids(name: str) -> list[int]:
    return [int(token) for token in arrays()[f"{name}_ids"]]


def prompt(name: str) -> list[int]:
    return ids(name)[: int(arrays()[f"{name}_prompt_len"][0])]


def logits(name: str) -> np.ndarray:
    """fp32 [tokens, vocab]."""
    return arrays()[f"{name}_logits"]
