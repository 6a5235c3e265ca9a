"""FP4 weights x bf16 activations of the layer of bench/fp4.py, beside FP8 activations in the same rounds and routings:
as the plan has them, two E4M3 terms of each token, whose making is in the time, and as "bf16_products".

What Marlin reached is not of our runs: bench/fp4_peer.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch

import deep_gemm
from bench import data, fp4_peer, timing
from bench.context import Context
from bench.fp4 import EXPERTS, FLASH, TOP_K, Layer, routings, speed_metrics
from bench.fp4_weights import random_weights
from bench.records import Row, guarded_all, median, paired_ratio
from bench.targets import fp4_point
from bench.timing import Variant

SECTION = "fp4_bf16"
TOKENS = fp4_peer.TOKENS[:6]
PRODUCT_TOKENS = (1, 64, 1024)


KINDS = ("", "bf16_products")


def measure(context: Context, name: str, tokens: int, weights: deep_gemm.Fp4Weights, kind: str) -> Row:
    point = fp4_point(FLASH, name, tokens, kind)
    gate_up = name == "gate+up"
    lists = routings(tokens, gate_up)
    rows = tokens if gate_up else tokens * TOP_K
    d = torch.empty(tokens * TOP_K, weights.n, dtype=torch.bfloat16, device="cuda")
    fp8 = Layer(weights, data.scaled_tokens(rows, weights.k), d, lists)
    fp8.check(point)
    a = torch.randn(rows, weights.k, device="cuda").bfloat16()
    ours = Layer(weights, a, d, lists, bf16_products=kind == "bf16_products")
    error = ours.check(point)
    plan = deep_gemm.last_fp4_plan()
    assert plan is not None
    spec = plan["spec"]
    variants = [
        Variant("ours", ours.launch),
        Variant("fp8 activations", fp8.launch),
        Variant("copies only", lambda i: ours.launch(i, spec.replace(copies_only=True))),
    ]
    active = sum(len(one.experts) for one in lists) / len(lists)
    weight_bytes = active * data.num_bytes(weights.blobs, weights.row_scales) / EXPERTS
    flops = 2 * tokens * TOP_K * weights.n * weights.k
    expected = max(weight_bytes / 3e6, flops / 3e8) + 5
    samples = timing.interleave(timing.capture(variants, len(lists), expected), context.rounds)
    us = {variant: median(values) for variant, values in samples.items()}
    metrics = {
        "of_marlin": fp4_peer.MARLIN[FLASH.name, name][tokens] / us["ours"],
        "ratio": paired_ratio(samples["fp8 activations"], samples["ours"]),
        **speed_metrics(context, samples, weight_bytes, flops),
        "error": error,
    }
    note = f"{spec}, grid {plan['grid_blocks']}; {active:.0f} experts; copies only {us['copies only']:.1f} us"
    return Row(SECTION, point, us["ours"], us["fp8 activations"], "fp8 activations", metrics, samples, note)


def points(context: Context) -> Iterator[tuple[str, Callable[[], Row]]]:
    for name, n, k in FLASH.shapes:
        weights = random_weights(EXPERTS, n, k, "mx_e4m3")
        for tokens in TOKENS[::2] if context.quick else TOKENS:
            for kind in KINDS if tokens in PRODUCT_TOKENS else KINDS[:1]:
                yield (
                    fp4_point(FLASH, name, tokens, kind),
                    partial(measure, context, name, tokens, weights, kind),
                )


def run(context: Context) -> list[Row]:
    return guarded_all(SECTION, points(context))
