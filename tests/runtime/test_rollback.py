"""Rollback at every phase: each number of accepted drafts at each position modulo 128, against plain decoding.

A small random model, because the state of 650 steps is compared: CSA windows of 4 tokens and an HCA window of 128 close
among accepted tokens, among rejected ones and between them, and the window ring turns eight times.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from runtime.checkpoints import write_random_v4
from runtime.decode import same

from deep_gemm import _C, Engine, Session

PHASES, WINDOW = 128, 4
PROMPT = [0, 9, 33]


def load(folder: Path, device: _C.Device, **changes: object) -> Engine:
    return Engine(
        write_random_v4(folder, **changes), device=device, numerics="exact", context=192, max_rows=16
    )


def follow(session: Session, text: list[int], accepted: int) -> list[int]:
    """One step at the session's position with drafts of which `accepted` are right."""
    at = len(session.tokens) - len(PROMPT)
    drafts = text[at + 1 : at + WINDOW]
    session.force_drafts([t if i < accepted else (t + 1) % 64 for i, t in enumerate(drafts)])
    step = session.step()
    assert step.accepted == accepted and step.tokens == text[at : at + 1 + accepted]
    return step.tokens


@dataclass(frozen=True)
class Decoded:
    """What plain decoding gives, and the engine that gave it."""

    engine: Engine
    text: list[int]
    digests: list[str]


DECODED: dict[str, Decoded] = {}


@pytest.fixture
def decoded(device: _C.Device, tmp_path: Path) -> Decoded:
    """Once per device: the steps of plain decoding are a large part of what the emulator pays for here."""
    if device.name not in DECODED:
        engine = load(tmp_path, device, num_nextn_predict_layers=0, compress_ratios=[4, 128])
        plain = engine.session()
        plain.sync(PROMPT)
        text, digests = list[int](), [plain.state_digest()]
        for _ in range(PHASES + 2 * WINDOW):
            text += plain.step().tokens
            digests.append(plain.state_digest())
        DECODED[device.name] = Decoded(engine, text, digests)
    return DECODED[device.name]


@pytest.mark.parametrize("accepted", range(WINDOW))
def test_every_phase(decoded: Decoded, accepted: int) -> None:
    engine, text, digests = decoded.engine, decoded.text, decoded.digests
    assert len(set(text)) > 8, "the text must not be a short loop"
    visited = set()
    for offset in range(accepted + 1):
        session = engine.session()
        session.sync(PROMPT + text[:offset])
        while len(session.tokens) - len(PROMPT) < PHASES + offset:
            visited.add(len(session.tokens) % PHASES)
            follow(session, text, accepted)
            assert session.state_digest() == digests[len(session.tokens) - len(PROMPT)], len(session.tokens)
    assert visited == set(range(PHASES))


def test_a_loaded_session_goes_on_the_same(decoded: Decoded, tmp_path: Path) -> None:
    """64 tokens: across windows of both kinds."""
    saved, loaded = decoded.engine.session(), decoded.engine.session()
    saved.sync(PROMPT + decoded.text[:30])
    saved.save(tmp_path / "s")
    loaded.load(tmp_path / "s")
    assert [token for step in loaded.generate(64, eos=-1) for token in step.tokens] == decoded.text[30:94]
    assert loaded.state_digest() == decoded.digests[94]


def test_drafting_goes_on_after_the_close_of_a_window(device: _C.Device, tmp_path: Path) -> None:
    """With the MTP block: its own ring is caught up too, so its next drafts are those of a session that was fed."""
    engine = load(tmp_path, device)
    plain = engine.session(window=1)
    base = [0, *(int(i * i * 7 % 61) + 2 for i in range(122))]
    plain.sync(base)
    text = [token for step in plain.generate(16, eos=-1) for token in step.tokens]
    session, fed = engine.session(window=WINDOW), engine.session(window=WINDOW)
    fed.sync(base)
    for accepted in range(WINDOW):
        session.sync(base)
        for _ in range(3):
            at = len(session.tokens) - len(base)
            right = text[at + 1 : at + WINDOW]
            session.force_drafts([t if i < accepted else (t + 1) % 64 for i, t in enumerate(right)])
            assert session.step().accepted == accepted
        fed.sync(session.tokens)
        assert session.step().tokens == fed.step().tokens
        assert session.last_drafts == fed.last_drafts
        assert same(session, fed)


def test_near_ties(device: _C.Device, tmp_path: Path) -> None:
    """Every choice is between a token and its twin: the twins' logits are equal, or a few units in the last place apart."""
    count = 14
    folder = write_random_v4(tmp_path, compress_ratios=[4, 8, 0])
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    length = int.from_bytes(content[:8], "little")
    begin, end = json.loads(content[8 : 8 + length])["head.weight"]["data_offsets"]
    head = (
        np.frombuffer(bytes(content[8 + length + begin : 8 + length + end]), np.float32)
        .reshape(64, 32)
        .copy()
    )
    head[1::4], head[3::4] = head[::4], np.nextafter(head[2::4], np.float32(9))
    content[8 + length + begin : 8 + length + end] = head.tobytes()
    path.write_bytes(content)
    engine = Engine(folder, device=device, numerics="exact", context=64, max_rows=16)
    plain = engine.session(window=1)
    plain.sync(PROMPT)
    text, digests, margins = list[int](), [plain.state_digest()], []
    for _ in range(count):
        two = np.sort(plain.logits())[-2:]
        margins.append(float((two[1] - two[0]) / np.spacing(abs(two[1]))))
        text += plain.step().tokens
        digests.append(plain.state_digest())
    assert max(margins) < 64 and min(margins) == 0, "every choice must be narrow"
    assert not any(token % 4 == 1 for token in text), "of equal ones the lower"
    for window in (2, 4):
        session = engine.session(window=window)
        session.sync(PROMPT)
        for step in session.generate(count, eos=-1):
            at = len(session.tokens) - len(PROMPT)
            assert step.tokens == text[at - len(step.tokens) : at]
            assert session.state_digest() == digests[at]
        session.sync(PROMPT)
        while (at := len(session.tokens) - len(PROMPT)) + window < count:  # drafts: the right tokens' twins
            session.force_drafts([token ^ 1 for token in text[at + 1 : at + window]])
            assert session.step().tokens == text[at : at + 1]
            assert session.state_digest() == digests[at + 1]


def test_swapped_snapshots_would_be_noticed(device: _C.Device, tmp_path: Path) -> None:
    """Negative control: the frontiers after each row of a step differ, so a snapshot of another row has another digest."""
    engine = load(tmp_path, device, num_nextn_predict_layers=0, compress_ratios=[4, 128])
    plain, session = engine.session(), engine.session()
    plain.sync(PROMPT)
    text = [token for step in plain.generate(5, eos=-1) for token in step.tokens]
    session.sync(PROMPT)
    follow(session, text, 3)
    snapshots = []
    for length in range(len(session.tokens), len(PROMPT), -1):
        session.rewind(length)
        snapshots.append(dict(session.state_parts()))
    for name in ("layers.0.frontier", "layers.0.index_frontier", "layers.1.frontier"):
        assert len({parts[name] for parts in snapshots}) == WINDOW, name
