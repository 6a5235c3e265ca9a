"""What generate and chat are asked for: the options of both, checked before a model is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from typing import Any

import click

from deep_gemm.runtime import Engine, Session
from deep_gemm.runtime.arguments import LARGEST_ID

__all__ = ["Request", "text_options"]

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
    click.option(
        "--temperature",
        default=0.0,
        show_default=True,
        type=click.FloatRange(0),
        help="0: always the most likely token.",
    ),
    click.option(
        "--top-k",
        default=0,
        show_default=True,
        type=click.IntRange(0, LARGEST_ID),
        help="Only the k most likely tokens; 0: all.",
    ),
    click.option(
        "--top-p",
        default=1.0,
        show_default=True,
        type=click.FloatRange(0, 1, min_open=True),
        help="The fewest tokens with this share.",
    ),
    click.option(
        "--min-p",
        default=0.0,
        show_default=True,
        type=click.FloatRange(0, 1),
        help="Tokens at least this likely as the first.",
    ),
    click.option(
        "--seed",
        default=0,
        show_default=True,
        type=click.IntRange(0, (1 << 64) - 1),
        help="Of what is drawn above temperature 0.",
    ),
    click.option(
        "--chunk",
        default=0,
        type=click.IntRange(0, 8192),
        help="Tokens of a prompt that go through the model at once; 0: 1024, or 64 on the emulated GPU.",
    ),
    click.option("--adaptive", is_flag=True, help="Draft one token while second drafts are rarely accepted."),
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
    chunk: int
    adaptive: bool
    strict: bool
    max_tokens: int
    stats: bool
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    seed: int

    def __post_init__(self) -> None:
        for name in ("adaptive", "strict"):
            if self.spec == 1 and getattr(self, name):
                raise click.ClickException(
                    f"got --{name} with --spec 1, expected it with a window of 2 rows or more: plain decoding has no "
                    "drafts; leave one of them out"
                )

    def session(self, engine: Engine) -> Session:
        session = engine.session(window=self.spec, adaptive=self.adaptive, strict=self.strict)
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
