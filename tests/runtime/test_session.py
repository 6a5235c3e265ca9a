"""Sessions: common prefixes, going back, files, limits, and what happens after bad input. All exact."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from runtime.checkpoints import write_random_v4
from runtime.decode import Load, Plain, produce, same

from deep_gemm import _C, Engine, Session
from deep_gemm.cli_text import Stats, prefill


def test_sync_keeps_the_common_prefix(load: Load, prompt: list[int]) -> None:
    session, fresh = load().session(), load().session()
    assert session.sync(prompt) == 0
    assert session.sync([*prompt, 5, 6]) == len(prompt)
    assert session.sync([*prompt, 5, 6]) == len(prompt) + 2
    assert session.sync([*prompt, 7]) == len(prompt)  # a restore point
    fresh.sync([*prompt, 7])
    assert same(session, fresh)
    assert session.sync(prompt[:3]) == 0  # before every restore point
    fresh.sync(prompt[:3])
    assert same(session, fresh)


def test_a_prompt_in_parts_is_one_restore_point(device: _C.Device, prompt: list[int]) -> None:
    """As the commands read it: the ends of the two turns before stay."""
    engine = Engine("tiny_v4", device=device, numerics="exact", context=64, max_rows=8)
    session = engine.session(window=1)
    told = Stats(prompt=0, prefill_seconds=0)
    prefill(session, prompt, told)
    session.step()
    more = [*session.tokens, *range(20, 40)]  # three chunks
    prefill(session, more, told)
    assert told.kept == len(more) - 20
    session.step()
    prefill(session, more, told)
    assert told.kept == len(more)
    prefill(session, [*prompt, 7], told)
    assert told.kept == len(prompt)


def test_rewind_inside_the_last_step_and_before_it(load: Load, prompt: list[int], plain: Plain) -> None:
    session = load().session(window=4)
    session.sync(prompt)
    session.force_drafts(plain.text[1:4])
    assert session.step().tokens == plain.text[:4]
    for length in (3, 2, 1, 0):  # the last one through the restore point
        session.rewind(len(prompt) + length)
        assert session.state_digest() == plain.digests[length], length
    assert produce(session, 6) == plain.text[:6]
    assert session.state_digest() == plain.digests[6]


def test_saved_sessions_continue(load: Load, prompt: list[int], tmp_path: Path) -> None:
    """With rows in FP8 and FP4; test_rollback.py has fp32 ones."""
    session, other = load("released").session(), load("released").session()
    session.sync(prompt)
    produce(session, 4)
    assert dict(session.state_parts())["layers.1.index_rows"] != dict(other.state_parts()).get(
        "layers.1.index_rows"
    )
    session.save(tmp_path / "s")
    other.load(tmp_path / "s")
    assert same(session, other)
    assert produce(session, 4) == produce(other, 4)
    assert same(session, other)


def test_a_number_is_no_path(load: Load) -> None:
    session = load().session()
    for call in (session.save, session.load):
        with pytest.raises(
            TypeError, match=r"path is 3 of type int, expected a str or a pathlib\.Path; pass"
        ):
            call(3)  # type: ignore[arg-type]


def signed(content: bytes) -> bytes:
    """With a checksum that matches."""
    return content[:-32] + _C.hash_hex(content[:-32]).encode()


def test_a_file_is_not_read_before_its_size_is_right(load: Load, prompt: list[int], tmp_path: Path) -> None:
    """Files of a tebibyte, nearly all of it holes."""
    session, path = load().session(), tmp_path / "s"
    session.sync(prompt)
    digest = session.state_digest()
    session.save(path)
    good, size = path.read_bytes(), 1 << 40
    claimed = good[:48] + (size - 80 - 32).to_bytes(8, "little") + good[56:]
    foreign = claimed[:16] + b"0" * 32 + claimed[48:]
    for content, error, message in [
        (b"", _C.Error, "is not a saved session"),
        (good, _C.Error, "1099511627664 bytes of state, expected"),
        (claimed, _C.Error, r"1099511627664 bytes of state, expected at most \d+; the file is damaged"),
        (foreign, ValueError, "another model, context, max_rows or numerics"),
    ]:
        path.write_bytes(content)
        os.truncate(path, size)
        with pytest.raises(error, match=message):
            session.load(path)
        assert session.state_digest() == digest, "a refused file must change nothing"


def test_refuses_damaged_and_foreign_files(load: Load, prompt: list[int], tmp_path: Path) -> None:
    session = load().session()
    session.sync(prompt)
    digest = session.state_digest()
    path = tmp_path / "s"
    session.save(path)
    good = path.read_bytes()
    for content, message in [
        (b"", "is not a saved session"),
        (b"x" + good[1:], "is not a saved session"),
        (good[:8] + b"\x09" + good[9:], "has version 9"),
        (good[:8] + b"\x02" + good[9:], "has version 2, expected 3; make it again"),
        (signed(good[:60] + (1024).to_bytes(4, "little") + good[64:]), "goes on with token 1024, expected"),
        (good[:-1], "truncated"),
        (good + b"\0", "added to"),
        (good[:5000] + bytes([good[5000] ^ 1]) + good[5001:], "its checksum does not match"),
        (good[:16] + b"0" * 32 + good[48:], "its checksum does not match"),
    ]:
        path.write_bytes(content)
        with pytest.raises(_C.Error, match=message):
            session.load(path)
        assert session.state_digest() == digest, "a refused file must change nothing"
    path.write_bytes(good)
    with pytest.raises(ValueError, match="another model, context, max_rows or numerics"):
        load("fp8_cache").session().load(path)
    plain = load().session(window=1)
    plain.sync(prompt[:3])
    digest = plain.state_digest()
    with pytest.raises(
        ValueError, match=r"by a session that drafts; load it into one with a window of 2 rows"
    ):
        plain.load(path)
    assert plain.state_digest() == digest, "a refused file must change nothing"
    plain.save(path)
    with pytest.raises(ValueError, match=r"by a session that decodes plainly; .* a window of 1 row"):
        session.load(path)
    with pytest.raises(_C.Error, match="failed"):
        session.load(tmp_path / "gone")


def change_config(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "rope_theta": 5000}))


def change_the_last_weight(folder: Path) -> None:
    """A large tensor's last bytes."""
    content = bytearray((folder / "model.safetensors").read_bytes())
    length = int.from_bytes(content[:8], "little")
    _, end = json.loads(content[8 : 8 + length])["head.weight"]["data_offsets"]
    content[8 + length + end - 1] ^= 1
    (folder / "model.safetensors").write_bytes(content)


