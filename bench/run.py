"""Runs the sections one after the other and writes the files after each: a run cut short loses one section."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from bench import plots, report
from bench.context import Context
from bench.records import Row, machine

SECTIONS = (
    "ceilings",
    "dense",
    "grouped",
    "masked",
    "deepgemm",
    "fp4",
    "nvfp4",
    "fp4_bf16",
    "fused_moe",
    "fp4_packing",
    "bf16",
    "accumulate",
    "gemv",
    "weight_only_gemm",
    "model_ops",
    "host_time",
    "cold_start",
    "regret",
)


def unavailable() -> str | None:
    """Why nothing can be measured here, or None."""
    try:
        import torch
    except ImportError:
        return "bench: nothing measured: PyTorch is not installed, and cuBLASLt is called through it"
    if not torch.cuda.is_available():
        return "bench: nothing measured: no CUDA GPU here"
    if torch.cuda.get_device_capability() != (9, 0):
        return f"bench: nothing measured: {torch.cuda.get_device_name()} is no sm_90 GPU"
    return None


def run_section(name: str, context: Context) -> list[Row]:
    """One section's rows; a failure of the section as a whole is a row too."""
    try:
        rows: list[Row] = importlib.import_module(f"bench.{name}").run(context)
        return rows
    except Exception as error:
        return [Row(name, "whole section", error=f"{type(error).__name__}: {error}"[:500])]


def run(
    out: Path,
    only: Sequence[str] = (),
    quick: bool = False,
    say: Callable[[str], object] = print,
    seconds: float | None = None,
    deepgemm: Path | None = None,
) -> list[Row]:
    """Measures, writes the files into `out`, and returns the rows. `seconds`: after which plans are left out.
    `deepgemm`: the folder of a built DeepGEMM package, for the section of that name."""
    context = Context.of(quick, seconds)
    context.deepgemm = deepgemm
    chosen = [name for name in SECTIONS if not only or name in only]
    if deepgemm is None and "deepgemm" in chosen:
        chosen.remove("deepgemm")
    # Their rows are percentages of them.
    of_ceilings = {"masked", "fp4", "nvfp4", "fp4_bf16", "fp4_packing", "gemv", "weight_only_gemm"}
    needed = ["ceilings", *chosen] if "ceilings" not in chosen and of_ceilings & set(chosen) else chosen
    facts = machine()
    rows: list[Row] = []
    text = ""
    for name in needed:
        start = time.monotonic()
        found = run_section(name, context)
        rows += found
        failed = [row for row in found if row.error]
        say(f"{name}: {len(found)} points in {time.monotonic() - start:.1f} s")
        for row in failed:
            say(f"  FAILED {row.point}: {row.error}")
        text = report.write_all(out, facts, rows, needed)
    for problem in plots.write_plots(out, facts, rows):
        say(problem)
    say(text.rstrip())
    return rows
