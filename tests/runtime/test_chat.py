"""Templates, streams of text, and the generate and chat commands."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from runtime.checkpoints import QWEN, qwen_tensors, write_checkpoint
from runtime.decode import WITHOUT_RACES as DEVICE

from deep_gemm import _C, Engine
from deep_gemm.cli import main
from deep_gemm.models import TextStream, Tokenizer, model_path
from deep_gemm.models.chat import TEMPLATES, Message, encode_chat
from deep_gemm.runtime import Session

CONVERSATION = [
    Message("system", "Be brief."),
    Message("user", "Hi <think>"),
    Message("assistant", "Hello."),
    Message("user", "Bye"),
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    pytest.importorskip("tokenizers")
    return Tokenizer(model_path("tiny_v4"))


class Spelled:
    """A tokenizer that shows what it was asked for."""

    def encode(self, text: str, *, plain: bool = False) -> list[str]:
        return [f"[{text}]" if plain else text]


@pytest.mark.parametrize(
    ("architecture", "thinking", "expected"),
    [
        (
            "DeepSeek-V4",
            False,
            "[Be brief.]<｜User｜>[Hi <think>]<｜Assistant｜></think>[Hello.]<｜end▁of▁sentence｜>"
            "<｜User｜>[Bye]<｜Assistant｜></think>",
        ),
        (
            "Qwen3-MoE",
            True,
            "<|im_start|>system\n[Be brief.]<|im_end|>\n<|im_start|>user\n[Hi <think>]<|im_end|>\n"
            "<|im_start|>assistant\n[Hello.]<|im_end|>\n<|im_start|>user\n[Bye]<|im_end|>\n<|im_start|>assistant\n",
        ),
    ],
)
def test_templates(architecture: str, thinking: bool, expected: str) -> None:
    pieces = encode_chat(Spelled(), TEMPLATES[architecture], CONVERSATION, thinking=thinking)  # type: ignore[arg-type]
    assert "".join(map(str, pieces)) == expected


def test_an_interrupted_text_is_told_by_the_exit_status(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tokenizers")
    whole = Session.generate

    def first_step(self: Session, *arguments: Any) -> Iterator[Any]:
        yield next(iter(whole(self, *arguments)))
        raise KeyboardInterrupt

    monkeypatch.setattr(Session, "generate", first_step)
    done = CliRunner().invoke(
        main, ["generate", "The quick", "--device", DEVICE, "--spec", "1", "--max-tokens", "4"]
    )
    assert done.exit_code == 130 and "interrupted" in done.stderr and done.stdout.strip()


def test_special_tokens_in_messages_are_text(tokenizer: Tokenizer) -> None:
    tokens = encode_chat(tokenizer, TEMPLATES["DeepSeek-V4"], [Message("user", "a<｜User｜>b")])
    assert tokens.count(3) == 1 and tokens[0] == 3 and tokens[-2:] == [4, 6]
    with pytest.raises(ValueError, match="got role 'tool', expected one of system, user, assistant"):
        encode_chat(tokenizer, TEMPLATES["DeepSeek-V4"], [Message("tool", "x")])


def test_streams_give_whole_characters(tokenizer: Tokenizer) -> None:
    text = "naïve — 漢字 \U0001f600 end"
    stream, given = TextStream(tokenizer), []
    for token in tokenizer.encode(text):
        given.append(stream.push([token]))
        assert "\ufffd" not in given[-1]
    assert "" in given, "a character of several tokens must be held back"
    assert "".join(given) + stream.finish() == text
    stream = TextStream(tokenizer)
    tokens = tokenizer.encode("x漢")
    assert stream.push(tokens[:-1]) + stream.finish() == tokenizer.decode(tokens[:-1])


ARGUMENTS = ["--device", DEVICE, "--context", "64", "--max-tokens", "4", "--numerics", "exact"]


def test_generate(tokenizer: Tokenizer, tmp_path: Path) -> None:
    runs = {}
    for spec in ("1", "3"):
        dump = tmp_path / f"logits {spec}"  # the very name
        result = CliRunner().invoke(
            main, ["generate", "The quick", *ARGUMENTS, "--spec", spec, "--stats", "--dump-logits", str(dump)]
        )
        assert result.exit_code == 0, result.output
        assert "tokens in" in result.stderr and "tokens/s" in result.stderr
        runs[spec] = (result.stdout, np.load(dump))
    assert runs["1"][0] == runs["3"][0]
    assert np.array_equal(runs["1"][1], runs["3"][1]) and runs["1"][1].shape[1] == 1024
    engine = Engine("tiny_v4", device=DEVICE, numerics="exact", context=64)
    tokens = engine.encode("The quick" + runs["1"][0].removesuffix("\n"))
    assert np.array_equal(engine.session(window=1).logits_of(tokens), runs["3"][1][: len(tokens)])
    result = CliRunner().invoke(main, ["generate", *ARGUMENTS, "--spec", "1"], input="The quick")
    assert result.exit_code == 0 and result.stdout == runs["1"][0]


def test_chat(tokenizer: Tokenizer) -> None:
    result = CliRunner().invoke(main, ["chat", *ARGUMENTS], input="Hi\n/think\n/clear\n\nHi\n/quit\nnever\n")
    assert result.exit_code == 0, result.output
    assert result.stderr.count("> ") == 6 and "thinking on" in result.stderr


def test_chat_says_what_it_is_and_refuses_unknown_commands(tokenizer: Tokenizer) -> None:
    lines = "/clera\n/usr/bin is a folder\n /usr\n/help\n"  # and the end of the input
    result = CliRunner().invoke(main, ["chat", *ARGUMENTS, "--spec", "1"], input=lines)
    assert result.exit_code == 0, result.output
    assert result.stderr.startswith("tiny_v4 (DeepSeek-V4), a context of 64 tokens, thinking off\n")
    for name in ("/clear", "/think", "/help", "/quit"):
        assert result.stderr.count(f"\n  {name} ") == 2
    assert (
        result.stderr.count("expected one of /clear, /think, /help, /quit; start the line with a space") == 2
    )
    assert "got the command '/clera'" in result.stderr and result.stdout.count("\n") >= 1


def test_a_text_that_the_context_cuts_is_told(tokenizer: Tokenizer) -> None:
    short = ["generate", "The quick", "--device", DEVICE, "--numerics", "exact", "--context", "8"]
    cut = CliRunner().invoke(main, [*short, "--max-tokens", "64"])
    assert cut.exit_code == 0 and "the context of 8 tokens is full; --context allows more" in cut.stderr
    whole = CliRunner().invoke(main, [*short, "--max-tokens", "1"])
    assert whole.exit_code == 0 and "was cut" not in whole.stderr
    session = Engine("tiny_v4", device=DEVICE, numerics="exact", context=8).session(window=1)
    assert session.finish_reason is None
    written = session.complete("The quick", max_tokens=64)
    assert written + "\n" == cut.stdout and written.finish_reason == session.finish_reason == "context"
    assert session.room == 0 and session.complete("The quick", max_tokens=1).finish_reason == "max_tokens"
    first = session.tokens[-1]
    session.sync(session.engine.encode("The quick"))
    steps = session.generate(64, eos=first)
    assert next(steps).tokens == [first] and session.finish_reason is None
    assert list(steps) == [] and session.finish_reason == "eos"


def test_chat_goes_on_after_errors_and_interruptions(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line that the context does not hold, and Ctrl-C while a prompt is read; then the beginning is still there."""
    whole, calls = Session.sync, []

    def once(self: Session, tokens: Any, restore_point: bool = True) -> int:
        calls.append(len(tokens))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return whole(self, tokens, restore_point)

    monkeypatch.setattr(Session, "sync", once)
    arguments = [*ARGUMENTS, "--spec", "1", "--chunk", "16", "--stats"]
    result = CliRunner().invoke(
        main, ["chat", *arguments], input=f"Hi\n{'long ' * 60}\ninterrupted\nHi\n/quit\n"
    )
    assert result.exit_code == 0, result.output
    assert "the context holds 64" in result.stderr and "your last line was taken back" in result.stderr
    assert result.stderr.count("interrupted") == 1 and "kept), " in result.stderr, result.stderr


