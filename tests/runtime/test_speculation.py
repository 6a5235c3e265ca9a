"""Speculative decoding equals plain decoding: tokens, logits and state, whatever is drafted and accepted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from reference import deepseek_v4_model
from runtime.checkpoints import write_random_v4
from runtime.decode import Load, Plain, produce, same

from deep_gemm import _C, Engine
from deep_gemm.models import model_path


@pytest.mark.parametrize("window", [2, 3, 4])
def test_equal_to_plain_decoding(load: Load, prompt: list[int], plain: Plain, window: int) -> None:
    session = load().session(window=window)
    session.sync(prompt)
    assert produce(session, 12) == plain.text
    assert session.state_digest() == plain.digests[12]
    stats = session.stats
    assert stats["tokens"] == 12 and stats["accepted"] == 12 - stats["steps"]
    assert stats["rollbacks"] > 0 and stats["accepted"] > 0


def test_strict(load: Load, prompt: list[int], plain: Plain) -> None:
    """One row at a time: the same text, state and acceptance."""
    found = []
    for strict in (False, True):
        session = load().session(window=3, strict=strict)
        session.sync(prompt)
        assert produce(session, 12) == plain.text
        assert session.state_digest() == plain.digests[12]
        found.append({**session.stats, "graph_replays": 0})
    assert found[0] == found[1] and found[0]["accepted"] > 0


@pytest.mark.races
def test_rollback_of_the_trained_model(load: Load, prompt: list[int], plain: Plain) -> None:
    """Drafts that are right up to each number, where a window of 4 closes among them; test_rollback.py has every
    position, on a model without the MTP block."""
    session, phase = load().session(window=4), 2
    for accepted in range(4):
        session.sync([*prompt, *plain.text[:phase]])
        right = plain.text[phase + 1 : phase + 4]
        session.force_drafts([t if i < accepted else (t + 1) % 1024 for i, t in enumerate(right)])
        step = session.step()
        assert step.tokens == plain.text[phase : phase + 1 + accepted] and step.accepted == accepted
        assert session.state_digest() == plain.digests[phase + 1 + accepted]
        assert session.step(1).tokens == [plain.text[phase + 1 + accepted]]
        assert session.state_digest() == plain.digests[phase + 2 + accepted]


def test_the_end_of_text_among_drafts(load: Load, prompt: list[int], plain: Plain) -> None:
    session = load().session(window=4)
    for at in range(3):
        session.sync(prompt)
        session.force_drafts(plain.text[1:4])
        assert session.step(eos=plain.text[at]).tokens == plain.text[: at + 1]
        assert session.state_digest() == plain.digests[at + 1]


def test_budgets(load: Load, prompt: list[int], plain: Plain) -> None:
    session = load().session(window=4)
    for budget in (1, 2, 3):
        session.sync(prompt)
        session.force_drafts(plain.text[1:4])
        assert session.step(budget).tokens == plain.text[:budget]
        assert session.state_digest() == plain.digests[budget]


def test_drafts_of_the_mtp_block(load: Load, prompt: list[int]) -> None:
    """The first step's drafts are those of the float64 reference, chained through the block's own streams."""
    model = deepseek_v4_model.Model(model_path("tiny_v4"))
    for position, token in enumerate(prompt):
        logits = model.feed(token)
        if position > 0:
            model.draft(model.streams[position - 1], position - 1, token)
    token, streams, want = int(logits.argmax()), model.streams[-1], []
    for depth in range(3):
        streams, logits = model.draft(streams, len(prompt) - 1 + depth, token)
        token = int(logits.argmax())
        want.append(token)
    session = load().session(window=4)
    session.sync(prompt)
    session.step()
    assert session.last_drafts == want


def test_catching_up_matters(load: Load, prompt: list[int], plain: Plain) -> None:
    """After an accepted draft the MTP block sees the true streams of the accepted tokens: its next drafts are those of a
    session that was fed the same tokens."""
    session, fed = load().session(window=3), load().session(window=3)
    session.sync(prompt)
    session.force_drafts(plain.text[1:3])
    assert len(session.step().tokens) == 3
    fed.sync([*prompt, *plain.text[:3]])
    assert session.step().tokens == fed.step().tokens
    assert session.last_drafts == fed.last_drafts


def test_graphs_equal_eager_steps(load: Load, prompt: list[int]) -> None:
    eager, graphs = load().session(window=2, graphs=False), load().session(window=2)
    eager.sync(prompt)
    graphs.sync(prompt)
    assert produce(eager, 10) == produce(graphs, 10)
    assert same(eager, graphs)
    assert graphs.stats["graph_replays"] > 0 and eager.stats["graph_replays"] == 0


def test_adaptive_depth(device: _C.Device, tmp_path: Path) -> None:
    """Second drafts that are never accepted after first ones cost a row from the fifth on; every 16 steps they are tried."""
    folder = write_random_v4(tmp_path, compress_ratios=[4, 8, 0])
    engine = Engine(folder, device=device, numerics="exact", context=64, max_rows=16)
    plain, session = engine.session(window=1), engine.session(window=3, adaptive=True)
    plain.sync([2, 3, 4])
    session.sync([2, 3, 4])
    text = produce(plain, 50)
    drafted = []
    for step in range(5 + 18):
        at = len(session.tokens) - 3
        if step < 5:
            session.force_drafts([text[at + 1], (text[at + 2] + 1) % 64])
        drafted.append(session.step().drafted)
        assert session.tokens[3:] == text[: len(session.tokens) - 3]
    assert drafted == [2] * 5 + [1] * 16 + [2] + [1]


def test_the_logits_of_a_step(load: Load, prompt: list[int], plain: Plain) -> None:
    session, fed = load().session(window=4), load().session(window=1)
    session.sync(prompt)
    session.force_drafts([*plain.text[1:3], (plain.text[3] + 1) % 1024])
    assert session.step().accepted == 2
    rows = session.last_logits()
    assert np.array_equal(rows, fed.logits_of([*prompt, *plain.text[:3]])[-3:])
    assert np.array_equal(session.logits(), rows[-1])
    session.rewind(len(prompt) + 2)
    assert np.array_equal(session.last_logits(), rows[:2])


def test_wrong_rollback_is_noticed(load: Load, prompt: list[int], plain: Plain) -> None:
    """Negative control: a state that holds one rejected token more has another digest."""
    session, wrong = load().session(window=1), load().session(window=1)
    session.sync([*prompt, plain.text[0]])
    wrong.sync([*prompt, plain.text[1]])
    assert session.state_digest() != wrong.state_digest()
    wrong.sync([*prompt, plain.text[0], plain.text[1]])
    assert session.state_digest() != wrong.state_digest()


def test_sampling(load: Load, prompt: list[int], plain: Plain) -> None:
    """Equal seeds give equal tokens; temperature 0 and top_k 1 are greedy; another seed gives other tokens."""
    a, b = load().session(), load().session()
    for session in (a, b):
        session.sync(prompt)
        session.set_sampling(temperature=1.0, top_p=0.95, seed=7)
    assert produce(a, 5) == produce(b, 5)
    assert same(a, b)
    b.set_sampling(temperature=0.7, top_k=1, seed=1)
    b.sync(prompt)
    assert produce(b, 3) == plain.text[:3]
    drawn = []
    for seed in (1, 2, 3):
        b.sync(prompt)
        b.set_sampling(temperature=1.5, seed=seed)
        drawn.append(tuple(produce(b, 4)))
    assert len(set(drawn)) > 1
