"""Whole models with random weights: `python -m deep_gemm bench model`. Needs no checkpoint and no PyTorch.

A few layers are measured and the time is scaled to all of them: (pass - head) / layers measured * layers of the model
+ head. What a speculative step takes beside its verify pass (the MTP block, its logits) is not scaled. Bytes are those
of the weights that a pass has to read (of the experts as many as its rows are expected to choose, evenly) and of the
cache rows; the roofline is the rate at which an H200 copies.
"""

from __future__ import annotations

import csv
import json
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import click

from bench.model_configs import CONFIGS, with_layers
from bench.model_plot import write_plot
from deep_gemm import _C

ROOFLINE_BYTES_PER_US = 4.3e6
LATENT_ROW_BYTES, INDEX_ROW_BYTES = 584, 68
LAYER = re.compile(r"(?:model\.)?layers\.(\d+)\.")
EXPERT = re.compile(r"\.experts\.\d+\.")


@dataclass(frozen=True)
class Pass:
    """A row of the table; times are those of one pass, `model_us` of one over all layers.

    kind "speculate": a step of `rows` rows of which each draft is accepted with probability `accept` where those before
    it were; times are means over the numbers of accepted drafts.
    """

    config: str
    layers: int
    context: int
    kind: str
    rows: int
    launches: int
    us: float
    head_us: float
    layer_us: float
    model_us: float
    tokens_per_s: float
    model_mb: float
    percent_of_roofline: float
    accept: float = 0.0
    tokens_a_step: float = 0.0


def shares_of_accepted(rows: int, accept: float) -> list[float]:
    """Of steps with 0, 1, .. rows - 1 accepted drafts."""
    return [accept**c * (1 - accept) for c in range(rows - 1)] + [accept ** (rows - 1)]


def layer_bytes(
    tensors: Iterable[tuple[str, int]], config: dict[str, Any], rows: int, sequences: int, context: int
) -> float:
    """Mean over the measured layers. Rows of one sequence read its cache once: what they share stays in L2."""
    experts = int(config.get("n_routed_experts") or config["num_experts"])
    chosen = experts * (1 - (1 - int(config["num_experts_per_tok"]) / experts) ** rows)
    total = 0.0
    for name, size in tensors:
        if LAYER.match(name) is None or name.endswith("tid2eid"):
            continue
        total += size * chosen / experts if EXPERT.search(name) else size
    layers = int(config["num_hidden_layers"])
    return total / layers + sequences * cache_bytes(config, context) / layers


