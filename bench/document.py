"""docs/performance.md from results.json files: every number in the page comes from one of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import report
from bench.reasons import reason_of
from bench.records import Row
from bench.targets import target_of

TITLES = {
    "ceilings": (
        "Ceilings",
        "What simple kernels and cuBLAS reach in the same run. A few points below read at 101 to 103 %: parts of their "
        "weights are still in L2 from the launch before.",
    ),
    "dense": (
        "Dense FP8",
        "Scales (1, 128) x (128, 128), row-major, bf16 output. The peer is cuBLASLt with one scale for each tensor "
        "(`torch._scaled_mm`, m rounded up to 16). Ratios count launches one behind the other, ours with programmatic "
        'dependent launch, which the peer does not use; "x without pdl" leaves it out.',
    ),
    "grouped": (
        "Contiguous grouped FP8",
        "TFLOPS of useful rows. The peer is our dense kernel with as many rows in one matrix.",
    ),
    "masked": (
        "Masked grouped FP8",
        "8 groups of at most 512 rows, m of them valid: weights stream from memory.",
    ),
    "deepgemm": (
        "Beside DeepGEMM",
        "The FP8 kernels of DeepGEMM 2.6.1, built from source on the same machine, in the same rounds; `--deepgemm` "
        "measures them again. Its scales of tokens are brought into the layout its kernels read before the clock "
        "starts; ours are read row by row.",
    ),
    "fp4": (
        "MXFP4 weights, FP8 activations",
        "MoE layers, tokens routed at random: DeepSeek-V4-Flash (256 experts, top-6), V3 (256, top-8) and "
        "Qwen3-30B-A3B (128, top-8). The peer is the same kernel with the same copies and no product; bandwidth counts "
        "the weights of the experts that got a token. FlashInfer's and DeepGEMM's times are not of this run: "
        "bench/fp4_peer.py has them and says where they come from. FlashInfer has one scale for each token, as the "
        "points with per_token, and also adds up in the tensor core over all of K, as those with fast_accumulation.",
    ),
    "nvfp4": (
        "NVFP4 weights, FP8 activations",
        "The layer above with 4480 bytes for 64 x 128 weights instead of 4224. nv_single rounds a weight to one E4M3, "
        "nv_exact multiplies it as two. The peer is MXFP4 in the same rounds.",
    ),
    "fp4_bf16": (
        "MXFP4 weights, bf16 activations",
        "The Flash layer above: bf16 tokens as two E4M3 terms, whose making is in the time, and with bf16_products as "
        "such. The peer is FP8 activations in the same rounds; Marlin's times are not of this run, "
        "bench/fp4_peer.py has them.",
    ),
    "fused_moe": (
        "A whole mixture of experts",
        "fused_moe, MXFP4, of DeepSeek-V4-Flash: from routing to the combined output, tokens quantised, SwiGLU and the "
        "weighted sum included; per_token with one FP8 scale for each token, bf16 with bf16 activations. The peer is "
        "the sum of its two GEMMs alone, in the same rounds.",
    ),
    "fp4_packing": (
        "Packing FP4 weights",
        "Checkpoint tensors on the GPU, pack_fp4_weights as it is called, with what the host decides in between; GB/s "
        "counts codes, scales and packed weights once. The peer is a device copy of as many bytes.",
    ),
    "bf16": ("Dense BF16", "The peer is `torch.mm`."),
    "accumulate": (
        "Products added to D",
        "D = D + A B^T in place, at the shapes of DeepGEMM's tests; GB/s counts D twice. The peer is `torch.addmm` in "
        "place; for FP8 `torch._scaled_mm` with one scale for each tensor and an addition after it. x without C: the "
        "time of the product alone / that of the sum.",
    ),
    "gemv": (
        "Few tokens, narrow weights",
        "Layers as k x n; GB/s counts W, its scales, x and y. The peer is `torch.mm` in BF16, in the same rounds.",
    ),
    "weight_only_gemm": (
        "Many tokens, narrow weights",
        "A layer as k x n, bf16 tokens. The peer is `torch.mm` in BF16, in the same rounds.",
    ),
    "model_ops": (
        "Operations of whole models",
        "One token of DeepSeek-V4-Flash; operands come from memory, two launches each.",
    ),
    "host_time": (
        "Host time per call",
        "Loops that do not wait for the device. The peer is `torch._scaled_mm`, for C++ the driver's launch of the "
        "same kernel alone.",
    ),
    "cold_start": (
        "First call",
        "In a new process with a new cache folder, then in another one with that folder.",
    ),
    "regret": ("Plans", "Every legal plan was checked and timed; the peer is the best of them."),
}

METHOD = """## Method
Every point is first checked against a float32 product of the dequantised operands, with outputs filled with NaN
beforehand (of layers with experts: the busiest one and the first). Then about half a millisecond of launches is
captured in a CUDA graph, over buffers that rotate through
more than twice the L2 cache; variants take turns for {rounds} rounds in alternating order. Times are medians, with
the smallest and largest sample in brackets; a ratio is the median over rounds of peer time / our time.
Host times are the best of 21 bursts.
"""


def _time(row: Row, variant: str, us: float | None) -> str:
    if us is None:
        return ""
    samples = row.samples.get(variant, [])
    spread = f" ({min(samples):.2f}..{max(samples):.2f})" if len(samples) > 1 else ""
    return f"{us:.2f}{spread}"


CONTEST_NOTE = re.compile(r"chosen (?P<chosen>.*); best (?P<best>.*)")  # as contest.measure() writes it


def _variants(row: Row) -> tuple[str, str]:
    """The names of our samples and the peer's."""
    if contest := CONTEST_NOTE.fullmatch(row.note):
        return contest["chosen"], contest["best"]
    names = list(row.samples)
    ours = names[0] if names else ""
    return ours, names[-1] if row.section == "grouped" and names else (names[1] if len(names) > 1 else "")


