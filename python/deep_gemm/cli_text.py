"""The commands that write text: generate and chat. Text goes to standard output, everything else to standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import wraps
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.progress import Progress

from deep_gemm.models import TextStream
from deep_gemm.models.chat import TEMPLATES, Message, encode_chat
from deep_gemm.runtime import Engine, Session, verify_exact

INTERRUPTED = 130  # exit status of shells for Ctrl-C

OPTIONS = [
    click.option(
        "--model",
        default="tiny_v4",
        show_default=True,
        help="A checkpoint's folder or file, or a shipped model.",
    ),
    click.option(
        "--device",
        default="",
        help="cuda, cuda:1, emulator:sm_90a; default: $DG_DEVICE, else a GPU, else the emulator.",
    ),
    click.option(
        "--numerics",
        type=click.Choice(["released", "exact", "fp8_cache"]),
        default="released",
        show_default=True,
        help="As the model was released to run, fp32 throughout, or fp32 with the released cache.",
    ),
    click.option(
        "--context",
        default=0,
        type=click.IntRange(0),
        help="Tokens of a session; 0: what the model allows, at most 8192.",
    ),
    click.option(
        "--spec",
        type=click.IntRange(1, 8),
        help="Rows of a speculative step; 1: plain decoding; default: 3 where the model has an MTP block.",
    ),
    click.option(
        "--max-tokens",
        default=256,
        show_default=True,
        type=click.IntRange(1),
        help="Tokens to write at most.",
    ),
    click.option("--temperature", default=0.0, show_default=True, help="0: always the most likely token."),
    click.option("--top-k", default=0, show_default=True, help="Only the k most likely tokens; 0: all."),
    click.option("--top-p", default=1.0, show_default=True, help="The fewest tokens with this share."),
    click.option("--min-p", default=0.0, show_default=True, help="Tokens at least this likely as the first."),
    click.option(
        "--seed",
        default=0,
        show_default=True,
        type=click.IntRange(0),
        help="Of what is drawn above temperature 0.",
    ),
    click.option("--strict", is_flag=True, help="Verify drafts one row at a time, as plain decoding would."),
    click.option("--stats", is_flag=True, help="Tokens a step, accepted by position, tokens/s."),
]


@dataclass(frozen=True)
class Request:
    """What both commands are asked for."""

    model: str
    device: str
    numerics: str
    context: int
    spec: int | None
    strict: bool
    max_tokens: int
    stats: bool
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    seed: int

    def session(self, engine: Engine) -> Session:
        session = engine.session(window=self.spec, strict=self.strict)
        session.set_sampling(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            seed=self.seed,
        )
        return session


def text_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds OPTIONS, which the command gets as its first argument."""
    names = [field.name for field in fields(Request)]

    @wraps(command)
    def call(**given: Any) -> Any:
        request = Request(**{name: given.pop(name) for name in names})
        return command(request, **given)

    wrapped: Callable[..., Any] = call
    for option in reversed(OPTIONS):
        wrapped = option(wrapped)
    return wrapped


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
            f"prompt {self.prompt} tokens, {self.prompt / max(self.prefill_seconds, 1e-9):.1f} tokens/s",
            f"{self.tokens} tokens in {self.steps} steps, {self.tokens / max(self.steps, 1):.2f} a step, "
            f"{self.tokens / max(self.seconds, 1e-9):.1f} tokens/s",
        ]
        by_position = [f"{a / r:.2f}" for a, r in zip(self.accepted, self.reached, strict=True) if r]
        if by_position:
            parts.append("accepted by position " + " ".join(by_position))
        return "; ".join(parts)


def load(request: Request) -> Engine:
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("loading weights", total=None)
        return Engine(
            request.model,
            device=request.device or None,
            numerics=request.numerics,
            context=request.context,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )


def prefill(session: Session, tokens: list[int]) -> float:
    """Feeds the tokens in chunks, with a progress bar; seconds."""
    start, chunk = time.perf_counter(), session.engine.max_rows
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("reading the prompt", total=len(tokens))
        for end in [*range(chunk, len(tokens), chunk), len(tokens)]:
            session.sync(tokens[:end])
            progress.update(task, completed=end)
    return time.perf_counter() - start


