"""What a run writes: results.json (everything), results.csv (a line per point), bench.txt (a short table)."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from bench.records import Row
from bench.targets import TARGETS, target_of

VERSION = 1
HEADER = ("section", "point", "ours us", "peer us", "ratio", "asked", "reached")
SHOWN = (  # metric, text after the number
    ("tflops", "TFLOPS"),
    ("gbs", "GB/s"),
    ("percent_of_read", "% of read"),
    ("of_cublaslt", "x cuBLASLt"),
    ("peer_of_cublaslt", "x cuBLASLt DeepGEMM"),
    ("of_dense", "x dense"),
    ("of_copies", "x copies only"),
    ("of_flashinfer", "x FlashInfer"),
    ("of_flashinfer_by_read", "x by read ceilings"),
    ("of_marlin", "x Marlin"),
    ("of_deepgemm_fp8", "x DeepGEMM FP8"),
    ("mean_of_flashinfer", "x FlashInfer, geometric mean"),
    ("worst_of_flashinfer", "x FlashInfer at worst"),
    ("of_gemms", "x its two GEMMs"),
    ("psum_tflops", "TFLOPS psum"),
    ("ratio_without_pdl", "x without pdl"),
    ("ratio_peer_pdl", "x DeepGEMM with pdl"),
    ("ratio_fast", "x of fast accumulation"),
    ("of_one_token", "x 1 token"),
    ("of_plain", "x without C"),
    ("mean_ratio", "x, geometric mean"),
    ("ms", "ms"),
    ("regret", "x best"),
    ("worst_regret", "x worst"),
)


def number(value: float | None, digits: int = 2) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def facts_of(row: Row) -> str:
    """'1312 TFLOPS, 0.98 x dense': the metrics a reader looks for."""
    shown = []
    for metric, unit in SHOWN:
        if metric in row.metrics:
            value = row.metrics[metric]
            shown.append(f"{value:.0f} {unit}" if value >= 100 else f"{value:.4g} {unit}")
    if row.ours_us is None and row.note:  # a summary says of which points
        shown.append(row.note)
    return ", ".join(shown)


def cells_of(row: Row) -> tuple[str, ...]:
    target = target_of(row)
    asked = str(target) if target else ""
    reached = "" if target is None or not row.measured else ("yes" if target.reached(row) else "NO")
    ratio = number(row.metrics.get("ratio"), 3)
    return (row.section, row.point, number(row.ours_us), number(row.peer_us), ratio, asked, reached)


def table(rows: list[Row]) -> str:
    """Aligned columns, then facts; failed points say why on their line."""
    lines = [
        (*HEADER, "facts"),
        *(
            (
                *cells_of(row),
                f"ERROR {row.error}" if row.error else facts_of(row) if row.measured else row.note,
            )
            for row in rows
        ),
    ]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEADER))]
    right = {2, 3, 4}
    text = io.StringIO()
    for line in lines:
        cells = [
            cell.rjust(w) if i in right else cell.ljust(w)
            for i, (cell, w) in enumerate(zip(line, widths, strict=False))
        ]
        text.write("  ".join([*cells, line[-1]]).rstrip() + "\n")
    return text.getvalue()


def sentence(rows: list[Row], sections: list[str]) -> str:
    """'20 of 24 numbers reached; 1 point failed', over the targets of the sections that ran."""
    by_point = {(row.section, row.point): row for row in rows}
    asked = [target for target in TARGETS if target.section in sections]
    found = [(t, by_point[t.section, t.point]) for t in asked if (t.section, t.point) in by_point]
    measured = [(target, row) for target, row in found if row.measured]
    reached = sum(target.reached(row) for target, row in measured)
    failed = sum(bool(row.error) for row in rows)
    text = f"{reached} of {len(asked)} numbers reached"
    if len(measured) < len(asked):
        text += f", {len(asked) - len(measured)} not measured"
    return text + (f"; {failed} points FAILED" if failed else "; every result within its error limit")


def write_json(path: Path, machine: dict[str, Any], rows: list[Row], sections: list[str]) -> None:
    content = {
        "version": VERSION,
        "machine": machine,
        "sections": sections,
        "rows": [
            {
                **row.to_dict(),
                "asked": str(target) if (target := target_of(row)) else "",
                "reached": target.reached(row) if target and row.measured else None,
            }
            for row in rows
        ],
    }
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read_json(path: Path) -> tuple[dict[str, Any], list[Row], list[str]]:
    content = json.loads(path.read_text(encoding="utf-8"))
    if content.get("version") != VERSION:
        raise ValueError(
            f"{path}: got results of version {content.get('version')}, expected {VERSION}; run the benchmarks again"
        )
    fields = set(Row.__dataclass_fields__)
    rows = [Row(**{name: value for name, value in row.items() if name in fields}) for row in content["rows"]]
    return content["machine"], rows, content["sections"]


def write_csv(path: Path, rows: list[Row]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow((*HEADER, "metrics", "note", "error"))
        for row in rows:
            metrics = " ".join(f"{name}={value:.6g}" for name, value in row.metrics.items())
            writer.writerow((*cells_of(row), metrics, row.note, row.error))


def write_all(out: Path, machine: dict[str, Any], rows: list[Row], sections: list[str]) -> str:
    """Writes the three files; returns the text of bench.txt."""
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "results.json", machine, rows, sections)
    write_csv(out / "results.csv", rows)
    where = f"{machine['device']}, driver {machine['driver']}, torch {machine['torch']}, {machine['commit']}"
    text = f"{table(rows)}{where}, {machine['date']}\n{sentence(rows, sections)}\n"
    (out / "bench.txt").write_text(text, encoding="utf-8")
    return text