def cache_bytes(config: dict[str, Any], context: int) -> float:
    """What one row, or the rows of one sequence, read of the caches of all measured layers."""
    if config["model_type"] != "deepseek_v4":
        width = int(config["num_key_value_heads"]) * int(config["head_dim"]) * 2 * 2
        return float(config["num_hidden_layers"] * context * width)
    total = 0.0
    for ratio in config["compress_ratios"][: config["num_hidden_layers"]]:
        total += LATENT_ROW_BYTES * min(context, int(config["sliding_window"]))
        if ratio == 4:
            total += LATENT_ROW_BYTES * min(context // 4, int(config["index_topk"]))
            total += context // 4 * INDEX_ROW_BYTES
        elif ratio:
            total += LATENT_ROW_BYTES * (context // ratio)
    return total


def mtp_bytes(tensors: Iterable[tuple[str, int]], config: dict[str, Any]) -> float:
    """What one row reads of the MTP block."""
    chosen = int(config["num_experts_per_tok"]) / int(config["n_routed_experts"])
    return sum(
        size * (chosen if EXPERT.search(name) else 1) for name, size in tensors if name.startswith("mtp.")
    )


def head_bytes(tensors: Iterable[tuple[str, int]]) -> int:
    return sum(size for name, size in tensors if name in ("head.weight", "lm_head.weight"))


class Measured:
    """One model; its passes are measured one by one."""

    def __init__(
        self, name: str, layers: int, context: int, batches: tuple[int, ...], chunk: int, device: str
    ) -> None:
        self.name, self.layers, self.context = name, layers, context
        self.config = with_layers(name, layers)
        self.all_layers = int(CONFIGS[name]["num_hidden_layers"])
        sequences = max(batches, default=1)
        self.speed = _C.ModelSpeed(
            json.dumps(self.config),
            device=device or None,
            context=context,
            sequences=sequences,
            max_rows=max(64, sequences, chunk),
        )

    def measure(self, kind: str, rows: int, repeats: int) -> Pass:
        speed = self.speed
        us = speed.pass_us(kind, rows, repeats)
        if kind == "draft":
            return self.row(kind, rows, us, us, 0.0, 0.0)
        head_rows = 1 if kind == "prefill" else rows
        head_us = speed.pass_us("head", head_rows, repeats)
        layer_us = max(us - head_us, 0.0) / self.layers
        sequences = rows if kind == "decode" else 1
        bytes_read = layer_bytes(
            speed.tensors, self.config, rows, sequences, self.context
        ) * self.all_layers + head_bytes(speed.tensors)
        return self.row(kind, rows, us, head_us, layer_us, bytes_read)

    def speculate(self, verify: Pass, accept: float, repeats: int) -> Pass:
        """Whole steps, MTP block included, where the step before accepted as many drafts as this one."""
        speed, rows = self.speed, verify.rows
        shares = shares_of_accepted(rows, accept)
        us = sum(
            share * speed.pass_us("iterate", rows, repeats, pending=c + 1)
            for c, share in enumerate(shares)
            if share > 0
        )
        tokens = sum(share * (c + 1) for c, share in enumerate(shares))
        model_us = us + verify.model_us - verify.us
        head = head_bytes(speed.tensors) / 1e6
        mb = verify.model_mb + (rows - 1) * (mtp_bytes(speed.tensors, self.config) / 1e6 + head)
        return replace(
            verify,
            kind="speculate",
            launches=len(speed.kernels("iterate", rows)),
            us=us,
            head_us=us - verify.us + verify.head_us,
            model_us=model_us,
            tokens_per_s=1e6 * tokens / model_us,
            model_mb=mb,
            percent_of_roofline=100 * mb * 1e6 / ROOFLINE_BYTES_PER_US / model_us,
            accept=accept,
            tokens_a_step=tokens,
        )

    def row(
        self, kind: str, rows: int, us: float, head_us: float, layer_us: float, bytes_read: float
    ) -> Pass:
        model_us = head_us + layer_us * self.all_layers
        return Pass(
            self.name,
            self.layers,
            self.context,
            kind,
            rows,
            len(self.speed.kernels(kind, rows)),
            us,
            head_us,
            layer_us,
            model_us,
            1e6 * (1 if kind == "draft" else rows) / model_us,
            bytes_read / 1e6,
            100 * bytes_read / ROOFLINE_BYTES_PER_US / model_us,
        )


def config_for(given: str | None, device: _C.Device) -> str:
    """The config to measure; ClickException for one that an emulated GPU would take hours and the memory for."""
    if not device.emulated:
        return given or "flash"
    if given not in (None, "tiny"):
        raise click.ClickException(
            f"bench model: got config {given} on the emulated GPU, expected tiny; measure {given} on a GPU"
        )
    return "tiny"


def write_csv(path: Path, header: list[str], rows: Iterable[Iterable[Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def summary_of(
    times: list[tuple[str, int, int, float]], layers: int
) -> list[tuple[str, int, int, int, float]]:
    """(kernel, blocks, threads, launches, us of a layer), the most expensive first."""
    sums: dict[tuple[str, int, int], list[float]] = defaultdict(list)
    for kernel, blocks, threads, us in times:
        sums[kernel, blocks, threads].append(us)
    rows = [(*key, len(found), sum(found) / layers) for key, found in sums.items()]
    return sorted(rows, key=lambda row: -row[4])


PASSES = ("decode", "verify", "draft", "iterate", "prefill", "head")


def pass_of(text: str) -> tuple[str, int]:
    """What one --ops asks for."""
    kind, _, number = text.partition(":")
    rows = int(number) if number.isdecimal() else 0 if number else 1
    if kind not in PASSES or rows < 1:
        raise click.ClickException(
            f"bench model: got --ops {text}, expected one of {', '.join(PASSES)} and a number of rows, as in decode:1"
        )
    return kind, rows


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--config",
    show_default="flash; on the emulator tiny",
    type=click.Choice(list(CONFIGS)),
    help="The model.",
)
@click.option("--layers", default=4, show_default=True, type=click.IntRange(1), help="Layers to measure.")
@click.option(
    "--context",
    multiple=True,
    default=(4096,),
    show_default=True,
    type=click.IntRange(64),
    help="Tokens in the cache; again for more.",
)
@click.option(
    "--batch",
    multiple=True,
    default=(1,),
    show_default=True,
    type=click.IntRange(1, 64),
    help="Again for more.",
)
@click.option(
    "--spec", multiple=True, type=click.IntRange(1, 8), help="Rows of a verifying pass; again for more."
)
@click.option(
    "--prefill", multiple=True, type=click.IntRange(1, 8192), help="Rows of a chunk; again for more."
)
@click.option(
    "--accept",
    multiple=True,
    type=click.FloatRange(0, 1),
    help="Whole speculative steps of --spec rows, with this acceptance of each draft; again for more.",
)
@click.option("--draft", is_flag=True, help="Also the MTP block.")
@click.option(
    "--random", is_flag=True, help="Weights are random; there is nothing else yet, so it may be left out."
)
@click.option(
    "--ops", multiple=True, help="Also a table of the launches of a pass: decode:1, prefill:4096, ..."
)
@click.option("--plot", is_flag=True, help="Also a picture, model.png; needs matplotlib.")
@click.option("--repeats", default=20, show_default=True, type=click.IntRange(1))
@click.option("--device", default="", help="As everywhere; the emulator takes config tiny only.")
@click.option(
    "--out", default="bench/out", show_default=True, type=click.Path(file_okay=False, path_type=Path)
)
def main(
    config: str | None,
    layers: int,
    context: tuple[int, ...],
    batch: tuple[int, ...],
    spec: tuple[int, ...],
    prefill: tuple[int, ...],
    accept: tuple[float, ...],
    draft: bool,
    random: bool,
    ops: tuple[str, ...],
    plot: bool,
    repeats: int,
    device: str,
    out: Path,
) -> None:
    """Times passes of a model with random weights; writes model.csv, model_ops.csv and model.png."""
    del random
    if accept and not any(n > 1 for n in spec):
        raise click.ClickException("bench model: got --accept without --spec, expected --spec 2 or more")
    wanted = [("decode", n) for n in batch] + [("verify", n) for n in spec] + [("draft", 1)] * draft
    wanted += [("prefill", n) for n in prefill]
    launches_of = [pass_of(text) for text in ops]
    sequences = (*batch, *(n for kind, n in launches_of if kind == "decode"))
    chunk = max((*prefill, *(n for kind, n in launches_of if kind == "prefill")), default=1)
    target = _C.Device(device)
    config = config_for(config, target)
    if target.emulated:
        click.echo("on the emulated GPU: the times are this machine's and say nothing of a GPU's", err=True)
    out.mkdir(parents=True, exist_ok=True)
    columns = [field.name for field in fields(Pass)]
    rows, listed = list[Pass](), list[tuple[Any, ...]]()
    for tokens in context:
        click.echo(f"config {config}, context {tokens}: making weights and kernels", err=True)
        measured = Measured(config, layers, tokens, sequences, chunk, device)
        if accept and not measured.speed.has_mtp:
            raise click.ClickException(f"bench model: got --accept, but {config} has no MTP block")
        click.echo(
            f"{'pass':<16}{'launches':>9}{'us':>10}{'layer us':>10}{'head us':>9}{'tokens/s':>10}{'roofline':>10}"
        )
        for kind, n in wanted:
            times = repeats if kind != "prefill" else max(1, repeats // 5)
            found = [measured.measure(kind, n, times)]
            if kind == "verify" and n > 1:
                found += [measured.speculate(found[0], p, repeats) for p in accept]
            for row in found:
                name = f"{row.kind}:{n}" + (f" {row.accept:g}" if row.kind == "speculate" else "")
                click.echo(
                    f"{name:<16}{row.launches:>9}{row.us:>10.1f}{row.layer_us:>10.1f}{row.head_us:>9.1f}"
                    f"{row.tokens_per_s:>10.0f}{row.percent_of_roofline:>9.1f}%"
                )
            rows += found
            write_csv(out / "model.csv", columns, ([getattr(one, name) for name in columns] for one in rows))
        for text, (kind, number) in zip(ops, launches_of, strict=True):
            launches = measured.speed.launch_times(kind, number, 7 if kind != "prefill" else 1)
            listed += [(kind, number, index, *one, tokens) for index, one in enumerate(launches)]
            click.echo(f"\n{text}: us of a layer")
            for kernel, blocks, threads, count, us in summary_of(launches, layers):
                click.echo(f"  {kernel:<28}{blocks:>8} x {threads:<5}{count:>5} launches{us:>11.2f}")
            titles = ["pass", "rows", "index", "kernel", "blocks", "threads", "us", "context"]
            write_csv(out / "model_ops.csv", titles, listed)
        del measured  # before the next one's weights
    if plot:
        click.echo(write_plot(out / "model.png", rows))


if __name__ == "__main__":
    main()
