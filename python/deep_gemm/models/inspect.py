"""What `python -m deep_gemm inspect` prints: a checkpoint's tensors, what is wrong with them, and its fit."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from deep_gemm import _C
from deep_gemm.models import model_path

GIB = 1 << 30


def cache_table(checkpoint: _C.Checkpoint, free: int) -> Table:
    """What sessions of several contexts take of the cache, and how many of them `free` bytes hold."""
    page, tokens, most = checkpoint.page_bytes(), checkpoint.page_tokens, checkpoint.max_positions
    contexts = sorted({min(context, most) for context in (4096, 32768, 131072, most)})
    table = Table("context", f"pages of {tokens}", "cache MiB", "sessions whose caches fit", box=None)
    for context in contexts:
        pages = -(-context // tokens)
        size = pages * page
        table.add_row(str(context), str(pages), f"{size / 2**20:.2f}", str(free // size))
    return table


def report(path: str | Path, device: _C.Device, console: Console) -> bool:
    """Prints everything; True when nothing is missing, extra or misshapen."""
    place = model_path(path)
    checkpoint = _C.Checkpoint(str(place))
    groups: dict[tuple[str, str], list[tuple[tuple[int, ...], int]]] = defaultdict(list)
    for tensor in checkpoint.tensors():
        name = re.sub(r"\.\d+\.", ".*.", re.sub(r"\.\d+\.", ".*.", tensor["name"]))
        groups[name, tensor["dtype"]].append((tensor["shape"], tensor["num_bytes"]))
    table = Table("tensor", "dtype", "count", "shape", "MB", box=None)
    for (name, dtype), members in sorted(groups.items()):
        shapes = {shape for shape, _ in members}
        text = "x".join(map(str, members[0][0])) if len(shapes) == 1 else f"{len(shapes)} shapes"
        table.add_row(name, dtype, str(len(members)), text, f"{sum(size for _, size in members) / 1e6:.2f}")
    console.print(table)
    count = sum(len(members) for members in groups.values())
    console.print(f"{count} tensors, {checkpoint.num_bytes / GIB:.3f} GiB", highlight=False)
    if not checkpoint.has_config:
        console.print("no config.json beside it: shapes were not compared")
        return True
    needed, free = checkpoint.device_bytes(), device.free_memory_bytes
    verdict = "they fit"
    if needed > free:
        fit, layers = checkpoint.layers_that_fit(free)
        verdict = f"{(needed - free) / GIB:.3f} GiB are missing, {fit} of {layers} layers would fit"
    console.print(
        f"{checkpoint.architecture}: weights take {needed / GIB:.3f} GiB on {device.name}, "
        f"{free / GIB:.3f} GiB are free: {verdict}, before caches and activations",
        highlight=False,
    )
    if needed <= free:
        console.print(cache_table(checkpoint, free - needed))
    if not ((place if place.is_dir() else place.parent) / "tokenizer.json").is_file():
        console.print("no tokenizer.json beside it: generate, chat and Engine.encode need one")
    problems = checkpoint.problems()
    for problem in problems[:40]:
        console.print(problem, highlight=False, markup=False)
    if len(problems) > 40:
        console.print(f"... and {len(problems) - 40} more")
    named = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
    console.print(named if problems else "complete: every tensor as config.json asks")
    return not problems
