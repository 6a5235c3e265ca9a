"""Sampled speculative decoding has the distribution of plain sampling: pairs of tokens, counted over seeds, against the
exact probabilities."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from runtime.checkpoints import write_random_v4

from deep_gemm import _C, Engine

PROMPT = [0, 9, 33, 20]
TOP_K, TEMPERATURE, SEEDS = 3, 2.0, 170


def probabilities(logits: np.ndarray) -> dict[int, float]:
    """Of the tokens that top_k leaves."""
    kept = np.argsort(-logits, kind="stable")[:TOP_K]
    p = np.exp((logits[kept].astype(np.float64) - logits[kept[0]]) / TEMPERATURE)
    return dict(zip((int(k) for k in kept), p / p.sum(), strict=True))


def largest_chi_square(freedom: int) -> float:
    """Exceeded by one in ten thousand right samplers (Wilson and Hilferty's approximation)."""
    normal = 3.719
    return float(freedom * (1 - 2 / (9 * freedom) + normal * (2 / (9 * freedom)) ** 0.5) ** 3)


def chi_square(counts: dict[tuple[int, int], int], expected: dict[tuple[int, int], float]) -> float:
    assert set(counts) <= set(expected), "a token that top_k excludes"
    total = sum(counts.values())
    return sum((counts.get(key, 0) - total * p) ** 2 / (total * p) for key, p in expected.items())


@pytest.fixture
def engine(device: _C.Device, tmp_path: Path) -> Engine:
    folder = write_random_v4(tmp_path, num_hidden_layers=1, compress_ratios=[0, 0])
    return Engine(folder, device=device, numerics="exact", context=64, max_rows=8)


def pairs(engine: Engine) -> dict[tuple[int, int], float]:
    session = engine.session(window=1)
    session.sync(PROMPT)
    first = probabilities(session.logits())
    exact = {}
    for token, p in first.items():
        session.sync([*PROMPT, token])
        exact.update({(token, after): p * q for after, q in probabilities(session.logits()).items()})
    return exact


@pytest.mark.parametrize("window", [1, 3])
def test_pairs_of_tokens(engine: Engine, window: int) -> None:
    exact = pairs(engine)
    assert abs(sum(exact.values()) - 1) < 1e-12 and min(exact.values()) * SEEDS > 5
    session, counts, accepted = engine.session(window=window), dict[tuple[int, int], int](), 0
    for seed in range(SEEDS):
        session.sync(PROMPT)
        session.set_sampling(temperature=TEMPERATURE, top_k=TOP_K, seed=seed)
        produced: list[int] = []
        while len(produced) < 2:
            step = session.step(2)
            produced += step.tokens
            accepted += step.accepted
        counts[produced[0], produced[1]] = counts.get((produced[0], produced[1]), 0) + 1
    if window > 1:
        assert 0 < accepted < SEEDS, "both an accepted and a rejected draft must occur"
    assert chi_square(counts, exact) < largest_chi_square(len(exact) - 1)


def test_the_test_can_fail(engine: Engine) -> None:
    """Negative control: greedy counts, and counts that are all the same, are told apart."""
    exact = pairs(engine)
    best = max(exact, key=lambda key: exact[key])
    assert chi_square({best: SEEDS}, exact) > largest_chi_square(len(exact) - 1)
    flat = {key: SEEDS // len(exact) for key in exact}
    assert chi_square(flat, exact) > largest_chi_square(len(exact) - 1)