def _line(row: Row) -> str:
    ours, peer = _variants(row)
    target = target_of(row)
    verdict = ("yes" if target.reached(row) else "**no**") if target and row.measured else "not measured"
    asked = f"{target}: {verdict}" if target else ""
    ratio = report.number(row.metrics.get("ratio"), 3)
    facts = f"failed: {row.error}" if row.error else report.facts_of(row) if row.measured else row.note
    cells = (row.point, _time(row, ours, row.ours_us), _time(row, peer, row.peer_us), ratio, facts, asked)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _where(machine: dict[str, Any]) -> str:
    return (
        f"{machine['device']} ({machine['num_sms']} SMs), driver {machine['driver']} (CUDA {machine['cuda_driver']}), "
        f"NVRTC {machine['nvrtc']}, torch {machine['torch']}; commit {machine['commit']}, {machine['date']}"
    )


def _missed(rows: Sequence[Row]) -> str:
    """A line for each reason why rows miss what was asked."""
    points: dict[str, list[str]] = {}
    for row in rows:
        target = target_of(row)
        if target and row.measured and not target.reached(row):
            points.setdefault(reason_of(row) or "No reason found yet.", []).append(row.point)
    return "".join(f"\n- {', '.join(names)}: {reason}" for reason, names in points.items())


Run = tuple[dict[str, Any], list[Row], list[str]]  # machine, rows, sections


def document(runs: Sequence[Run], files: Sequence[str]) -> str:
    """The page of one or more runs: each section is the last run's that measured it, and says so if that is an
    earlier one than the first named."""
    source = {section: machine for machine, _, sections in runs for section in sections}
    sections = [section for section in TITLES if section in source]
    rows = [row for machine, of_run, _ in runs for row in of_run if source[row.section] is machine]
    newest = runs[-1][0]
    rounds = max((len(s) for row in rows if row.section == "dense" for s in row.samples.values()), default=0)
    parts = [
        "# Performance",
        "Generated by `python -m deep_gemm bench --document` from measured results; do not edit. "
        f"Measured on {_where(newest)}.",
        f"Made from {', '.join(files)} in bench/results.",
        f"{report.sentence(rows, sections)}.",
        METHOD.format(rounds=rounds).rstrip(),
    ]
    for section in sections:
        title, text = TITLES[section]
        shown = [row for row in rows if row.section == section]
        if not shown:
            continue
        head = "| point | ours us | peer us | ratio | | asked |\n| --- | ---: | ---: | ---: | --- | --- |"
        if source[section] is not newest:
            text += f"\n\nMeasured earlier: {_where(source[section])}."
        parts.append(f"## {title}\n{text}\n\n" + "\n".join([head, *map(_line, shown)]))
        if missed := _missed(shown):
            parts.append(f"Not reached, and why:\n{missed}")
    return "\n\n".join(parts) + "\n"


def write_document(results: Sequence[Path], page: Path) -> None:
    page.parent.mkdir(parents=True, exist_ok=True)
    text = document([report.read_json(path) for path in results], [path.name for path in results])
    page.write_text(text, encoding="utf-8")
