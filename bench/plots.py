"""Pictures of a run, where matplotlib is installed: ratio to cuBLASLt, bandwidth of masked products, regret."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.figures import load_pyplot
from bench.records import Row
from bench.targets import Target, target_of


def _bars(axes: Any, rows: list[Row], metric: str, label: str) -> None:
    values = [row.metrics[metric] for row in rows]
    targets = [target_of(row) for row in rows]
    colours = [
        "#4477aa" if target is None or target.reached(row) else "#cc6677"
        for target, row in zip(targets, rows, strict=True)
    ]
    axes.barh([row.point for row in rows], values, color=colours)
    for y, target in enumerate(targets):
        limit = _limit(target, metric)
        if limit is not None:
            axes.plot([limit, limit], [y - 0.45, y + 0.45], color="black", linewidth=1.5)
    axes.invert_yaxis()
    axes.set_xlabel(label)
    axes.grid(axis="x", alpha=0.3)


def _limit(target: Target | None, metric: str) -> float | None:
    limits = [bound.limit for bound in target.bounds if bound.metric == metric] if target else []
    return limits[0] if limits else None


PICTURES: tuple[tuple[str, str, str, str], ...] = (  # section, metric, label, file
    ("dense", "ratio", "time of cuBLASLt FP8 / ours (black: asked)", "dense.png"),
    ("bf16", "ratio", "time of torch.mm / ours", "bf16.png"),
    ("grouped", "tflops", "TFLOPS of useful rows (black: asked)", "grouped.png"),
    ("masked", "percent_of_read", "percent of the measured read bandwidth (black: asked)", "masked.png"),
    ("regret", "regret", "time of the chosen plan / best plan", "regret.png"),
)


def write_plots(out: Path, machine: dict[str, Any], rows: list[Row]) -> list[str]:
    """Writes PNGs; returns sentences about what could not be drawn."""
    pyplot = load_pyplot()
    if pyplot is None:
        return ["no plots: matplotlib is not installed"]
    problems = []
    for section, metric, label, name in PICTURES:
        shown = [row for row in rows if row.section == section and metric in row.metrics]
        if not shown:
            continue
        try:
            _draw(pyplot, out / name, machine, shown, metric, label)
        except Exception as error:
            problems.append(f"{name} is not drawn: {error}")
    return problems


def _draw(pyplot: Any, path: Path, machine: dict[str, Any], rows: list[Row], metric: str, label: str) -> None:
    figure, axes = pyplot.subplots(figsize=(9, 1.2 + 0.28 * len(rows)))
    _bars(axes, rows, metric, label)
    axes.set_title(f"{machine['device']}, {machine['date'][:10]}, {machine['commit']}", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
