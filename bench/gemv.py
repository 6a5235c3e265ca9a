"""Products with few tokens: every layout of W beside torch.mm in BF16, for layers of models, W read from memory.

One launch reads W once whatever the number of tokens, so its time should be that of W's bytes: GB/s counts them, with
scales. All layouts of one layer take turns with torch.mm in the same rounds.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

import deep_gemm
from bench import data, timing
from bench.context import Context
from bench.data import Rotation, Tensor
from bench.records import Row, median, paired_ratio
from bench.targets import (
    GEMV_LAYERS,
    GEMV_MEAN,
    GEMV_ONE_TOKEN_ONLY,
    GEMV_TOKENS,
    GEMV_TOKENS_LAYER,
    gemv_point,
)
from bench.timing import Variant

SECTION = "gemv"
PEER = "torch.mm"
# name of the variant, layout of W, what x becomes (None: stays bf16)
VARIANTS: tuple[tuple[str, str, str | None], ...] = (
    ("bf16", "bf16", None),
    ("w8a16", "fp8_128x128", None),
    ("w8a8", "fp8_128x128", "fp8_128"),
    ("w8a8 by 32", "fp8_32", "fp8_32"),
    ("int8", "int8_row", None),
    ("q8_0", "q8_0", "q8"),
    ("q8_0 split", "q8_0_split", "q8"),
    ("w4a16 mxfp4", "mxfp4", None),
    ("w4a16 nvfp4", "nvfp4", None),
    ("w4a8 nvfp4", "nvfp4", "fp8_128"),
    ("int4 g128", "int4_128", None),
    ("int4 g32", "int4_32", None),
)
# |y - reference| / |reference| of bf16 outputs; operands are the dequantised ones.
ERROR_LIMIT = 2.5e-3


@dataclass
class Candidate:
    """One layout with buffers in rotation, and how many bytes a launch reads."""

    name: str
    num_bytes: int
    sets: Rotation
    layout: Any  # QuantizedMatrix without its tensors
    quantised: bool
    error: float = 0.0

    def launch(self, index: int) -> None:
        w, scales, x, x_scale, y = self.sets[index]
        matrix = deep_gemm.QuantizedMatrix(self.layout.format, self.layout.n, self.layout.k, w, scales, None,
                                           self.layout.global_scale)  # fmt: skip
        deep_gemm.linear((x, x_scale) if self.quantised else x, matrix, y)


def dequantised_activations(x: Tensor, x_scale: Tensor) -> Tensor:
    block = 128 if x_scale.shape[1] * 128 < x.shape[1] + 128 else 32
    return x.float() * x_scale.repeat_interleave(block, 1)[:, : x.shape[1]]


def candidate(
    name: str, layout: str, activations: str | None, weight: Tensor, x: Tensor, point: str
) -> Candidate:
    """Quantises, runs once into poisoned memory and compares with float32."""
    w = deep_gemm.quantize(weight, layout)
    m, n = x.shape[0], w.n
    pair = deep_gemm.quantize_activations(x, activations) if activations else None
    y = data.poison(torch.empty(m, n, dtype=torch.bfloat16, device="cuda"))
    nothing = torch.empty(0, device="cuda")
    tensors = (w.data, w.scales if w.scales is not None else nothing, *(pair or (x, nothing)), y)
    size = data.num_bytes(*tensors)
    made = Candidate(name, size, Rotation.of(tensors, timing.num_sets_for(size)), w, pair is not None)
    if w.scales is None:
        made.sets = Rotation([(s[0], None, *s[2:]) for s in made.sets.sets])
    wide = dequantised_activations(*pair)[:, : w.k] if pair else x.float()
    reference = data.product(wide, w.dequantize())
    made.launch(0)
    torch.cuda.synchronize()
    made.error = data.require_close(y, reference, ERROR_LIMIT, f"{point} {name}")
    return made


def layer_rows(context: Context, m: int, k: int, n: int, variants: tuple[Any, ...]) -> list[Row]:
    weight = data.random_fp32(n, k)
    x = data.random_fp32(m, k).bfloat16()
    candidates, rows = [], []
    for name, layout, activations in variants:
        point = gemv_point(name, m, k, n)
        try:
            candidates.append(candidate(name, layout, activations, weight, x, point))
        except Exception as error:
            rows.append(Row(SECTION, point, error=f"{type(error).__name__}: {error}"[:500]))
    peers = Rotation.of((x, weight.bfloat16(), torch.empty(m, n, dtype=torch.bfloat16, device="cuda")),
                        timing.num_sets_for(2 * n * k))  # fmt: skip
    del weight

    def peer(i: int) -> None:
        torch.mm(peers[i][0], peers[i][1].t(), out=peers[i][2])

    bursts: dict[str, timing.Burst] = {}
    for variant, num_sets, size in [
        (Variant(PEER, peer), len(peers), 2 * n * k),
        *((Variant(c.name, c.launch), len(c.sets), c.num_bytes) for c in candidates),
    ]:
        bursts |= timing.capture([variant], num_sets, 3.0 + size / 4e6)
    samples = timing.interleave(bursts, context.rounds)
    ours_bf16 = samples.get("bf16")
    for c in candidates:
        us = median(samples[c.name])
        metrics = {
            "ratio": paired_ratio(samples[PEER], samples[c.name]),
            "gbs": c.num_bytes / us / 1e3,
            "error": c.error,
        }
        if ours_bf16:
            metrics["ratio_to_bf16"] = paired_ratio(ours_bf16, samples[c.name])
        if context.read_gbs:
            metrics["percent_of_read"] = 100 * metrics["gbs"] / context.read_gbs
        rows.append(
            Row(SECTION, gemv_point(c.name, m, k, n), us, median(samples[PEER]), PEER, metrics,
                {"ours": samples[c.name], PEER: samples[PEER]}, f"{c.num_bytes / 1e6:.1f} MB")
        )  # fmt: skip
    return rows


def calls(context: Context) -> list[tuple[str, Callable[[], list[Row]]]]:
    layers = GEMV_LAYERS[1:2] if context.quick else GEMV_LAYERS
    planned = [(1, k, n, VARIANTS) for k, n in layers]
    k, n = GEMV_TOKENS_LAYER
    few = tuple(v for v in VARIANTS if v[0] not in GEMV_ONE_TOKEN_ONLY)
    planned += [(m, k, n, few) for m in ((8,) if context.quick else GEMV_TOKENS[1:])]
    return [
        (f"m={m} {k}x{n}", lambda m=m, k=k, n=n, v=variants: layer_rows(context, m, k, n, v))  # type: ignore[misc]
        for m, k, n, variants in planned
    ]


def compare_with_one_token(rows: list[Row]) -> None:
    """Time over that of one token, at the layer that has every number of tokens."""
    times = {row.point: row.ours_us for row in rows if row.ours_us}
    for name, _, _ in VARIANTS:
        one = times.get(gemv_point(name, 1, *GEMV_TOKENS_LAYER))
        for row in rows:
            if one and row.ours_us and row.point in several(name):
                row.metrics["of_one_token"] = row.ours_us / one


def several(name: str) -> set[str]:
    return {gemv_point(name, m, *GEMV_TOKENS_LAYER) for m in GEMV_TOKENS[1:]}


def mean(rows: list[Row]) -> Row:
    """Of bf16 up to 8 tokens: every point that something is asked of."""
    points = {gemv_point("bf16", 1, *layer) for layer in GEMV_LAYERS}
    points |= {gemv_point("bf16", m, *GEMV_TOKENS_LAYER) for m in GEMV_TOKENS if m <= 8}
    ratios = {
        row.point: row.metrics["ratio"] for row in rows if row.point in points and "ratio" in row.metrics
    }
    if not ratios:
        return Row(SECTION, GEMV_MEAN, error="no point was measured")
    worst = min(ratios, key=lambda point: ratios[point])
    metrics = {"mean_ratio": statistics.geometric_mean(ratios.values())}
    note = f"{len(ratios)} points; worst {worst}"
    return Row(SECTION, GEMV_MEAN, metrics=metrics, note=note)


def run(context: Context) -> list[Row]:
    rows: list[Row] = []
    for point, measure in calls(context):
        try:
            rows += measure()
        except Exception as error:
            rows.append(Row(SECTION, point, error=f"{type(error).__name__}: {error}"[:500]))
        torch.cuda.empty_cache()
    compare_with_one_token(rows)
    return [*rows, mean(rows)]
