"""fused_moe of DeepSeek-V4-Flash over MXFP4 weights, everything included, beside its two GEMMs alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch

import deep_gemm
from bench import data, timing
from bench.context import Context
from bench.fp4 import EXPERTS, FLASH, TOP_K, Layer, routings
from bench.fp4_weights import random_weights
from bench.records import Row, guarded_all, median
from bench.targets import fused_moe_point
from bench.timing import Variant

SECTION = "fused_moe"
TOKENS = (1, 16, 64, 256, 1024, 4096)


def gemm_variants(tokens: int, w13: deep_gemm.Fp4Weights, w2: deep_gemm.Fp4Weights) -> list[Variant]:
    """Routings as bench/fp4.py has them, of as many experts."""
    variants = []
    for name, weights in (("gate+up", w13), ("down", w2)):
        gate_up = name == "gate+up"
        a = data.scaled_tokens(tokens if gate_up else tokens * TOP_K, weights.k)
        d = torch.empty(tokens * TOP_K, weights.n, dtype=torch.bfloat16, device="cuda")
        variants.append(Variant(name, Layer(weights, a, d, routings(tokens, gate_up)).launch))
    return variants


def experts_of(tokens: int) -> list[torch.Tensor]:
    """The experts of each token, of the routings of bench/fp4.py."""
    found = []
    for one in routings(tokens, False):
        pairs = one.d_rows.long()  # of each slot
        experts = torch.repeat_interleave(torch.tensor(one.experts), torch.tensor(one.counts))
        ids = torch.empty(tokens * TOP_K, dtype=torch.int32)
        ids[pairs.cpu()] = experts.int()
        found.append(ids.reshape(tokens, TOP_K).cuda())
    return found


def measure(context: Context, tokens: int, w13: deep_gemm.Fp4Weights, w2: deep_gemm.Fp4Weights) -> Row:
    chosen = experts_of(tokens)
    x = torch.randn(tokens, FLASH.hidden, device="cuda").bfloat16()
    weights = torch.rand(tokens, TOP_K, device="cuda")
    out = torch.empty(tokens, FLASH.hidden, dtype=torch.bfloat16, device="cuda")
    space = deep_gemm.moe_workspace(x, tokens, TOP_K, EXPERTS, FLASH.hidden, FLASH.intermediate, fp4=True)

    def whole(i: int) -> None:
        deep_gemm.fused_moe(x, chosen[i], weights, w13, w2, out, workspace=space)

    variants = [Variant("ours", whole), *gemm_variants(tokens, w13, w2)]
    samples = timing.interleave(timing.capture(variants, len(chosen), 40 + 10 * tokens**0.6), context.rounds)
    gemms = [a + b for a, b in zip(samples["gate+up"], samples["down"], strict=True)]
    samples = {"ours": samples["ours"], "its two GEMMs": gemms}
    if not bool(torch.isfinite(out.float()).all()):
        raise RuntimeError(f"{fused_moe_point(tokens)}: an output is not finite")
    us = {name: median(values) for name, values in samples.items()}
    metrics = {"us": us["ours"], "of_gemms": us["ours"] / us["its two GEMMs"]}
    return Row(
        SECTION, fused_moe_point(tokens), us["ours"], us["its two GEMMs"], "its two GEMMs", metrics, samples
    )


def points(context: Context) -> Iterator[tuple[str, Callable[[], Row]]]:
    w13, w2 = (random_weights(EXPERTS, n, k, "mx_e4m3") for _, n, k in FLASH.shapes)
    for tokens in TOKENS[::2] if context.quick else TOKENS:
        yield fused_moe_point(tokens), partial(measure, context, tokens, w13, w2)


def run(context: Context) -> list[Row]:
    return guarded_all(SECTION, points(context))
