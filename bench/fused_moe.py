"""fused_moe of DeepSeek-V4-Flash over MXFP4 weights, everything included, beside its two GEMMs alone: with a scale for
128 channels, with one for each token, with bf16 activations and with products of bf16.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

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
FEW_TOKENS = (1, 64, 1024)  # where the other kinds are measured
KINDS: dict[str, dict[str, bool]] = {
    "": {},
    "per_token": {"per_token": True},
    "bf16": {"bf16_activations": True},
    "bf16_products": {"bf16_activations": True, "bf16_products": True},
}


def activations(rows: int, k: int, kind: str) -> Any:
    if kind.startswith("bf16"):
        return torch.randn(rows, k, device="cuda").bfloat16()
    values, scales = data.scaled_tokens(rows, k)
    return values, scales[:, :1].expand(-1, scales.shape[1]) if kind == "per_token" else scales


def gemm_variants(
    tokens: int, w13: deep_gemm.Fp4Weights, w2: deep_gemm.Fp4Weights, kind: str
) -> list[Variant]:
    """Routings as bench/fp4.py has them, of as many experts."""
    variants = []
    for name, weights in (("gate+up", w13), ("down", w2)):
        gate_up = name == "gate+up"
        a = activations(tokens if gate_up else tokens * TOP_K, weights.k, kind)
        d = torch.empty(tokens * TOP_K, weights.n, dtype=torch.bfloat16, device="cuda")
        variants.append(
            Variant(
                name,
                Layer(weights, a, d, routings(tokens, gate_up), bf16_products=kind == "bf16_products").launch,
            )
        )
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


def measure(
    context: Context, tokens: int, w13: deep_gemm.Fp4Weights, w2: deep_gemm.Fp4Weights, kind: str
) -> Row:
    point, options = fused_moe_point(tokens, kind), KINDS[kind]
    chosen = experts_of(tokens)
    x = torch.randn(tokens, FLASH.hidden, device="cuda").bfloat16()
    weights = torch.rand(tokens, TOP_K, device="cuda")
    out = torch.empty(tokens, FLASH.hidden, dtype=torch.bfloat16, device="cuda")
    shape = (tokens, TOP_K, EXPERTS, FLASH.hidden, FLASH.intermediate)
    bf16 = "bf16_activations" in options
    space = deep_gemm.moe_workspace(x, *shape, fp4=True, bf16_activations=bf16)

    def whole(i: int) -> None:
        deep_gemm.fused_moe(x, chosen[i], weights, w13, w2, out, workspace=space, **options)

    variants = [Variant("ours", whole), *gemm_variants(tokens, w13, w2, kind)]
    samples = timing.interleave(timing.capture(variants, len(chosen), 40 + 10 * tokens**0.6), context.rounds)
    gemms = [a + b for a, b in zip(samples["gate+up"], samples["down"], strict=True)]
    samples = {"ours": samples["ours"], "its two GEMMs": gemms}
    if not bool(torch.isfinite(out.float()).all()):
        raise RuntimeError(f"{point}: an output is not finite")
    us = {name: median(values) for name, values in samples.items()}
    metrics = {"us": us["ours"], "of_gemms": us["ours"] / us["its two GEMMs"]}
    return Row(SECTION, point, us["ours"], us["its two GEMMs"], "its two GEMMs", metrics, samples)


def points(context: Context) -> Iterator[tuple[str, Callable[[], Row]]]:
    w13, w2 = (random_weights(EXPERTS, n, k, "mx_e4m3") for _, n, k in FLASH.shapes)
    for tokens in TOKENS[::2] if context.quick else TOKENS:
        for kind in KINDS if tokens in FEW_TOKENS else ("",):
            yield fused_moe_point(tokens, kind), partial(measure, context, tokens, w13, w2, kind)


def run(context: Context) -> list[Row]:
    return guarded_all(SECTION, points(context))
