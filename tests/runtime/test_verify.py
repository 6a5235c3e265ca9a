"""--verify-exact: what it accepts, and what it must notice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from runtime.checkpoints import QWEN, qwen_tensors, write_checkpoint, write_random_v4
from runtime.decode import WITHOUT_RACES, produce

from deep_gemm import _C, Engine, Session
from deep_gemm.cli import main
from deep_gemm.runtime import verify_exact

PROMPT = [0, 9, 33, 20, 21, 22, 5]


@pytest.fixture
def engine(device: _C.Device, tmp_path: Path) -> Engine:
    folder = write_random_v4(tmp_path, compress_ratios=[4, 8, 0])
    return Engine(folder, device=device, numerics="exact", context=64, max_rows=16)


def test_speculation_passes(engine: Engine) -> None:
    assert verify_exact(engine, PROMPT, 12, window=3, eos=-1) is None


def test_compares_as_asked(engine: Engine) -> None:
    """With drafts that are right at first only, an adaptive session takes two rows."""
    seen = []

    def after_step(session: Session) -> None:
        seen.append(session.stats["drafted"])
        at = len(session.tokens)
        session.force_drafts([text[at + 1], (text[at + 2] + 1) % 64] if len(seen) < 7 else [])

    plain = engine.session(window=1)
    plain.sync(PROMPT)
    text = PROMPT + produce(plain, 30, eos=-1)
    assert verify_exact(engine, PROMPT, 20, window=3, adaptive=True, eos=-1, after_step=after_step) is None
    assert seen[7] - seen[6] == 1  # the step after those


def test_the_command_passes_all_options(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, object] = {}
    monkeypatch.setattr("deep_gemm.cli_text.verify_exact", lambda *_, **options: given.update(options))
    arguments = ["generate", "The", "--device", WITHOUT_RACES, "--numerics", "exact", "--context", "64"]
    arguments += ["--max-tokens", "1", "--verify-exact", "--spec", "4", "--adaptive", "--strict"]
    assert CliRunner().invoke(main, arguments).exit_code == 0
    assert given == {"window": 4, "adaptive": True, "strict": True, "eos": given["eos"]}


def test_a_model_without_mtp_passes(device: _C.Device, tmp_path: Path) -> None:
    engine = Engine(
        write_checkpoint(tmp_path, QWEN, qwen_tensors(QWEN)), device=device, numerics="exact", context=64
    )
    assert verify_exact(engine, PROMPT, 5, eos=-1) is None


PARTS = [
    "layers.0.ring",
    "layers.0.compressed",
    "layers.0.frontier",
    "layers.0.index_rows",
    "layers.0.index_frontier",
    "layers.1.ring",
    "layers.1.compressed",
    "layers.1.frontier",
    "hidden",
    "logits",
]


@pytest.mark.parametrize("part", PARTS)
def test_names_the_tensor_that_differs(engine: Engine, part: str) -> None:
    """Negative controls: one flipped bit in any tensor of the state."""
    session = engine.session()
    session.sync(PROMPT * 2)
    assert [name for name, _ in session.state_parts()] == PARTS
    difference = verify_exact(engine, PROMPT, 12, window=3, eos=-1, after_step=lambda s: s.damage(part))
    assert difference is not None and difference.what == part, difference


def once(change: Callable[[Session], object]) -> Callable[[Session], None]:
    done = []

    def after_step(session: Session) -> None:
        if not done:
            change(session)
            done.append(True)

    return after_step


def test_names_a_token_that_differs(engine: Engine) -> None:
    wrong = once(lambda s: s.sync([*s.tokens[:-1], (s.tokens[-1] + 1) % 64]))
    difference = verify_exact(engine, PROMPT, 6, window=3, eos=-1, after_step=wrong)
    assert difference is not None and difference.what == "token" and "plain decoding gives" in str(difference)


def test_names_logits_that_differ(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: logits of an earlier row of a step, which leave no trace in the state."""
    whole = Session.last_logits

    def wrong(self: Session) -> np.ndarray:
        rows = whole(self).copy()
        rows[0, 3] += 1e-6
        return rows

    monkeypatch.setattr(Session, "last_logits", wrong)
    difference = verify_exact(engine, PROMPT, 2, window=3, eos=-1)
    assert difference is not None and difference.what == "logits" and difference.length == len(PROMPT) + 1
    assert "by up to" in str(difference)


def test_names_a_token_too_few(engine: Engine) -> None:
    difference = verify_exact(
        engine, PROMPT, 6, window=3, eos=-1, after_step=once(lambda s: s.rewind(len(PROMPT)))
    )
    assert difference is not None and "plain decoding has" in difference.detail


def test_a_frontier_of_another_row_is_noticed(engine: Engine) -> None:
    """Negative control: the snapshots of two rows swapped. A session that fed two tokens in the other order has another
    frontier, and the parts say which."""
    a, b = engine.session(window=1), engine.session(window=1)
    a.sync([*PROMPT, 3, 7])
    b.sync([*PROMPT, 7, 3])
    different = {n for (n, x), (_, y) in zip(a.state_parts(), b.state_parts(), strict=True) if x != y}
    assert {"layers.0.ring", "layers.0.frontier", "layers.1.frontier"} <= different


def test_command() -> None:
    arguments = ["generate", "The", "--device", WITHOUT_RACES, "--numerics", "exact", "--context", "64"]
    result = CliRunner().invoke(main, [*arguments, "--max-tokens", "4", "--verify-exact", "--stats"])
    assert result.exit_code == 0, result.output
    assert (
        "verified: after every step, tokens, logits and all state" in result.output
        and "accepted by position" in result.output
    )
    result = CliRunner().invoke(main, [*arguments, "--verify-exact", "--temperature", "1"])
    assert result.exit_code == 1 and "compares greedy decoding" in result.output


@pytest.mark.parametrize("command", ["generate", "chat"])
@pytest.mark.parametrize("option", ["--adaptive", "--strict"])
def test_options_of_drafts_without_drafts(command: str, option: str) -> None:
    """Before a model is read."""
    result = CliRunner().invoke(main, [command, "--model", "none", "--spec", "1", option], input="x")
    text = f"Error: got {option} with --spec 1, expected it with a window of 2 rows or more"
    assert result.exit_code == 1 and result.output.startswith(text)
