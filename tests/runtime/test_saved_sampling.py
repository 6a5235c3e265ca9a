"""What a saved session goes on with beside its caches: the token that a rejected draft left to come, and how long its
drafts are. Saving itself changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runtime.checkpoints import write_random_v4
from runtime.decode import produce, same

from deep_gemm import _C, Engine, Session

PROMPT = [0, 9, 33, 20]
SEEDS = 12


@pytest.fixture
def engine(device: _C.Device, tmp_path: Path) -> Engine:
    folder = write_random_v4(tmp_path, num_hidden_layers=1, compress_ratios=[4, 0])
    return Engine(folder, device=device, numerics="exact", context=64, max_rows=8)


def sampled(engine: Engine, seed: int, **changes: Any) -> Session:
    session = engine.session(window=3)
    session.set_sampling(**{"temperature": 2.0, "top_k": 8, "seed": seed, **changes})
    return session


def after_a_rejection(engine: Engine, seed: int) -> Session:
    session = sampled(engine, seed)
    session.sync(PROMPT)
    for _ in range(8):
        step = session.step()
        if step.accepted < step.drafted:
            return session
    raise AssertionError("no draft was rejected")


@pytest.mark.parametrize("sampling_first", [True, False])
def test_a_saved_session_draws_the_same_tokens(engine: Engine, tmp_path: Path, sampling_first: bool) -> None:
    """Drawn anew from all of p, most of these tokens are others."""
    for seed in range(SEEDS):
        session = after_a_rejection(engine, seed)
        session.save(tmp_path / "s")
        other = sampled(engine, seed) if sampling_first else engine.session(window=3)
        other.load(tmp_path / "s")
        if not sampling_first:
            other.set_sampling(temperature=2.0, top_k=8, seed=seed)
        assert produce(other, 6) == produce(session, 6), seed
        assert same(session, other)


@pytest.mark.parametrize("change", [{"seed": 99}, {"temperature": 0.5}, {"temperature": 0.0}])
def test_a_change_of_sampling_comes_after_the_token_drawn_already(
    engine: Engine, change: dict[str, Any]
) -> None:
    for seed in range(SEEDS):
        session, changed = after_a_rejection(engine, seed), after_a_rejection(engine, seed)
        changed.set_sampling(**{"temperature": 2.0, "top_k": 8, "seed": seed, **change})
        assert changed.step(1).tokens == session.step(1).tokens, seed
        # From there on it is a session that was set so all along.
        fresh = sampled(engine, **{"seed": seed, **change})
        fresh.sync(changed.tokens)
        assert changed.step(1).tokens == fresh.step(1).tokens, seed


def test_a_token_to_come_is_forgotten_with_its_text(engine: Engine) -> None:
    """Another text, and the same text fed, draw from all of p."""
    session, fresh = after_a_rejection(engine, 3), sampled(engine, 3)
    for text in ([*PROMPT, 7], session.tokens):
        session.sync(text)
        fresh.sync(text)
        assert session.step(1).tokens == fresh.step(1).tokens


def test_saving_changes_nothing(engine: Engine, tmp_path: Path) -> None:
    plain, session, other = engine.session(window=1), engine.session(window=4), engine.session(window=4)
    plain.sync(PROMPT)
    text = produce(plain, 8)
    session.sync(PROMPT)
    session.force_drafts(text[1:4])
    assert session.step().tokens == text[:4]
    logits, digest = session.last_logits(), session.state_digest()
    session.save(tmp_path / "s")
    assert session.state_digest() == digest
    assert logits.shape[0] == 4 and np.array_equal(session.last_logits(), logits)
    other.load(tmp_path / "s")
    assert same(session, other)
    session.rewind(len(PROMPT) + 2)  # inside the last step, which save() has not ended
    assert np.array_equal(session.last_logits(), logits[:2])
    session.sync(other.tokens)
    assert produce(session, 4) == produce(other, 4) == text[4:8]
    assert session.last_drafts == other.last_drafts and same(session, other)


def test_strict_catches_up_one_row_at_a_time(emulator: _C.Device, tmp_path: Path) -> None:
    """Also where a file or a prompt follows a step: its accepted drafts wait for the MTP block."""
    folder = write_random_v4(tmp_path, num_hidden_layers=1, compress_ratios=[4, 0])
    engine = Engine(folder, device=emulator, numerics="exact", context=64, max_rows=8)
    launches = dict[tuple[bool, int], int]()
    plain = engine.session(window=1)
    plain.sync(PROMPT)
    text = produce(plain, 4)
    for strict in (False, True):
        for accepted in (1, 3):
            session = engine.session(window=4, strict=strict)
            session.sync(PROMPT)
            session.force_drafts(text[1 : accepted + 1])
            assert session.step().accepted == accepted
            emulator.fail_launch(1 << 40)
            session.save(tmp_path / "s")
            launches[strict, accepted] = (1 << 40) - emulator.fail_launch(0)
    one = launches[False, 1] - 1  # beside the positions
    assert launches[False, 3] == one + 1 and launches[True, 3] == 3 * one + 1


def test_adaptive_drafts_go_on_as_long(engine: Engine, tmp_path: Path) -> None:
    plain, session = engine.session(window=1), engine.session(window=3, adaptive=True)
    plain.sync(PROMPT)
    text = produce(plain, 16)
    session.sync(PROMPT)
    for _ in range(5):  # the first draft is right, the second is not
        at = len(session.tokens) - len(PROMPT)
        session.force_drafts([text[at + 1], (text[at + 2] + 1) % 64])
        assert session.step().accepted == 1
    session.save(tmp_path / "s")
    other = engine.session(window=3, adaptive=True)
    other.load(tmp_path / "s")
    assert other.step().drafted == session.step().drafted == 1