@pytest.mark.parametrize("change", [change_config, change_the_last_weight])
def test_refuses_another_model_s_files(
    device: _C.Device, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    """The same names and shapes, and all first bytes the same."""
    folder = write_random_v4(tmp_path, vocab_size=1024, compress_ratios=[4, 8, 0])

    def session() -> Session:
        return Engine(folder, device=device, numerics="exact", context=32, max_rows=8).session()

    saved = session()
    saved.sync([2, 3, 4])
    saved.save(tmp_path / "s")
    session().load(tmp_path / "s")
    change(folder)
    with pytest.raises(ValueError, match="another model"):
        session().load(tmp_path / "s")


def test_bad_input_changes_nothing(load: Load, prompt: list[int]) -> None:
    session = load().session()
    with pytest.raises(ValueError, match="nothing to continue"):
        session.step()
    with pytest.raises(ValueError, match="no logits before the first token"):
        session.logits()
    session.sync(prompt)
    digest = session.state_digest()
    with pytest.raises(ValueError, match="token 1 is 1024, expected 0 to 1023"):
        session.sync([3, 1024])
    with pytest.raises(ValueError, match="token 0 is -1"):
        session.sync([-1])
    with pytest.raises(ValueError, match="got 513 tokens, the context holds 512"):
        session.sync([3] * 513)
    with pytest.raises(ValueError, match="budget of 0"):
        session.step(0)
    with pytest.raises(ValueError, match="a rewind to 6 tokens, expected at most the 5 there are"):
        session.rewind(6)
    with pytest.raises(ValueError, match=r"top_p 1.5"):
        session.set_sampling(top_p=1.5)
    with pytest.raises(ValueError, match="window of 9 rows, expected 1"):
        load().session(window=9)
    assert session.state_digest() == digest


def test_the_context_can_be_filled(device: _C.Device, prompt: list[int]) -> None:
    engine = Engine("tiny_v4", device=device, numerics="exact", context=len(prompt) + 5, max_rows=32)
    plain, session = engine.session(window=1), engine.session(window=4)
    plain.sync(prompt)
    session.sync(prompt)
    assert produce(plain, 100) == produce(session, 100)
    assert session.room == 0 and same(plain, session)
    with pytest.raises(ValueError, match="the context of 10 tokens is full"):
        session.step()
    with pytest.raises(ValueError, match="context of 5000, expected at most the model's 4096; pass less"):
        Engine("tiny_v4", device=device, context=5000)


def test_nothing_of_an_earlier_text_is_left(load: Load, prompt: list[int]) -> None:
    """Two tokens are too few for a compressor to close a window: what the text before left there must be gone, too."""
    used, fresh = load().session(), load().session()
    used.sync([t + 1 for t in prompt])
    used.sync(prompt[:2])
    fresh.sync(prompt[:2])
    assert used.state_parts() == fresh.state_parts()
