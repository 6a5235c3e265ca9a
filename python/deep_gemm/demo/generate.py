"""The demo's second half: a trained model writes text, plainly and speculatively, and both must be the same."""

from __future__ import annotations

import time
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from deep_gemm import _C
from deep_gemm.runtime import Engine

PROMPT = "The quick test of a language model is"


@dataclass(frozen=True)
class Written:
    """One way of decoding and what it produced."""

    label: str
    tokens: list[int]
    steps: int
    seconds: float  # of the steps after the first, which also compiles
    timed_tokens: int
    digest: str


def write(engine: Engine, prompt: list[int], window: int, count: int, progress: Progress) -> Written:
    """`count` tokens after `prompt` with `window` rows a step."""
    label = "plain" if window == 1 else f"speculative, {window} rows"
    task = progress.add_task(label, total=count)
    session = engine.session(window=window)
    session.sync(prompt)
    tokens: list[int] = []
    seconds, timed = 0.0, 0
    start = time.perf_counter()
    for step in session.generate(count, eos=-1):
        now = time.perf_counter()
        if tokens:
            seconds, timed = seconds + now - start, timed + len(step.tokens)
        tokens += step.tokens
        progress.update(task, completed=len(tokens))
        start = time.perf_counter()
    return Written(label, tokens, session.stats["steps"], seconds, timed, session.state_digest())


def run(device: _C.Device, console: Console, *, prompt: str, count: int, model: str) -> bool:
    """Runs and prints everything; True when the speculative text and state equal the plain ones."""
    with Progress(console=console, transient=True) as progress:
        loading = progress.add_task("loading weights", total=None)
        engine = Engine(
            model,
            device=device,
            context=1024 if device.emulated else 0,
            progress=lambda done, total: progress.update(loading, completed=done, total=total),
        )
        ids = engine.encode(prompt)
        results = [write(engine, ids, window, count, progress) for window in (1, 3)]
    text = engine.tokenizer.decode(results[0].tokens)
    console.print(
        f"\n[bold]model[/]   {model}: {engine.weight_bytes / 1e6:.1f} MB of weights, {engine.architecture} layers"
    )
    console.print(f"[bold]prompt[/]  {prompt!r}, {len(ids)} tokens", highlight=False)
    console.print(f"[bold]text[/]    {text!r}\n", highlight=False, markup=True)
    table = Table("decoding", "tokens", "steps", "tokens a step", "tokens/s", "text", "state", box=box.ASCII)
    for result in results:
        rate = f"{result.timed_tokens / result.seconds:.1f}" if result.seconds else ""
        table.add_row(
            result.label,
            str(len(result.tokens)),
            str(result.steps),
            f"{len(result.tokens) / result.steps:.2f}",
            rate,
            "same" if result.tokens == results[0].tokens else "DIFFERENT",
            "same" if result.digest == results[0].digest else "DIFFERENT",
        )
    console.print(table)
    same = all(r.tokens == results[0].tokens and r.digest == results[0].digest for r in results)
    console.print(
        f"[bold]{'PASSED' if same else 'FAILED'}[/]: speculative decoding, "
        f"{'equal to' if same else 'not equal to'} plain decoding in every token and every bit of state",
        highlight=False,
    )
    return same
