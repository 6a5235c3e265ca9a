"""A launch that fails half way through a pass: what was interrupted says so, takes no part until it is started anew, and
is then as if nothing had happened. Passes that run as they are, that are captured, and that are replayed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from runtime.checkpoints import write_random_v4
from runtime.decode import same

from deep_gemm import _C, Engine
from deep_gemm.runtime import Batch

PROMPTS = [[2, 3, 4, 5, 6], [7, 8]]
FAR = 1 << 40
STOPPED = r"interrupted the pass of slots 0, 1, which are stopped; start\(\) them anew: .* as fail_launch\(\)"


@pytest.fixture
def engine(emulator: _C.Device, tmp_path: Path) -> Iterator[Engine]:
    folder = write_random_v4(tmp_path, compress_ratios=[4, 8, 0])
    yield Engine(folder, device=emulator, numerics="exact", context=64, max_rows=8, cache_tokens=4096)
    emulator.fail_launch(0)


def launches(device: _C.Device, work: Callable[[], object]) -> int:
    """How many `work` makes."""
    device.fail_launch(FAR)
    work()
    return FAR - device.fail_launch(0)


def started(engine: Engine) -> Batch:
    batch = engine.batch(2)
    for slot, prompt in enumerate(PROMPTS):
        batch.start(slot, prompt)
    return batch


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_a_batch_stops_what_took_part(engine: Engine, emulator: _C.Device, steps: int) -> None:
    """A retry of the pass would count the token twice in the open windows of compressors."""
    measured = started(engine)
    for _ in range(steps):
        measured.step()
    last = launches(emulator, measured.step)
    assert last == 3 if steps == 2 else last > 40  # two choices, then the pass
    want = measured.tokens(0), measured.tokens(1)
    for number in {3, (3 + last) // 2, last}:
        batch = started(engine)
        for _ in range(steps):
            batch.step()
        texts = [batch.tokens(slot) for slot in (0, 1)]
        emulator.fail_launch(number)
        with pytest.raises(_C.Error, match=STOPPED):
            batch.step()
        assert [batch.tokens(slot) for slot in (0, 1)] == texts
        assert batch.step() == {}
        for slot in (0, 1):
            batch.start(slot, texts[slot])
        batch.step()
        assert (batch.tokens(0), batch.tokens(1)) == want
        for slot in (0, 1):
            assert np.array_equal(batch.logits(slot), measured.logits(slot)), number


def test_a_choice_that_fails_changes_nothing(engine: Engine, emulator: _C.Device) -> None:
    batch, other = started(engine), started(engine)
    for number in (1, 2):
        emulator.fail_launch(number)
        with pytest.raises(_C.Error, match=r"^emulator: launch of .*argmax"):
            batch.step()
    assert batch.step() == other.step()
    assert np.array_equal(batch.logits(0), other.logits(0))


def test_a_start_that_fails_stops_its_slot_alone(engine: Engine, emulator: _C.Device) -> None:
    batch, other = started(engine), started(engine)
    emulator.fail_launch(9)
    with pytest.raises(_C.Error, match=r"the pass of slots 1, which are stopped"):
        batch.start(1, [9, 10, 11])
    assert batch.tokens(1) == [] and batch.step() == {0: other.step()[0]}
    batch.start(1, PROMPTS[1])
    batch.step(), other.step()
    assert batch.tokens(1) == other.tokens(1)[: len(PROMPTS[1]) + 1]


def test_pages_of_a_stopped_slot_are_free(engine: Engine, emulator: _C.Device) -> None:
    free = engine.pages.free
    batch = started(engine)
    assert engine.pages.free == free - 2
    emulator.fail_launch(9)
    with pytest.raises(_C.Error, match=STOPPED):
        batch.step()
    assert engine.pages.free == free


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_a_session_starts_anew(engine: Engine, emulator: _C.Device, steps: int) -> None:
    """Steps of one window: the first runs as it is, the second is captured, the third is one launch."""

    def stepped() -> tuple[list[int], Callable[[], object]]:
        session = engine.session(window=1)
        session.sync(PROMPTS[0])
        for _ in range(steps):
            session.step()
        return session.tokens, session

    session = stepped()[1]
    last = launches(emulator, session.step)
    assert last == 1 if steps == 2 else last > 40
    for number in {1, (1 + last) // 2, last}:
        tokens, again = stepped()
        emulator.fail_launch(number)
        with pytest.raises(_C.Error, match=r"as fail_launch\(\) asked for"):
            again.step()
        with pytest.raises(ValueError, match="a failure interrupted its last call"):
            again.step()
        assert again.sync(tokens) == 0
        again.step()
        assert same(session, again)


def test_only_the_emulated_gpu_fails_on_request(device: _C.Device) -> None:
    if device.emulated:
        assert device.fail_launch(5) == 0 and device.fail_launch(0) == 5
        return
    with pytest.raises(ValueError, match="expected the emulated GPU"):
        device.fail_launch(1)
