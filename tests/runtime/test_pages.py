"""One cache for all sessions of an engine: its pages are given out as sessions grow, and come back when they shrink or end.

The model's window closes every 4 and 128 tokens, and a page holds 256: prompts here are longer than a page.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from runtime.checkpoints import QWEN, qwen_tensors, write_checkpoint, write_random_v4
from runtime.decode import produce

from deep_gemm import _C, Engine

CONTEXT, PAGES = 512, 3


@pytest.fixture(params=["DeepSeek-V4", "Qwen3-MoE"])
def engine(request: pytest.FixtureRequest, device: _C.Device, tmp_path: Path) -> Engine:
    if request.param == "DeepSeek-V4":
        folder = write_random_v4(tmp_path, compress_ratios=[4, 128, 0])
    else:
        config = {**QWEN, "num_hidden_layers": 1}
        folder = write_checkpoint(tmp_path, config, qwen_tensors(config))
    return Engine(
        folder, device=device, numerics="exact", context=CONTEXT, max_rows=64, cache_tokens=PAGES * 256
    )


def prompt(length: int, seed: int) -> list[int]:
    return [(i * i * 7 + seed * i) % 61 + 2 for i in range(length)]


def test_sessions_share_the_pages(engine: Engine, tmp_path: Path) -> None:
    assert engine.pages == (256, PAGES, PAGES)
    first, second = engine.session(), engine.session()
    first.sync(prompt(250, 1))
    second.sync(prompt(254, 2))
    assert engine.pages.free == 1
    text = produce(second, 5, eos=-1)  # takes the last page
    assert engine.pages.free == 0
    digest = second.state_digest()
    # The first one has room in its page, for fewer rows than a step would take in the end.
    assert len(produce(first, 6, eos=-1)) == 6
    state = first.state_digest()
    for _ in range(2):
        with pytest.raises(
            ValueError, match=r"257 tokens need 1 pages .* more, and 0 of the engine's 3 .* 1 missing"
        ):
            first.step()
        assert first.state_digest() == state
    with pytest.raises(
        ValueError, match=r"300 tokens need 1 pages .* 256 tokens would fit.*cache_tokens 1024"
    ):
        first.sync(prompt(300, 1))
    assert first.state_digest() == state
    # A saved session continues on other pages.
    second.save(tmp_path / "s")
    more = produce(second, 4, eos=-1)
    second.rewind(3)
    assert engine.pages.free == 1
    del second
    assert engine.pages.free == 2
    assert len(first.step().tokens) >= 1 and engine.pages.free == 1
    other = engine.session()
    other.sync([3, 4])
    before = other.state_digest()
    for too_much in (lambda: other.load(tmp_path / "s"), lambda: other.logits_of(prompt(300, 1))):
        with pytest.raises(ValueError, match="out of pages"):
            too_much()
        assert other.state_digest() == before
    del first
    other.load(tmp_path / "s")
    assert other.state_digest() == digest and other.tokens[254:] == text
    assert produce(other, 4, eos=-1) == more


def test_a_batch_shares_them_too(engine: Engine) -> None:
    batch, alone = engine.batch(3), engine.session(window=1)
    batch.start(0, prompt(255, 3))
    batch.start(1, prompt(20, 4))
    assert [len(batch.step()) for _ in range(2)] == [2, 2]
    assert engine.pages.free == 0
    with pytest.raises(ValueError, match="out of pages"):
        batch.start(2, [3])
    batch.stop(1)
    batch.start(2, prompt(20, 4))
    assert set(batch.step()) == {0, 2}
    batch.stop(2)
    alone.sync(prompt(20, 4))
    assert produce(alone, 1) == batch.tokens(2)[20:]
    batch.stop(0)
    assert engine.pages.free == 2
    alone.sync(prompt(255, 3))
    assert produce(alone, 3, eos=-1) == batch.tokens(0)[255:]


def test_bad_input(device: _C.Device, tmp_path: Path) -> None:
    folder = write_random_v4(tmp_path)
    engine = Engine(folder, device=device, numerics="exact", context=512, max_rows=16, cache_tokens=1)
    assert engine.pages.total == 1
    with pytest.raises(ValueError, match="300 tokens need 2 pages"):
        engine.session().sync(prompt(300, 1))
