"""Trains a small DeepSeek-V4 on text, writes it as a checkpoint in the released formats, measures it with the runtime.

    python tools/train_tiny_v4.py --text FOLDER_OR_FILE --out tiny

The default shape is the shipped model's config.json, the default time meant for one H200 and ten minutes in all;
tools/tiny_v4_corpus.py fetches the text that the shipped model learned from. Needs torch beside the requirements.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path

import click
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from tokenizers import Tokenizer

from deep_gemm.models import model_path
from tiny_v4 import export, fuse, text
from tiny_v4.evaluate import evaluate
from tiny_v4.model import Model
from tiny_v4.shape import read_shape
from tiny_v4.train import Plan, balance_table, train

SHIPPED = model_path("tiny_v4")
LOSSES = ("loss", "draft 1", "draft 2", "draft 3", "index")


@click.command(help=(__doc__ or "").split("\n")[0])
@click.option("--text", "paths", required=True, multiple=True, type=click.Path(exists=True, path_type=Path),
              help="A file, or a folder of .txt, .md, .rst and .py files; may be given several times.")  # fmt: skip
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The checkpoint's folder.")
@click.option(
    "--seconds", default=460.0, show_default=True, help="Of training; the rest takes about a minute."
)
@click.option("--steps", default=1_000_000, show_default=True, help="At most.")
@click.option("--batch", default=32, show_default=True)
@click.option("--rate", default=3e-3, show_default=True)
@click.option("--config", default=SHIPPED / "config.json", type=click.Path(exists=True, path_type=Path))
@click.option("--tokenizer", type=click.Path(exists=True, path_type=Path), help="Else one is trained.")
@click.option(
    "--compile/--no-compile", "compiles", default=True, show_default=True, help="torch.compile, 45 s."
)
@click.option("--seed", default=0, show_default=True)
@click.option("--windows", default=64, show_default=True, help="Of 1024 held-out tokens that are measured.")
@click.option("--prompts", default=16, show_default=True, help="Held-out prompts that are continued.")
def main(
    paths: tuple[Path, ...],
    out: Path,
    seconds: float,
    steps: int,
    batch: int,
    rate: float,
    config: Path,
    tokenizer: Path | None,
    compiles: bool,
    seed: int,
    windows: int,
    prompts: int,
) -> None:
    console, began = Console(stderr=True), time.monotonic()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(seed)
    torch.backends.cuda.matmul.allow_tf32 = True
    shape = read_shape(config)
    training, held = text.split(text.documents(list(paths)))
    if not training or not held:
        raise click.UsageError(
            f"{len(training)} documents to train on and {len(held)} held out; expected both: about a hundred "
            "documents of 400 characters or more"
        )
    out.mkdir(parents=True, exist_ok=True)
    if tokenizer is None:
        text.train_tokenizer(training, SHIPPED / "tokenizer.json", shape.vocab).save(
            str(out / "tokenizer.json")
        )
    else:
        shutil.copyfile(tokenizer, out / "tokenizer.json")
    codec = Tokenizer.from_file(str(out / "tokenizer.json"))
    ids = text.encode(codec, training)
    held_ids, held_bytes = text.encode(codec, held), sum(len(d.encode()) for d in held)
    console.print(
        f"{len(training)} documents, {len(ids)} tokens; {len(held)} held out, {len(held_ids)} tokens"
    )
    tokens = torch.from_numpy(ids).to(device)
    model = Model(shape)
    balance_table(model, torch.bincount(tokens, minlength=shape.vocab).cpu())
    model.to_device(device)
    if compiles and device == "cuda":
        fuse.enable()
    with Progress(TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=console) as bar:
        task = bar.add_task("training", total=1.0)

        def show(step: int, progress: float, losses: list[float]) -> None:
            words = ", ".join(f"{n} {v:.3f}" for n, v in zip(LOSSES, losses, strict=True))
            bar.update(task, completed=progress, description=f"step {step}: {words}")
            if step in (1, 5) or step % 100 == 0 or not sys.stderr.isatty():
                console.print(f"{time.monotonic() - began:6.1f} s  step {step}: {words}", highlight=False)

        done = train(model, tokens, Plan(seconds=seconds, steps=steps, batch=batch, rate=rate), show)
    size = export.write(out, model)
    console.print(f"{done} steps, {done * batch * 1024} tokens; {size / 1e6:.1f} MB in {out}")
    del model, tokens
    if device == "cuda":
        torch.cuda.empty_cache()
    report = {"steps": done, "seconds": round(time.monotonic() - began, 1), "bytes": size}
    report |= evaluate(out, held_ids, held_bytes, windows, prompts)
    (out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    click.echo(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
