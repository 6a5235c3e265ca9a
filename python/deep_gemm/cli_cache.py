"""The commands of the kernel cache: list, clear, verify."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import click

from deep_gemm import _C


@click.group()
def cache() -> None:
    """Lists, clears and verifies the cached kernels."""


def spec_fields(entry: dict[str, Any]) -> list[tuple[str, str]]:
    """The fields of the spec a kernel was generated for, from its stored source; none where it has no spec."""
    try:
        code = (Path(entry["folder"]) / "kernel.cu").read_text()
    except OSError:
        code = ""
    found = re.search(r"\bkSpec(\{.*?\});", code, re.DOTALL)
    return re.findall(r"\.(\w+) = (?:\w+::)?(\w+)", found.group(1)) if found else []


def spec_text(entry: dict[str, Any]) -> str:
    """'ab=fp8_e4m3 accumulate=false block_m=64'; the entry's own text where it has no spec."""
    fields = [f"{name}={value}" for name, value in spec_fields(entry)]
    return " ".join(fields) or str(entry["replay"] or entry["entry"])


def short_spec_text(entry: dict[str, Any]) -> str:
    """'block_m=64 swap_ab fp8_e4m3': numbers, what is true, then words without their names; nothing off, none or 1."""
    fields = spec_fields(entry)
    if not fields:
        return str(entry["replay"] or entry["entry"])
    numbers, flags, words = [], [], []
    for name, value in fields:
        if value.isdigit():
            numbers += [f"{name}={value}"] if int(value) > 1 else []
        elif value == "true":
            flags.append(name)
        elif value not in ("false", "none"):
            words.append(value)
    return " ".join(numbers + flags + words) or "-"


def aligned(rows: list[tuple[str, ...]]) -> list[str]:
    """Columns as wide as their widest cell. Plain text: of thousands, a drawn table takes seconds."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def registers_of(entry: dict[str, Any]) -> tuple[str, str]:
    """(registers, spilled bytes); of PTX nobody knows."""
    stats = entry["stats"]
    if entry["kind"] != "cubin":
        return "-", "-"
    return str(stats["registers"]), str(stats["spill_store_bytes"] + stats["spill_load_bytes"])


def kernel_lines(entries: list[dict[str, Any]], width: int) -> str:
    """A line for each kernel, cut to `width`."""
    rows: list[tuple[str, ...]] = [("kernel", "arch", "KiB", "regs", "spills", "spec")]
    for entry in entries:
        size = f"{entry['num_bytes'] / 1024:.0f}"
        if entry["damaged"]:
            rows.append(("damaged", "", size, "", "", entry["folder"]))
        else:
            rows.append((entry["name"], entry["arch"], size, *registers_of(entry), short_spec_text(entry)))
    return "\n".join(line if len(line) <= width else line[: width - 3] + "..." for line in aligned(rows))


def kernel_details(entries: list[dict[str, Any]]) -> str:
    """Everything about each kernel, with the folder of its source and its compiler's log."""
    rows: list[tuple[str, ...]] = [
        ("kernel", "arch", "kind", "NVRTC", "KiB", "registers", "spilled bytes", "folder", "spec or entry")
    ]
    for entry in entries:
        size = f"{entry['num_bytes'] / 1024:.0f}"
        if entry["damaged"]:
            rows.append(("damaged", "", "", "", size, "", "", entry["folder"], ""))
        else:
            facts = (entry["name"], entry["arch"], entry["kind"], entry["nvrtc"], size)
            rows.append((*facts, *registers_of(entry), entry["folder"], spec_text(entry)))
    return "\n".join(aligned(rows))


def sentence(entries: list[dict[str, Any]]) -> str:
    roots = _C.cache_roots()
    if not roots:
        return "no cache folder: none of DG_JIT_CACHE_DIR, XDG_CACHE_HOME and HOME is set"
    if not entries:
        return f"no kernels in {', '.join(roots)}"
    size = sum(entry["num_bytes"] for entry in entries)
    return f"{len(entries)} in all, {size / 1024:.0f} KiB in {', '.join(roots)}"


@cache.command("list")
@click.option(
    "--verbose", "-v", is_flag=True, help="Whole lines: all fields, the compiler, the source's folder."
)
def cache_list(verbose: bool) -> None:
    """Shows every cached kernel, a line each: its architecture, size, registers, spilled bytes and spec."""
    entries = _C.cache_list()
    if entries:
        width = shutil.get_terminal_size((100, 24)).columns
        click.echo(kernel_details(entries) if verbose else kernel_lines(entries, width))
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
        click.echo(kernel_details(damaged))
        click.echo(told)
        raise SystemExit(1 if stay else 0)
    click.echo(f"all sound: {sentence(entries)}")
