"""Speculative against plain decoding of many texts: `python -m deep_gemm bench speculation`. Needs no PyTorch.

The texts are 100 excerpts of the documents that the shipped model was not trained on (bench/heldout.json.xz; their
sources and licences are in its model card). Three tables:

exact      each text, cut where windows of 4, 128 and of the cache close or just past it, is continued plainly without
           graphs, with a digest of the whole state (caches, frontiers, streams, logits) after every token. Then with
           windows of 1 to 4 rows and graphs, in one session that goes from text to text: after every step its tokens
           and digest have to be those.
forced     drafts are set so that exactly c of them are right, at every position modulo 128 for every c.
generated  tokens a step of greedy text: 64 texts of 128 tokens, 192 new ones each.
"""

from __future__ import annotations

import csv
import json
import lzma
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import click

from deep_gemm.cli_text import Stats
from deep_gemm.runtime import Engine, Session, verify_exact

HELDOUT = Path(__file__).with_name("heldout.json.xz")
# Prompt lengths: HCA closes a window every 128 tokens, CSA every 4, a page holds 256, the ring begins to slide at 128.
LENGTHS = (1, 61, 100, 124, 125, 126, 127, 128, 129, 190, 230, 252, 253, 254, 255, 256, 257)
LONG = (511, 1020, 2045, 4029)  # every twenty-fifth text is so long
PHASES = 128


@cache
def texts() -> list[str]:
    entries = json.loads(lzma.decompress(HELDOUT.read_bytes()))
    return [str(entry["text"]) for entry in entries]


def tokens_of(engine: Engine, index: int, count: int) -> list[int]:
    """The first tokens of a text, and of those that follow it where it is too short."""
    found = engine.encode(texts()[index])
    while len(found) < count:
        index = (index + 1) % len(texts())
        found += engine.tokenizer.encode(texts()[index])
    return found[:count]


