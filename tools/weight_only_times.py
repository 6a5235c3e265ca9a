"""The tables of times in docs/weight-only.md: `python tools/weight_only_times.py` prints them, `--write` writes them.

They are made from the files of bench/results that the page names, one for few tokens and one for many (`--few NAME`
and `--many NAME` replace them; they may be the same): medians in microseconds, and how many times as fast as cuBLAS in
BF16 in the same rounds. Nothing runs; numbers that a file has not do not get in.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

TOP = Path(__file__).resolve().parents[1]
PAGE, RESULTS = TOP / "docs" / "weight-only.md", TOP / "bench" / "results"
START = re.compile(r"<!-- times: made by tools/weight_only_times\.py from (\S+) and (\S+) -->")
END = "<!-- end of times -->"
LAYER, LONG = "4096x14336", "8192x29568"
FEW, MANY = (1, 2, 3, 4, 8, 16), (32, 64, 128, 512, 2048, 8192)
# The bench's name of a variant, and what W and x are in it.
FEW_VARIANTS = {
    "bf16": "bf16, bf16", "w8a16": "fp8_128x128, bf16", "w8a8": "fp8_128x128, fp8_128", "w8a8 by 32": "fp8_32, fp8_32",
    "q8_0": "q8_0", "w4a16 mxfp4": "mxfp4, bf16", "w4a16 nvfp4": "nvfp4, bf16", "w4a8 nvfp4": "nvfp4, fp8_128",
    "int4 g128": "int4_128, bf16", "int4 g32": "int4_32, bf16",
}  # fmt: skip
MANY_VARIANTS = {
    "w8a16": "fp8_128x128", "w8a16 by row": "fp8_row", "int8": "int8_row", "w4a16 mxfp4": "mxfp4",
    "w4a16 nvfp4": "nvfp4", "int4 g128": "int4_128", "int4 g32": "int4_32",
}  # fmt: skip
Rows = dict[tuple[str, str], dict[str, Any]]


def table(head: list[str], body: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *body)]


def cell(row: dict[str, Any]) -> str:
    us = row["ours_us"]
    return (
        f"{us:.1f} ({row['metrics']['ratio']:.2f}x)"
        if us < 1000
        else f"{us:.0f} ({row['metrics']['ratio']:.2f}x)"
    )


def read(name: str) -> tuple[dict[str, Any], Rows]:
    content = json.loads((RESULTS / name).read_text(encoding="utf-8"))
    return content["machine"], {(row["section"], row["point"]): row for row in content["rows"]}


def tables(few_name: str, many_name: str) -> str:
    few = [("gemv", f"m={m} {LAYER}", f"{m} token{'s' if m > 1 else ''}") for m in FEW]
    few.append(("gemv", f"m=1 {LONG}", f"1 token, {LONG.replace('x', ' × ')}"))
    many = [("weight_only_gemm", f"m={m} {LAYER}", str(m)) for m in MANY]

    def made(
        rows: Rows, points: list[tuple[str, str, str]], variants: dict[str, str], first: str
    ) -> list[str]:
        peers = [rows[section, f"{next(iter(variants))} {point}"]["peer_us"] for section, point, _ in points]
        body = [["cuBLAS BF16", *(f"{us:.1f}" if us < 1000 else f"{us:.0f}" for us in peers)]]
        body += [
            [label, *(cell(rows[section, f"{variant} {point}"]) for section, point, _ in points)]
            for variant, label in variants.items()
        ]
        return table([first, *(title for _, _, title in points)], body)

    def source(machine: dict[str, Any], name: str) -> str:
        return f"commit {machine['commit']}, {machine['date'][:10]} ([{name}](../bench/results/{name}))"

    machine, few_rows = read(few_name)
    many_machine, many_rows = read(many_name)
    return "\n".join(
        [
            f"Microseconds on one {machine['device']},",
            f"k × n = {LAYER.replace('x', ' × ')}. In brackets: how many times as fast as `torch.mm` in BF16",
            "(cuBLAS) in the same rounds; below 1.00x it is slower. A few tokens, the small-batch form,",
            f"{source(machine, few_name)}:",
            "",
            *made(few_rows, few, FEW_VARIANTS, "W, x"),
            "",
            f"Many, x in bf16, the form that the plan takes, {source(many_machine, many_name)}:",
            "",
            *made(many_rows, many, MANY_VARIANTS, "W"),
        ]
    )


def parts(page: str) -> tuple[str, tuple[str, str], str]:
    """What stands in front of the tables, the files that they name, what comes after them."""
    start = START.search(page)
    if start is None or END not in page:
        raise SystemExit(f"{PAGE} has no lines '<!-- times: ... -->' and '{END}'; put them around the tables")
    return page[: start.start()], (start[1], start[2]), page.partition(END)[2]


def replaced(page: str, names: tuple[str, str] | None = None) -> str:
    before, named, after = parts(page)
    few, many = names or named
    mark = f"<!-- times: made by tools/weight_only_times.py from {few} and {many} -->"
    return f"{before}{mark}\n{tables(few, many)}\n{END}{after}"


def asked(page: str) -> tuple[str, str]:
    few, many = parts(page)[1]
    given = dict(zip(sys.argv, sys.argv[1:], strict=False))
    return given.get("--few", few), given.get("--many", many)


def main() -> None:
    page = PAGE.read_text(encoding="utf-8")
    if "--write" in sys.argv:
        PAGE.write_text(replaced(page, asked(page)), encoding="utf-8")
    else:
        print(tables(*asked(page)))


if __name__ == "__main__":
    main()
