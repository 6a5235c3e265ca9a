"""What sessions do when something is wrong: NaN, too little memory, saves that do not finish."""

from __future__ import annotations

import json
import os
import re
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from runtime.checkpoints import QWEN, qwen_tensors, write_checkpoint, write_random_v4
from runtime.decode import produce, same

from deep_gemm import _C, Engine, Session

NAN_TOKEN = 50


def write_qwen(folder: Path, with_nan: bool = False) -> Path:
    tensors = qwen_tensors(QWEN)
    if with_nan:
        tensors["model.embed_tokens.weight"][NAN_TOKEN] = np.nan
    return write_checkpoint(folder, QWEN, tensors)


def write_v4_with_nan(folder: Path, name: str = "embed.weight", row: int = NAN_TOKEN) -> Path:
    """Row `row` of a tensor of 32 columns is NaN."""
    path = write_random_v4(folder) / "model.safetensors"
    raw = bytearray(path.read_bytes())
    length = struct.unpack("<Q", raw[:8])[0]
    begin, _ = json.loads(raw[8 : 8 + length])[name]["data_offsets"]
    at = 8 + length + begin + row * 32 * 4
    raw[at : at + 32 * 4] = np.full(32, np.nan, np.float32).tobytes()
    path.write_bytes(raw)
    return folder


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder = write_qwen(tmp_path_factory.mktemp("qwen"))
    return Engine(folder, device="emulator:sm_90a", numerics="exact", context=32, max_rows=8)


@pytest.fixture
def qwen(loaded: Engine) -> Session:
    session = loaded.session()
    session.sync([5, 9])
    return session


