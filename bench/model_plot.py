"""A picture of model.csv: tokens/s and what they are of the roofline, against the rows of a pass."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.figures import load_pyplot

if TYPE_CHECKING:
    from bench.model import Pass

PANELS = (("tokens_per_s", "tokens/s of the whole model"), ("percent_of_roofline", "percent of the roofline"))
NO_MATPLOTLIB = "no plot: matplotlib is not installed; pip install 'matplotlib>=3.8', or leave --plot out"


def lines_of(passes: Iterable[Pass], metric: str) -> dict[str, tuple[list[int], list[float]]]:
    """Of each kind of pass: rows, rising, and the metric. Contexts are told apart where there are several."""
    passes = list(passes)
    several = len({one.context for one in passes}) > 1
    found: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for one in passes:
        name = one.kind + (f" {one.accept:g}" if one.kind == "speculate" else "")
        name += f", context {one.context}" if several else ""
        found[name].append((one.rows, float(getattr(one, metric))))
    return {
        kind: ([rows for rows, _ in sorted(points)], [value for _, value in sorted(points)])
        for kind, points in found.items()
    }


def write_plot(path: Path, passes: list[Pass]) -> str:
    """Draws; returns a sentence about what was done."""
    pyplot = load_pyplot()
    if pyplot is None:
        return NO_MATPLOTLIB
    figure, axes = pyplot.subplots(1, len(PANELS), figsize=(10, 4))
    for panel, (metric, label) in zip(axes, PANELS, strict=True):
        draw(panel, lines_of(passes, metric), label)
    first = passes[0]
    contexts = ", ".join(map(str, dict.fromkeys(one.context for one in passes)))
    figure.suptitle(f"{first.config}, {first.layers} layers measured, context {contexts}", fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
    return f"wrote {path}"


def draw(panel: Any, lines: dict[str, tuple[list[int], list[float]]], label: str) -> None:
    for kind, (rows, values) in lines.items():
        panel.plot(rows, values, marker="o", label=kind)
    panel.set_xscale("log", base=2)
    panel.set_ylim(bottom=0)
    panel.set_xlabel("rows of a pass")
    panel.set_ylabel(label)
    panel.grid(alpha=0.3)
    panel.legend()