def utf8(stream: Any) -> Any:
    """Text is UTF-8, whatever the locale says."""
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(encoding="utf-8", errors="replace")
    return stream


@dataclass
class Written:
    tokens: list[int] = field(default_factory=list)
    interrupted: bool = False


@contextmanager
def interruptible(written: Written) -> Iterator[None]:
    """Ctrl-C ends the text, not the program: the session stays usable, between two steps."""
    try:
        yield
    except KeyboardInterrupt:
        written.interrupted = True
        click.echo("\ninterrupted", err=True)


def write(session: Session, tokens: list[int], request: Request, eos: int | None = None) -> Written:
    """Continues `tokens`, printing as it goes."""
    written = Written()
    told = Stats(len(tokens), prefill(session, tokens))
    stream = TextStream(session.engine.tokenizer)
    out = utf8(sys.stdout)
    with interruptible(written):
        start = time.perf_counter()
        for step in session.generate(request.max_tokens, eos):
            told.add(step, time.perf_counter() - start)
            out.write(stream.push(step.tokens))
            out.flush()
            start = time.perf_counter()
    written.tokens = session.tokens[len(tokens) :]  # with those of an interrupted step
    out.write(stream.push(written.tokens[told.tokens :]) + stream.finish() + "\n")
    out.flush()
    if request.stats:
        click.echo(str(told), err=True)
    return written


def check_exact(engine: Engine, tokens: list[int], max_tokens: int, spec: int | None) -> None:
    difference = verify_exact(engine, tokens, max_tokens, window=spec)
    if difference is not None:
        raise click.ClickException(f"--verify-exact: {difference}")
    click.echo("verified: after every step, tokens and all state equal those of plain decoding", err=True)


@click.command()
@click.argument("prompt", required=False)
@click.option("--ignore-eos", is_flag=True, help="Go on after the end of the text.")
@click.option(
    "--dump-logits", type=click.Path(path_type=Path), help="fp32 [tokens, vocab] of all tokens as .npy."
)
@click.option(
    "--verify-exact", "verify", is_flag=True, help="Compare every step's state with plain decoding first."
)
@text_options
def generate(
    request: Request, prompt: str | None, ignore_eos: bool, dump_logits: Path | None, verify: bool
) -> None:
    """Continues PROMPT, or what standard input holds."""
    text = prompt if prompt is not None else utf8(sys.stdin).read()
    if dump_logits is not None and not dump_logits.parent.is_dir():
        raise click.ClickException(
            f"generate: --dump-logits {dump_logits} is in no folder that exists; make {dump_logits.parent} first"
        )
    if verify and request.temperature > 0:
        raise click.ClickException(
            "generate: --verify-exact compares greedy decoding; got a temperature above 0"
        )
    engine = load(request)
    tokens = engine.encode(text)
    if not tokens:
        raise click.ClickException("generate: got an empty prompt, expected text")
    session = request.session(engine)
    if verify:
        check_exact(engine, tokens, request.max_tokens, request.spec)
    written = write(session, tokens, request, -1 if ignore_eos else None)
    if dump_logits is not None:  # the same bits as while decoding: rows do not depend on their neighbours
        np.save(dump_logits, engine.session(window=1).logits_of(tokens + written.tokens))
    if written.interrupted:
        sys.exit(INTERRUPTED)


@click.command()
@click.option("--system", default="", help="What the model is told before the conversation.")
@click.option("--think", is_flag=True, help="Let the model think before it answers.")
@text_options
def chat(request: Request, system: str, think: bool) -> None:
    """Talks with the model, a line a turn. /clear starts anew, /think switches thinking, /quit ends."""
    engine = load(request)
    session, source = request.session(engine), utf8(sys.stdin)
    beginning = [Message("system", system)] if system else []
    messages = list(beginning)
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
        elif words:
            messages.append(Message("user", words))
            begin = [] if engine.bos is None else [engine.bos]
            template = TEMPLATES[engine.architecture]
            tokens = begin + encode_chat(engine.tokenizer, template, messages, thinking=think)
            produced = write(session, tokens, request).tokens
            answer = engine.tokenizer.decode(produced).rpartition("</think>")[2].strip()
            messages.append(Message("assistant", answer))
