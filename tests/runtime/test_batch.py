"""Batched decoding: every slot is bit for bit the session that decodes alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from runtime.checkpoints import QWEN, qwen_tensors, to_fp8, write_checkpoint, write_random_v4
from runtime.decode import produce

from deep_gemm import _C, Engine

PROMPTS = [[2, 3, 4], [40, 9], [7, 7, 7, 7, 7, 8, 50, 61, 13, 21]]
STEPS = 9


@pytest.fixture(params=["Qwen3-MoE", "Qwen3-MoE released", "DeepSeek-V4"])
def engine(request: pytest.FixtureRequest, device: _C.Device, tmp_path: Path) -> Engine:
    numerics = "released" if request.param.endswith("released") else "exact"
    if request.param == "DeepSeek-V4":
        folder = write_random_v4(tmp_path, compress_ratios=[4, 8, 0])
    else:
        folder = write_checkpoint(tmp_path, QWEN, to_fp8(qwen_tensors(QWEN), np.float32)[0])
    return Engine(folder, device=device, numerics=numerics, context=32, max_rows=8)


def test_equal_to_single_sessions(engine: Engine) -> None:
    """Slots start and stop at different times, one is used twice, one fills its context."""
    texts: list[list[int]] = []
    for i, prompt in enumerate(PROMPTS):
        session = engine.session(window=1)
        session.sync(prompt)
        if i == 1:
            session.set_sampling(temperature=1.0, top_k=20, seed=5)
        texts.append(produce(session, engine.context, eos=-1))
    batch = engine.batch(4)
    assert batch.step() == {} and len(batch) == 4
    batch.start(2, PROMPTS[0])
    for _ in range(2):
        batch.step()
    batch.start(0, PROMPTS[1], temperature=1.0, top_k=20, seed=5)
    batch.start(3, PROMPTS[2])
    for _ in range(STEPS):
        batch.step()
    for slot, which, count in ((2, 0, STEPS + 2), (0, 1, STEPS), (3, 2, STEPS)):
        assert batch.tokens(slot) == PROMPTS[which] + texts[which][:count]
        alone = engine.session(window=1)
        alone.sync(batch.tokens(slot))
        assert np.array_equal(batch.logits(slot).view(np.uint32), alone.logits().view(np.uint32))
    batch.stop(2)
    batch.start(0, PROMPTS[2])
    assert set(batch.step()) == {0, 3}
    while batch.step():
        pass
    assert batch.room(3) == 0 and batch.tokens(3) == PROMPTS[2] + texts[2]
    assert batch.tokens(0) == PROMPTS[2] + texts[2]


def test_bad_input(engine: Engine) -> None:
    with pytest.raises(ValueError, match="got 9 slots, expected 1 to the engine's max_rows 8"):
        engine.batch(9)
    batch = engine.batch(2)
    batch.start(0, [3, 4])
    for tokens, message in (
        ([], "got no tokens for slot 0"),
        ([10_000], "token 0 is 10000"),
        ([3] * 33, "got 33 tokens, the context holds 32"),
    ):
        with pytest.raises(ValueError, match=message):
            batch.start(0, tokens)
    with pytest.raises(ValueError, match="top_p 0"):
        batch.start(0, [3], top_p=0)
    assert batch.tokens(0) == [3, 4] and set(batch.step()) == {0}
    with pytest.raises(ValueError, match="got slot 2, expected 0 to 1"):
        batch.start(2, [3])
    with pytest.raises(ValueError, match="no logits before slot 1 was started"):
        batch.logits(1)
