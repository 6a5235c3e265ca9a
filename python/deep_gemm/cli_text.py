"""The commands that write text: generate and chat. Text goes to standard output, everything else to standard error."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress

from deep_gemm import _C
from deep_gemm.cli_request import Request, text_options
from deep_gemm.models import SHIPPED, TextStream
from deep_gemm.models.chat import TEMPLATES, Message, encode_chat
from deep_gemm.paths import require_folder
from deep_gemm.runtime import Engine, Session, verify_exact

INTERRUPTED = 130  # exit status of shells for Ctrl-C


@dataclass
class Stats:
    """Of the steps of one answer."""

    prompt: int
    prefill_seconds: float
    tokens: int = 0
    seconds: float = 0.0
    steps: int = 0
    reached: list[int] = field(default_factory=lambda: [0] * 8)  # steps that drafted so many
    accepted: list[int] = field(default_factory=lambda: [0] * 8)
    kept: int = 0  # of the prompt, from what came before

    def add(self, step: Any, seconds: float) -> None:
        self.steps, self.tokens, self.seconds = (
            self.steps + 1,
            self.tokens + len(step.tokens),
            self.seconds + seconds,
        )
        for i in range(step.drafted):
            self.reached[i] += 1
            self.accepted[i] += step.accepted > i

    def __str__(self) -> str:
        parts = [
            f"prompt {self.prompt} tokens" + (f" ({self.kept} kept)" if self.kept else "") + ", "
            f"{(self.prompt - self.kept) / max(self.prefill_seconds, 1e-9):.1f} tokens/s",
            f"{self.tokens} tokens in {self.steps} steps, {self.tokens / max(self.steps, 1):.2f} a step, "
            f"{self.tokens / max(self.seconds, 1e-9):.1f} tokens/s",
        ]
        by_position = [f"{a / r:.2f}" for a, r in zip(self.accepted, self.reached, strict=True) if r]
        if by_position:
            parts.append("accepted by position " + " ".join(by_position))
        return "; ".join(parts)


def load(request: Request) -> Engine:
    device = _C.Device(request.device)
    fallen_back = device.emulated and not request.device and not os.environ.get("DG_DEVICE")
    if fallen_back and request.model not in SHIPPED:
        click.echo(
            "no GPU was found (DG_LOG_LEVEL=info says why): on the emulated one, which has the time for tiny models",
            err=True,
        )
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("loading weights", total=None)
        return Engine(
            request.model,
            device=device,
            numerics=request.numerics,
            context=request.context,
            max_rows=max(request.chunk, 8) if request.chunk else 64 if device.emulated else 1024,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )


def prefill(session: Session, tokens: list[int], told: Stats) -> None:
    """Feeds what the session does not hold already, chunk by chunk, with a progress bar."""
    start, chunk = time.perf_counter(), session.engine.max_rows
    same = next((i for i, (a, b) in enumerate(zip(session.tokens, tokens, strict=False)) if a != b), None)
    first = min(len(session.tokens), len(tokens)) if same is None else same
    told.kept = -1
    if len(tokens) > session.engine.context:
        session.sync(tokens)  # says so before a part of them is read
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("reading the prompt", total=len(tokens))
        for end in [*range(first + chunk, len(tokens), chunk), len(tokens)]:
            kept = session.sync(tokens[:end], restore_point=end == len(tokens))
            told.kept = kept if told.kept < 0 else told.kept
            progress.update(task, completed=end)
    told.prefill_seconds = time.perf_counter() - start


def utf8(stream: Any) -> Any:
    """Text is UTF-8, whatever the locale says."""
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(encoding="utf-8", errors="replace")
    return stream


@dataclass
class Written:
    tokens: list[int] = field(default_factory=list)
    interrupted: bool = False
    logits: list[NDArray[np.float32]] = field(
        default_factory=list
    )  # as decoding left them, where they are kept


@contextmanager
def interruptible(written: Written) -> Iterator[None]:
    """Ctrl-C ends the text, not the program: the session stays usable, between two steps."""
    try:
        yield
    except KeyboardInterrupt:
        written.interrupted = True
        click.echo("\ninterrupted", err=True)


def write(
    session: Session, tokens: list[int], request: Request, eos: int | None = None, keep_logits: bool = False
) -> Written:
    """Continues `tokens`, printing as it goes."""
    written, told = Written(), Stats(len(tokens), 0.0)
    stream = TextStream(session.engine.tokenizer)
    out = utf8(sys.stdout)
    with interruptible(written):
        start = time.perf_counter()
        if keep_logits:
            written.logits.append(session.logits_of(tokens))
            told.prefill_seconds = time.perf_counter() - start
        else:
            prefill(session, tokens, told)
        start = time.perf_counter()
        for step in session.generate(request.max_tokens, eos):
            told.add(step, time.perf_counter() - start)
            if keep_logits:
                written.logits.append(session.last_logits())
            out.write(stream.push(step.tokens))
            out.flush()
            start = time.perf_counter()
    if session.tokens[: len(tokens)] == tokens:  # else interrupted while the prompt was read
        written.tokens = session.tokens[len(tokens) :]  # with those of an interrupted step
        if keep_logits and sum(map(len, written.logits)) < len(session.tokens):
            written.logits.append(session.last_logits())
    out.write(stream.push(written.tokens[stream.taken :]) + stream.finish() + "\n")
    out.flush()
    if not written.interrupted and session.finish_reason == "context":
        click.echo(
            f"the text was cut: the context of {session.engine.context} tokens is full; --context allows more, "
            "up to what the model does",
            err=True,
        )
    if request.stats:
        click.echo(str(told), err=True)
    return written


def check_exact(engine: Engine, tokens: list[int], request: Request, eos: int | None) -> None:
    click.echo(f"verifying up to {request.max_tokens} tokens: plainly and as asked, then the text", err=True)
    difference = verify_exact(
        engine,
        tokens,
        request.max_tokens,
        window=request.spec,
        adaptive=request.adaptive,
        strict=request.strict,
        eos=eos,
    )
    if difference is not None:
        raise click.ClickException(f"--verify-exact: {difference}")
    click.echo(
        "verified: after every step, tokens, logits and all state equal those of plain decoding", err=True
    )


@click.command()
@click.argument("prompt", required=False)
@click.option("--ignore-eos", is_flag=True, help="Go on after the end of the text.")
@click.option(
    "--dump-logits",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A file for what followed each token, prompt and text: fp32 [tokens, vocab], in NumPy's format.",
)
@click.option(
    "--verify-exact", "verify", is_flag=True, help="Compare every step's state with plain decoding first."
)
@text_options
def generate(
    request: Request, prompt: str | None, ignore_eos: bool, dump_logits: Path | None, verify: bool
) -> None:
    """Continues PROMPT, or what standard input holds (also where PROMPT is -)."""
    text = prompt if prompt not in (None, "-") else utf8(sys.stdin).read()
    text = text.encode(errors="surrogateescape").decode(errors="replace")  # arguments may be any bytes
    if dump_logits is not None:
        require_folder("generate: --dump-logits", dump_logits)
    if verify and request.temperature > 0:
        raise click.ClickException(
            "generate: --verify-exact compares greedy decoding; got a temperature above 0"
        )
    if not text:
        raise click.ClickException(
            "generate: got an empty prompt, expected text: an argument, or standard input"
        )
    engine = load(request)
    tokens = engine.encode(text)
    session = request.session(engine)
    eos = -1 if ignore_eos else None
    if verify:
        check_exact(engine, tokens, request, eos)
    written = write(session, tokens, request, eos, keep_logits=dump_logits is not None)
    if dump_logits is not None and written.logits:
        with dump_logits.open("wb") as file:
            np.save(file, np.concatenate(written.logits))
    if written.interrupted:
        sys.exit(INTERRUPTED)


COMMANDS = {
    "/clear": "starts anew",
    "/think": "switches thinking",
    "/help": "shows this list",
    "/quit": "ends, as Ctrl-D does",
}


def banner(engine: Engine, thinking: bool) -> str:
    """What talks, how long it can, and what is not said to it."""
    commands = "\n".join(f"  {name:8}{meaning}" for name, meaning in COMMANDS.items())
    return (
        f"{engine.path.name} ({engine.architecture}), a context of {engine.context} tokens, "
        f"thinking {'on' if thinking else 'off'}\n"
        f"A line is a turn; Ctrl-C stops an answer. A line that starts with / is a command:\n{commands}"
    )


@click.command()
@click.option("--system", default="", help="What the model is told before the conversation.")
@click.option("--think", is_flag=True, help="Let the model think before it answers.")
@text_options
def chat(request: Request, system: str, think: bool) -> None:
    """Talks with the model, a line a turn; /help shows the commands, /quit or Ctrl-D ends."""
    engine = load(request)
    session, source = request.session(engine), utf8(sys.stdin)
    beginning = [Message("system", system)] if system else []
    messages = list(beginning)
    click.echo(banner(engine, think), err=True)
    while True:
        click.echo("> ", nl=False, err=True)
        line = source.readline()
        words = line.strip()
        if not line or words == "/quit":
            return
        if words == "/clear":
            messages = list(beginning)
        elif words == "/think":
            think = not think
            click.echo(f"thinking {'on' if think else 'off'}", err=True)
        elif words == "/help":
            click.echo(banner(engine, think), err=True)
        elif line.startswith("/"):
            click.echo(
                f"Error: got the command '{words}', expected one of {', '.join(COMMANDS)}; "
                "start the line with a space to say it to the model",
                err=True,
            )
        elif words:
            messages.append(Message("user", words))
            begin = [] if engine.bos is None else [engine.bos]
            template = TEMPLATES[engine.architecture]
            tokens = begin + encode_chat(engine.tokenizer, template, messages, thinking=think)
            try:
                written = write(session, tokens, request)
            except (_C.Error, ValueError) as error:  # a context that is full, for instance
                click.echo(f"Error: {error}\nyour last line was taken back; /clear starts anew", err=True)
                messages.pop()
                continue
            if written.interrupted and not written.tokens:
                messages.pop()
                continue
            answer = engine.tokenizer.decode(written.tokens).rpartition("</think>")[2].strip()
            messages.append(Message("assistant", answer))
