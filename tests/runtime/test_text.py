"""Text in, text out: the shipped tokenizer, complete(), and the commands that use them."""

from __future__ import annotations

import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from golden import tiny_v4
from rich.console import Console
from runtime.decode import Load

from deep_gemm import _C
from deep_gemm.cli import main
from deep_gemm.models import Tokenizer, model_path
from deep_gemm.models.inspect import report


@pytest.fixture
def tokenizer() -> Tokenizer:
    pytest.importorskip("tokenizers")
    return Tokenizer(model_path("tiny_v4"))


def test_tokenizer(tokenizer: Tokenizer) -> None:
    text = "The quick test of a language model is"
    assert [0, *tokenizer.encode(text)] == tiny_v4.prompt("p0")
    for text in ("", "naïve — 漢字 \U0001f600\n\tx = 12345"):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_threads_encode_as_each_asked(tokenizer: Tokenizer) -> None:
    """Whether special tokens are read is a flag of the whole tokenizer: a slow one shows whether another call changes
    it."""

    class Slow:
        encode_special_tokens = False

        def encode(self, text: str, **_: Any) -> SimpleNamespace:
            time.sleep(0.002)
            return SimpleNamespace(ids=[int(self.encode_special_tokens)])

    tokenizer._tokenizer = Slow()

    def call(plain: bool) -> bool:
        return all(tokenizer.encode("", plain=plain) == [int(plain)] for _ in range(20))

    with ThreadPoolExecutor(2) as pool:
        assert all(pool.map(call, [False, True]))


def test_complete_continues_the_text(load: Load, tokenizer: Tokenizer) -> None:
    session = load().session()
    first = session.complete("The quick", max_tokens=4)
    assert len(tokenizer.encode(first)) > 0
    tokens = session.tokens
    assert tokenizer.decode(tokens[1:]) == "The quick" + first
    assert session.sync(tokens) == len(tokens)


def test_inspect() -> None:
    result = CliRunner().invoke(main, ["inspect", "tiny_v4", "--device", "emulator"])
    assert result.exit_code == 0, result.output
    assert "531 tensors" in result.output and "complete: every tensor" in result.output
    # A page: 64 CSA rows and 2 HCA rows of 584 bytes, in pages that are multiples of 576, 64 indexer rows of 68 bytes.
    row = next(line.split() for line in result.output.splitlines() if line.split()[:1] == ["4096"])
    assert row[1] == "16" and float(row[2]) == pytest.approx(16 * (37440 + 1728 + 64 * 68) / 2**20, abs=0.01)
    assert int(row[3]) > 1000


def test_inspect_says_what_would_fit() -> None:
    """With memory for all but a part of the last layer."""
    shipped = model_path("tiny_v4")
    sizes = {t["name"]: t["num_bytes"] for t in _C.Checkpoint(str(shipped)).tensors()}
    last = sum(size for name, size in sizes.items() if name.startswith("layers.2."))
    checkpoint = _C.Checkpoint(str(shipped))
    memory = checkpoint.device_bytes() - last * 4 // 5
    assert checkpoint.layers_that_fit(0) == (0, 3) and checkpoint.layers_that_fit(1 << 40) == (3, 3)
    output = StringIO()
    assert report(
        shipped, _C.Device(f"emulator:sm_90a,sms=8,memory={memory}"), Console(file=output, width=200)
    )
    assert "GiB are missing, 2 of 3 layers would fit" in output.getvalue()


def test_unknown_models() -> None:
    result = CliRunner().invoke(main, ["inspect", "no/such/folder"])
    assert (
        result.exit_code == 1 and "expected a checkpoint's folder or file, or one of tiny_v4" in result.output
    )


def test_a_tokenizer_that_is_none(tmp_path: Path) -> None:
    """The tokenizers package raises a bare Exception; inspect says where there is no file at all."""
    folder = tmp_path / "model"
    shutil.copytree(model_path("tiny_v4"), folder)
    (folder / "tokenizer.json").write_text("{}")
    result = CliRunner().invoke(main, ["generate", "a", "--model", str(folder), "--device", "emulator"])
    assert result.exit_code == 1 and "tokenizer.json, which is no tokenizer that" in result.stderr, (
        result.output
    )
    (folder / "tokenizer.json").unlink()
    result = CliRunner().invoke(main, ["inspect", str(folder), "--device", "emulator"])
    assert result.exit_code == 0 and "no tokenizer.json beside it" in result.output


def test_a_model_without_a_name() -> None:
    with pytest.raises(ValueError, match="model: got '', expected a checkpoint's folder or file"):
        model_path("")
    with pytest.raises(ValueError, match=r"model: path is 'a\\udcff', expected a name in UTF-8; rename it"):
        model_path(b"a\xff")