def length_of(index: int) -> int:
    return LONG[index // 25 % len(LONG)] if index % 25 == 24 else LENGTHS[index % len(LENGTHS)]


@dataclass(frozen=True)
class Plain:
    """Plain decoding after a prompt: its tokens, and the state's digest before and after each."""

    tokens: list[int]
    digests: list[str]


def decode_plainly(session: Session, prompt: list[int], count: int) -> Plain:
    session.sync(prompt)
    tokens, digests = list[int](), [session.state_digest()]
    for _ in range(count):
        tokens += session.step(1).tokens
        digests.append(session.state_digest())
    return Plain(tokens, digests)


def agrees(session: Session, prompt: int, plain: Plain) -> bool:
    at = len(session.tokens) - prompt
    return session.tokens[prompt:] == plain.tokens[:at] and session.state_digest() == plain.digests[at]


@dataclass
class Line:
    """A row of the printed table and of speculation.csv."""

    table: str
    window: int
    prompts: int
    stats: Stats
    mismatches: int
    graphs: int
    seconds: float

    TITLES = (
        "table",
        "rows",
        "prompts",
        "tokens",
        "steps",
        "a step",
        "accepted by position",
        "replayed",
        "mismatches",
        "s",
    )

    def values(self) -> tuple[str, ...]:
        s = self.stats
        shares = " ".join(f"{a / r:.3f}" for a, r in zip(s.accepted, s.reached, strict=True) if r)
        numbers = (self.table, self.window, self.prompts, s.tokens, s.steps, f"{s.tokens / s.steps:.3f}")
        return tuple(map(str, (*numbers, shares, self.graphs, self.mismatches, f"{self.seconds:.1f}")))


def follow(session: Session, prompt: list[int], plain: Plain, stats: Stats) -> bool:
    """Whether every step of the session ends where plain decoding is."""
    session.sync(prompt)
    ok = agrees(session, len(prompt), plain)
    for step in session.generate(len(plain.tokens), eos=-1):
        stats.add(step, 0.0)
        ok = ok and agrees(session, len(prompt), plain)
    return ok


def exact(engine: Engine, prompts: int, count: int, windows: tuple[int, ...]) -> Iterator[Line]:
    reference = engine.session(window=1, graphs=False)
    start = time.perf_counter()
    starts = [tokens_of(engine, i, min(length_of(i), engine.context - count)) for i in range(prompts)]
    plain = [decode_plainly(reference, prompt, count) for prompt in starts]
    click.echo(f"{prompts} texts continued plainly by {count} tokens, {time.perf_counter() - start:.1f} s")
    for window in windows:
        start = time.perf_counter()
        session, stats, wrong = engine.session(window=window), Stats(0, 0), 0
        for prompt, wanted in zip(starts, plain, strict=True):
            if not follow(session, prompt, wanted, stats):
                wrong += 1
                difference = verify_exact(engine, prompt, count, window=window, eos=-1)
                click.echo(
                    f"window {window}, {len(prompt)} tokens: {difference or 'no difference in a new session'}"
                )
        seconds = time.perf_counter() - start
        yield Line("exact", window, prompts, stats, wrong, session.stats["graph_replays"], seconds)


def forced(engine: Engine, windows: tuple[int, ...], phases: int) -> Iterator[Line]:
    """Every number of accepted drafts at every position modulo `phases`."""
    prompt = tokens_of(engine, 0, 3)
    text = decode_plainly(engine.session(window=1, graphs=False), prompt, phases + 2 * max(windows))
    for window in windows:
        start = time.perf_counter()
        session, stats, wrong, visited = engine.session(window=window), Stats(0, 0), 0, set[tuple[int, int]]()
        for accepted in range(window):
            for offset in range(accepted + 1):
                session.sync(prompt + text.tokens[:offset])
                while (at := len(session.tokens) - len(prompt)) < phases + offset:
                    visited.add((accepted, len(session.tokens) % phases))
                    right = text.tokens[at + 1 : at + window]
                    drafts = [t if i < accepted else (t + 1) % engine.vocab for i, t in enumerate(right)]
                    session.force_drafts(drafts)
                    step = session.step()
                    stats.add(step, 0.0)
                    wrong += step.accepted != accepted or not agrees(session, len(prompt), text)
        if len(visited) != window * phases:
            raise click.ClickException(f"forced: visited {len(visited)} of {window * phases} pairs")
        yield Line("forced", window, 1, stats, wrong, 0, time.perf_counter() - start)


def generated(engine: Engine, prompts: int, count: int, windows: tuple[int, ...]) -> Iterator[Line]:
    starts = [tokens_of(engine, i, PHASES) for i in range(prompts)]
    first = list[list[int]]()
    for window in windows:
        start = time.perf_counter()
        session, stats, wrong = engine.session(window=window), Stats(0, 0), 0
        for i, prompt in enumerate(starts):
            session.sync(prompt)
            for step in session.generate(count, eos=-1):
                stats.add(step, 0.0)
            if len(first) <= i:
                first.append(session.tokens)
            wrong += session.tokens != first[i]
        seconds = time.perf_counter() - start
        yield Line("generated", window, prompts, stats, wrong, session.stats["graph_replays"], seconds)


def table(lines: list[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(v.rjust(w) for v, w in zip(line, widths, strict=True)) for line in lines)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--model", default="tiny_v4", show_default=True, help="A model with an MTP block.")
@click.option("--device", default="", help="cuda, emulator:sm_90a; default as everywhere.")
@click.option(
    "--numerics", default="released", show_default=True, type=click.Choice(["released", "exact", "fp8_cache"])
)
@click.option("--prompts", default=100, show_default=True, type=click.IntRange(1, 100))
@click.option("--tokens", default=64, show_default=True, type=click.IntRange(1), help="New tokens of a text.")
@click.option("--phases", default=PHASES, show_default=True, type=click.IntRange(1), help="Of forced drafts.")
@click.option(
    "--generate", default=64, show_default=True, type=click.IntRange(0, 100), help="Texts of the third table."
)
@click.option(
    "--out", default="bench/out", show_default=True, type=click.Path(file_okay=False, path_type=Path)
)
def main(
    model: str, device: str, numerics: str, prompts: int, tokens: int, phases: int, generate: int, out: Path
) -> None:
    """Compares speculative with plain decoding, states included; fails where a bit differs. Writes speculation.csv."""
    engine = Engine(model, device=device or None, numerics=numerics, max_rows=256)
    lines = list[Line]()
    for line in exact(engine, prompts, tokens, (1, 2, 3, 4)):
        lines.append(line)
    lines += forced(engine, (2, 3, 4), phases)
    if generate:
        lines += generated(engine, generate, 192, (1, 2, 3, 4))
    cells = [Line.TITLES, *(line.values() for line in lines)]
    out.mkdir(parents=True, exist_ok=True)
    with (out / "speculation.csv").open("w", newline="") as file:
        csv.writer(file).writerows(cells)
    click.echo(table(cells))
    wrong = sum(line.mismatches for line in lines)
    if wrong:
        raise click.ClickException(f"{wrong} mismatches")


if __name__ == "__main__":
    main()