@pytest.mark.parametrize("architecture", ["Qwen3-MoE", "DeepSeek-V4"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nan_logits_are_refused(
    device: _C.Device, tmp_path: Path, architecture: str, temperature: float
) -> None:
    folder = (
        write_qwen(tmp_path, with_nan=True) if architecture == "Qwen3-MoE" else write_v4_with_nan(tmp_path)
    )
    engine = Engine(folder, device=device, numerics="exact", context=64, max_rows=16)
    session, fresh = engine.session(), engine.session()
    session.set_sampling(temperature=temperature, seed=3)
    fresh.set_sampling(temperature=temperature, seed=3)
    session.sync([2, 3, NAN_TOKEN])
    assert np.isnan(session.logits()).any()
    for _ in range(2):
        with pytest.raises(ValueError, match=r"the logits after 3 tokens hold NaN.*Nothing was added"):
            session.step()
        assert session.tokens == [2, 3, NAN_TOKEN]
    # A token that is not looked at any more does no harm.
    session.sync([2, 4, 5])
    fresh.sync([2, 4, 5])
    assert produce(session, 4, eos=-1) == produce(fresh, 4, eos=-1)
    assert same(session, fresh)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nan_in_the_mtp_block_costs_its_drafts_only(
    device: _C.Device, tmp_path: Path, temperature: float
) -> None:
    folder = write_v4_with_nan(tmp_path, "mtp.0.enorm.weight", 0)
    engine = Engine(folder, device=device, numerics="exact", context=64, max_rows=16)
    plain, session = engine.session(window=1), engine.session(window=3)
    for one in (plain, session):
        one.sync([2, 3, 4])
        one.set_sampling(temperature=temperature, seed=3)
    assert produce(session, 5, eos=-1) == produce(plain, 5, eos=-1)
    assert session.state_digest() == plain.state_digest()
    assert session.stats["drafted"] > session.stats["accepted"] == 0


def test_nan_of_a_rejected_draft_is_forgotten(device: _C.Device, tmp_path: Path) -> None:
    """Its rows of the ring, the windows it closed and its streams held NaN."""
    engine = Engine(write_v4_with_nan(tmp_path), device=device, numerics="exact", context=64, max_rows=16)
    plain, session = engine.session(window=1), engine.session(window=3)
    plain.sync([2, 3, 4])
    session.sync([2, 3, 4])
    for _ in range(4):
        session.force_drafts([NAN_TOKEN, NAN_TOKEN])
        assert session.step().accepted == 0
        plain.step(1)
        assert same(session, plain)
    session.force_drafts([3])
    session.set_sampling(temperature=1.0)
    with pytest.raises(ValueError, match="drafts for a step at temperature 1, expected 0"):
        session.step()
    assert same(session, plain)


def test_nan_in_a_batch_stops_one_slot(device: _C.Device, tmp_path: Path) -> None:
    engine = Engine(
        write_qwen(tmp_path, with_nan=True), device=device, numerics="exact", context=64, max_rows=16
    )
    batch, alone = engine.batch(2), engine.session()
    batch.start(0, [2, 4, 5])
    batch.start(1, [2, NAN_TOKEN])
    free = engine.pages.free
    with pytest.raises(ValueError, match="logits of slot 1 after 2 tokens hold NaN; it is stopped"):
        batch.step()
    assert engine.pages.free == free + 1
    alone.sync([2, 4, 5])
    assert [batch.step()[0] for _ in range(3)] == produce(alone, 3, eos=-1)
    assert batch.tokens(1) == [2, NAN_TOKEN]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda s: s.sync([1, 1.5]), TypeError, "sync: token 1 is 1.5 of type float, expected an integer"),
        (
            lambda s: s.sync("text"),
            TypeError,
            r"got tokens of type str, .*Engine.encode\(\) makes one of a text",
        ),
        (lambda s: s.sync(None), TypeError, "got tokens of type NoneType, expected a sequence of token ids"),
        (lambda s: s.sync(b"text"), TypeError, "got tokens of type bytes, expected a sequence of token ids"),
        (lambda s: s.sync(np.array([[5, 9]])), TypeError, "sync: token 0 is array.* of type ndarray"),
        (lambda s: s.sync([1 << 40]), ValueError, "sync: token 0 is 1099511627776, expected an id"),
        (lambda s: s.logits_of(3), TypeError, "logits_of: got tokens of type int"),
        (lambda s: s.force_drafts([None]), TypeError, "force_drafts: token 0 is None of type NoneType"),
        (lambda s: s.step(2.5), TypeError, "step: budget is 2.5 of type float, expected an integer"),
        (lambda s: s.step(-1), ValueError, "step: got budget=-1, expected 0 to"),
        (lambda s: s.step(eos=9999), ValueError, "step: got eos=9999, expected 0 to 255"),
        (lambda s: s.step(eos=-2), ValueError, "step: got eos=-2, expected 0 to 255, or -1 for none"),
        (lambda s: s.step(np.array([1, 2])), TypeError, "step: budget is array.* of type ndarray"),
        (lambda s: s.rewind(-1), ValueError, "rewind: got length=-1, expected 0 to"),
        (
            lambda s: s.set_sampling(temperature="hot"),
            TypeError,
            "temperature is 'hot' of type str, expected a number",
        ),
        (lambda s: s.set_sampling(top_k=2.5), TypeError, "set_sampling: top_k is 2.5 of type float"),
        (lambda s: s.set_sampling(seed=0.5), TypeError, "seed is 0.5 of type float, expected an integer"),
        (lambda s: s.logits_of([3], chunk=-1), ValueError, "logits_of: got chunk=-1, expected 0 to"),
        (lambda s: s.logits_of([3], chunk=9), ValueError, "chunks of 9 rows, expected at most .* max_rows 8"),
        (lambda s: s.trace_of([3], depth=0.5), TypeError, "trace_of: depth is 0.5 of type float"),
        (lambda s: s.force_drafts([3] * 8), ValueError, "got 8 drafts, expected at most 7"),
        (lambda s: s.force_drafts([256]), ValueError, "got draft 256, expected a token of 0 to 255"),
        (lambda s: s.engine.batch(1).start(-1, [3]), ValueError, "start: got slot=-1, expected 0 to"),
        (
            lambda s: s.engine.batch(1).start(0, [3], temperature="hot"),
            TypeError,
            "start: temperature is 'hot' of type str, expected a number",
        ),
        (lambda s: s.engine.session(window=2.5), TypeError, "session: window is 2.5 of type float"),
        (
            lambda s: s.engine.session(window=0),
            ValueError,
            "session: got window=0, expected 1 .* to 8, or None",
        ),
        (lambda s: s.engine.session(window=-1), ValueError, "got window=-1, expected 1 .* to 8, or None"),
        (lambda s: Engine(progress=3), TypeError, "Engine: progress is 3, expected a function of"),
        (lambda s: list(s.generate(-1)), ValueError, "generate: got max_tokens=-1, expected 0 to"),
        (lambda s: s.engine.batch(1.5), TypeError, "batch: slots is 1.5 of type float"),
        (lambda s: s.engine.batch(1).start(0, [0.5]), TypeError, "start: token 0 is 0.5 of type float"),
    ],
)
def test_wrong_arguments_change_nothing(
    qwen: Session, call: Callable[[Session], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call(qwen)
    assert qwen.tokens == [5, 9]


def test_two_threads_do_not_meet_in_a_session(loaded: Engine) -> None:
    session = loaded.session()
    refused = 0
    with ThreadPoolExecutor(1) as pool:
        work = pool.submit(session.logits_of, [5, 9] * 14, 1)
        while not work.done():
            try:
                assert len(session.tokens) in (0, 28)
            except ValueError as error:
                assert "session: another thread is in a call of it" in str(error)
                refused += 1
    assert refused > 0 and work.result().shape == (28, 256) and session.tokens == [5, 9] * 14


def test_numpy_ids(qwen: Session) -> None:
    assert qwen.sync(np.array([5, 9, 7], np.int64)) == 2


def test_too_little_memory_for_the_weights(tmp_path: Path) -> None:
    folder = write_qwen(tmp_path)
    needed = _C.Checkpoint(str(folder)).device_bytes()
    device = _C.Device(f"emulator:sm_90a,sms=8,memory={needed // 2}")
    with pytest.raises(_C.Error, match="out of memory: the weights take") as raised:
        Engine(folder, device=device)
    numbers = [float(n) for n in re.findall(r"([0-9.]+) GiB", str(raised.value))]
    assert numbers == pytest.approx([needed / 2**30, needed / 2**31, needed / 2**31], abs=1e-3)
    assert "are missing" in str(raised.value)
    some, of = _C.Checkpoint(str(folder)).layers_that_fit(needed // 2)
    assert f"{some} of {of} layers would fit" in str(raised.value) and 0 <= some < of
    assert device.free_memory_bytes == needed // 2, "something stayed allocated"


def test_too_little_memory_for_the_cache_or_a_session(tmp_path: Path) -> None:
    """A page of this model is 256 KiB; a session of 64 rows needs 300 KiB beside its pages, one of 8 rows 60."""
    folder = write_qwen(tmp_path)
    memory = _C.Checkpoint(str(folder)).device_bytes() + 400_000
    device = _C.Device(f"emulator:sm_90a,sms=8,memory={memory}")
    with pytest.raises(_C.Error, match=r"a cache of 512 tokens takes .* are missing; .* of 256 would fit"):
        Engine(folder, device=device, numerics="exact", context=512, max_rows=8)
    assert device.free_memory_bytes == memory, "something stayed allocated"
    engine = Engine(folder, device=device, numerics="exact", context=256, max_rows=64)
    free = device.free_memory_bytes
    with pytest.raises(_C.Error, match=r"no room for a context of 256 tokens .* GiB missing"):
        engine.session()
    assert device.free_memory_bytes == free and engine.pages.free == 1, "something stayed allocated"
    del engine
    engine = Engine(folder, device=device, numerics="exact", context=32, max_rows=8)
    session = engine.session()
    session.sync([3, 4])
    assert len(produce(session, 3, eos=-1)) == 3


def test_restore_points_that_do_not_fit_are_not_kept(tmp_path: Path) -> None:
    folder = write_random_v4(tmp_path)

    def session(memory: int) -> tuple[_C.Device, Session]:
        device = _C.Device(f"emulator:sm_90a,sms=8,races=off,memory={memory}")
        engine = Engine(folder, device=device, numerics="exact", context=64, max_rows=8, cache_tokens=256)
        return device, engine.session(restore_points=2)

    device, roomy = session(1 << 30)
    used, before = (1 << 30) - device.free_memory_bytes, device.free_memory_bytes
    roomy.sync([2, 3, 4])
    point = before - device.free_memory_bytes
    assert point > 0
    for points, kept in ((0, 0), (1, 5)):
        _, tight = session(used + points * point + point // 2)
        for prompt in ([2, 3, 4], [2, 3, 4, 5, 6]):
            tight.sync(prompt)
            roomy.sync(prompt)
            assert same(tight, roomy)
        for _ in range(2):
            assert tight.step(1).tokens == roomy.step(1).tokens
        # One that fits is the newest prompt's.
        assert roomy.sync([2, 3, 4, 5, 6]) == 5 and tight.sync([2, 3, 4, 5, 6]) == kept
        assert same(tight, roomy)


SAVE = """
import resource, signal, sys
sys.path.insert(0, {tests!r})
from deep_gemm import _C, Engine, Session
engine = Engine({folder!r}, device="emulator:sm_90a,sms=8", numerics="exact", context=64, max_rows=16)
session = engine.session()
session.sync([2, 3, 4])
session.save({path!r})
session.sync([2, 3, 4, 5])
{body}
"""


def run_save(tmp_path: Path, body: str) -> subprocess.Popen[str]:
    folder = write_qwen(tmp_path / "model")
    code = SAVE.format(
        tests=str(Path(__file__).parents[1]), folder=str(folder), path=str(tmp_path / "s"), body=body
    )
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def check_old_or_new(tmp_path: Path, lengths: set[int]) -> None:
    engine = Engine(
        tmp_path / "model", device="emulator:sm_90a,sms=8", numerics="exact", context=64, max_rows=16
    )
    session, fresh = engine.session(), engine.session()
    session.load(tmp_path / "s")
    assert len(session.tokens) in lengths
    fresh.sync([2, 3, 4, 5][: len(session.tokens)])
    assert same(session, fresh)


def test_a_save_replaces_files_alone(qwen: Session, tmp_path: Path) -> None:
    """A rename would put a file in the place of a device, or of a link instead of what it points to."""
    pipe, target, link = tmp_path / "pipe", tmp_path / "target", tmp_path / "link"
    os.mkfifo(pipe)
    target.write_bytes(b"old")
    link.symlink_to(target.name)
    with pytest.raises(_C.Error, match=r"writing '.*pipe' failed: it is no regular file; check the path"):
        qwen.save(pipe)
    assert pipe.is_fifo() and not list(tmp_path.glob("*.tmp"))
    qwen.save(link)
    assert link.is_symlink() and len(target.read_bytes()) > 1000
    dangling, round_and_round = tmp_path / "dangling", tmp_path / "round"
    dangling.symlink_to("new")
    qwen.save(dangling)
    assert dangling.is_symlink() and (tmp_path / "new").read_bytes() == target.read_bytes()
    round_and_round.symlink_to("round")
    with pytest.raises(_C.Error, match=r"writing '.*round' failed"):
        qwen.save(round_and_round)
    assert round_and_round.is_symlink() and not list(tmp_path.glob("*.tmp"))
    with pytest.raises(_C.Error, match=r"reading '.*pipe' failed: it is no regular file"):
        qwen.load(pipe)  # does not wait for somebody who writes
    with pytest.raises(_C.Error, match="reading '/dev/null' failed: it is no regular file"):
        qwen.load("/dev/null")
    assert qwen.tokens == [5, 9]
    qwen.load(link)


def test_devices_without_clusters(loaded: Engine) -> None:
    for arch in ("sm_80", "sm_89"):
        with pytest.raises(
            ValueError, match=f"engine: got emulated {arch} .*expected a device with clusters"
        ):
            Engine("tiny_v4", device=f"emulator:{arch}")


def test_a_full_disk_keeps_the_old_file(tmp_path: Path) -> None:
    """Writes fail half way (a limit on the size of files): an error, the old file, no litter, a usable session."""
    body = f"""
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
try:
    session.save({str(tmp_path / "s")!r})
except _C.Error as error:
    print("refused:", error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert len(session.step().tokens) == 1
"""
    process = run_save(tmp_path, body)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0 and "refused: writing" in output, output
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "s"]
    check_old_or_new(tmp_path, {3})


def test_two_sessions_save_to_one_file(loaded: Engine, tmp_path: Path) -> None:
    """The file is one of theirs at any time, and nothing else stays in the folder."""
    sessions = [loaded.session() for _ in range(2)]
    texts = [[3, 4], [5, 6, 7]]
    for session, text in zip(sessions, texts, strict=True):
        session.sync(text)
    sessions[0].save(tmp_path / "s")
    reader = loaded.session()

    def save(session: Session) -> None:
        for _ in range(60):
            session.save(tmp_path / "s")

    with ThreadPoolExecutor(2) as pool:
        work = [pool.submit(save, session) for session in sessions]
        while not all(one.done() for one in work):
            reader.load(tmp_path / "s")
            assert reader.tokens in texts
    for one in work:
        one.result()
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_a_kill_leaves_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    process = run_save(
        tmp_path,
        f"print('ready', flush=True)\nwhile True:\n    session.save({str(tmp_path / 's')!r})\n",
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    check_old_or_new(tmp_path, {3, 4})
