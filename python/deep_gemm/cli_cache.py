"""The commands of the kernel cache: list, clear, verify."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from deep_gemm import _C


@click.group()
def cache() -> None:
    """Lists, clears and verifies the cached kernels."""


def spec_text(entry: dict[str, Any]) -> str:
    """The spec a kernel was generated for, from its stored source; its entry where it has none."""
    try:
        code = (Path(entry["folder"]) / "kernel.cu").read_text()
    except OSError:
        code = ""
    found = re.search(r"\bkSpec(\{.*?\});", code, re.DOTALL)
    if found is None:
        return str(entry["replay"] or entry["entry"])
    fields = re.findall(r"\.(\w+) = (?:\w+::)?(\w+)", found.group(1))
    return " ".join(f"{name}={value}" for name, value in fields)


def kernel_lines(entries: list[dict[str, Any]]) -> str:
    """Aligned columns. Plain text: a cache holds thousands, for which a drawn table takes seconds."""
    rows = [("kernel", "arch", "kind", "NVRTC", "KiB", "registers", "spilled bytes", "spec or entry")]
    for entry in entries:
        size = f"{entry['num_bytes'] / 1024:.0f}"
        if entry["damaged"]:
            rows.append(("damaged", "", "", "", size, "", "", entry["folder"]))
            continue
        stats = entry["stats"]
        spilled = stats["spill_store_bytes"] + stats["spill_load_bytes"]
        registers, spilled = (stats["registers"], spilled) if entry["kind"] == "cubin" else ("-", "-")
        facts = (entry["name"], entry["arch"], entry["kind"], entry["nvrtc"], size)
        rows.append((*facts, str(registers), str(spilled), spec_text(entry)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def sentence(entries: list[dict[str, Any]]) -> str:
    roots = _C.cache_roots()
    if not roots:
        return "no cache folder: none of DG_JIT_CACHE_DIR, XDG_CACHE_HOME and HOME is set"
    if not entries:
        return f"no kernels in {', '.join(roots)}"
    size = sum(entry["num_bytes"] for entry in entries)
    return f"{len(entries)} in all, {size / 1024:.0f} KiB in {', '.join(roots)}"


@cache.command("list")
def cache_list() -> None:
    """Shows every cached kernel."""
    entries = _C.cache_list()
    if entries:
        click.echo(kernel_lines(entries))
    click.echo(sentence(entries))


@cache.command("clear")
@click.option("--yes", is_flag=True, help="Do not ask.")
def cache_clear(yes: bool) -> None:
    """Empties the cache folder; kernels are compiled again when they are needed."""
    if not yes:
        click.confirm(f"Remove the cached kernels ({sentence(_C.cache_list())})?", abort=True)
    count, size = _C.cache_clear()
    click.echo(f"removed {count}, {size / 1024:.0f} KiB")


@cache.command("verify")
@click.option("--repair", is_flag=True, help="Remove what is damaged.")
def cache_verify(repair: bool) -> None:
    """Reads and checks every cached kernel; exit status 1 when one is damaged and stays."""
    entries = _C.cache_verify(repair=repair)
    damaged = [entry for entry in entries if entry["damaged"]]
    if damaged:
        stay = [entry for entry in damaged if not (repair and entry["writable"])]
        told = f"{len(damaged)} of {len(entries)} damaged"
        if repair:
            told += f", {len(damaged) - len(stay)} removed"
            told += f"; {len(stay)} in folders that are only read" if stay else ""
        else:
            told += "; --repair removes them"
        click.echo(kernel_lines(damaged))
        click.echo(told)
        raise SystemExit(1 if stay else 0)
    click.echo(f"all sound: {sentence(entries)}")
