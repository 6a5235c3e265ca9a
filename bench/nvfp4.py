"""NVFP4 weights x FP8 activations of the layer of bench/fp4.py, beside MXFP4 in the same rounds and routings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch

import deep_gemm
from bench import data, timing
from bench.context import Context
from bench.fp4 import EXPERTS, SHAPES, TOP_K, Layer, routings, speed_metrics
from bench.fp4_weights import random_weights
from bench.records import Row, guarded_all, median, paired_ratio
from bench.targets import NVFP4_TOKENS, nvfp4_point
from bench.timing import Variant

SECTION = "nvfp4"
FORMS = ("nv_single", "nv_exact")


def measure(
    context: Context, form: str, name: str, tokens: int, weights: dict[str, deep_gemm.Fp4Weights]
) -> Row:
    n, k = SHAPES[name]
    point = nvfp4_point(form, name, n, k, tokens)
    gate_up = name == "gate+up"
    lists = routings(tokens, gate_up)
    a = data.scaled_tokens(tokens if gate_up else tokens * TOP_K, k)
    d = torch.empty(tokens * TOP_K, n, dtype=torch.bfloat16, device="cuda")
    ours, mxfp4 = (Layer(weights[which], a, d, lists) for which in (form, "mx_e4m3"))
    mxfp4.check(point)
    error = ours.check(point)
    plan = deep_gemm.last_fp4_plan()
    assert plan is not None
    spec = plan["spec"]
    variants = [
        Variant("ours", ours.launch),
        Variant("mxfp4", mxfp4.launch),
        Variant("copies only", lambda i: ours.launch(i, spec.replace(copies_only=True))),
    ]
    active = sum(len(one.experts) for one in lists) / len(lists)
    weight_bytes = active * data.num_bytes(weights[form].blobs, weights[form].row_scales) / EXPERTS
    flops = 2 * tokens * TOP_K * n * k
    expected = max(weight_bytes / 4e6, flops / 7e8) + 5
    samples = timing.interleave(timing.capture(variants, len(lists), expected), context.rounds)
    us = {variant: median(values) for variant, values in samples.items()}
    metrics = {
        "ratio": paired_ratio(samples["mxfp4"], samples["ours"]),
        **speed_metrics(context, samples, weight_bytes, flops),
        "error": error,
    }
    note = f"{spec}, grid {plan['grid_blocks']}; {active:.0f} experts; copies only {us['copies only']:.1f} us"
    return Row(SECTION, point, us["ours"], us["mxfp4"], "mxfp4", metrics, samples, note)


def points(context: Context) -> Iterator[tuple[str, Callable[[], Row]]]:
    for name, (n, k) in SHAPES.items():
        # Both forms read the same bytes.
        weights = {form: random_weights(EXPERTS, n, k, form) for form in ("mx_e4m3", "nv_single")}
        single = weights["nv_single"]
        weights["nv_exact"] = deep_gemm.Fp4Weights(
            single.blobs, single.row_scales, None, EXPERTS, n, k, "nv_exact"
        )
        for tokens in NVFP4_TOKENS[::2] if context.quick else NVFP4_TOKENS:
            for form in FORMS:
                yield (
                    nvfp4_point(form, name, n, k, tokens),
                    partial(measure, context, form, name, tokens, weights),
                )


def run(context: Context) -> list[Row]:
    return guarded_all(SECTION, points(context))