def test_a_prompt_of_any_bytes(tokenizer: Tokenizer) -> None:
    result = CliRunner().invoke(main, ["generate", "a\udcc3", *ARGUMENTS, "--spec", "1", "--max-tokens", "1"])
    assert result.exit_code == 0, result.output
    with pytest.raises(ValueError, match="encode: character 1 is half a surrogate pair"):
        tokenizer.encode("a\udcc3")


def test_qwen_has_no_speculation(tokenizer: Tokenizer, tmp_path: Path) -> None:
    folder = write_checkpoint(
        tmp_path, {**QWEN, "vocab_size": 1024}, qwen_tensors({**QWEN, "vocab_size": 1024})
    )
    (folder / "tokenizer.json").write_bytes((model_path("tiny_v4") / "tokenizer.json").read_bytes())
    result = CliRunner().invoke(main, ["generate", "The", "--model", str(folder), *ARGUMENTS, "--spec", "2"])
    assert result.exit_code == 1 and "this Qwen3-MoE model has no MTP block" in result.stderr
    result = CliRunner().invoke(main, ["generate", "The", "--model", str(folder), *ARGUMENTS, "--stats"])
    assert result.exit_code == 0 and "accepted" not in result.stderr
    result = CliRunner().invoke(main, ["inspect", str(folder), "--device", DEVICE])
    assert result.exit_code == 0 and "Qwen3-MoE: weights take" in result.stdout, result.output


def test_a_dash_is_standard_input(tokenizer: Tokenizer) -> None:
    options = ["generate", *ARGUMENTS, "--spec", "1"]
    dash, none = (CliRunner().invoke(main, [*options, *name], input="The quick") for name in (["-"], []))
    assert dash.exit_code == 0 and dash.stdout == none.stdout


@pytest.mark.parametrize(
    "option",
    [
        "--temperature=-1",
        "--top-k=-1",
        "--top-p=0",
        "--top-p=1.5",
        "--min-p=2",
        "--seed=18446744073709551616",
    ],
)
def test_sampling_is_checked_before_a_model_is_read(option: str) -> None:
    result = CliRunner().invoke(main, ["generate", "a", "--model", "no/such/folder", option])
    assert result.exit_code == 2 and f"Invalid value for '{option.partition('=')[0]}'" in result.stderr


def test_a_model_on_the_emulated_gpu_by_default_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DG_DEVICE", raising=False)
    result = CliRunner().invoke(main, ["generate", "a", "--model", str(tmp_path)])
    assert result.exit_code == 1 and ("no GPU was found" in result.stderr) == _C.Device("").emulated
    result = CliRunner().invoke(main, ["generate", "a", "--model", str(tmp_path), "--device", DEVICE])
    assert result.exit_code == 1 and "no GPU was found" not in result.stderr
