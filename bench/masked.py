"""Masked grouped FP8 products with few rows: how much of the read bandwidth the weights stream at."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch

import deep_gemm
from bench import data, timing
from bench.context import Context
from bench.data import Rotation
from bench.dense import expected_us
from bench.records import Row, guarded_all, median
from bench.targets import MASKED_M, masked_point
from bench.timing import Variant

SECTION = "masked"
GROUPS, MAX_M = 8, 512
SHAPES = ((4096, 7168), (7168, 2048))


def measure(context: Context, m: int, n: int, k: int) -> Row:
    point = masked_point(m, n, k)
    a, b = data.scaled_tokens(GROUPS, MAX_M, k), data.scaled_weights(GROUPS, n, k)
    d = torch.empty(GROUPS, MAX_M, n, dtype=torch.bfloat16, device="cuda")
    masked_m = torch.full((GROUPS,), m, dtype=torch.int32, device="cuda")
    sets = Rotation.of((*a, *b, d), timing.num_sets_for(data.num_bytes(*b)))

    def launch(i: int) -> None:
        a_i, scale_a, b_i, scale_b, d_i = sets[i]
        deep_gemm.m_grouped_fp8_gemm_nt_masked((a_i, scale_a), (b_i, scale_b), d_i, masked_m, m)

    data.poison(d)
    launch(0)
    torch.cuda.synchronize()
    reference = data.product(
        data.dequantised((a[0][:, :m], a[1][:, :m])),
        data.dequantised(b, 128),
    )
    error = data.require_close(d[:, :m], reference, data.ERROR_LIMIT["fp8"], point)
    plan = deep_gemm.last_plan()

    tokens = data.num_bytes(a[0][:, :m], a[1][:, :m], d[:, :m])
    size, flops = data.num_bytes(*b) + tokens, 2 * GROUPS * m * n * k
    variants = [Variant("ours", launch), Variant("ours without pdl", launch, pdl=False)]
    bursts = timing.capture(variants, len(sets), expected_us(size, flops))
    samples = timing.interleave(bursts, context.rounds)
    us = median(samples["ours"])
    metrics = {"gbs": size / us / 1e3, "tflops": flops / us / 1e6, "error": error}
    if context.read_gbs:
        metrics["percent_of_read"] = 100 * metrics["gbs"] / context.read_gbs
    note = f"{plan['spec']}, grid {plan['grid_blocks']}; without pdl {median(samples['ours without pdl']):.2f} us"
    return Row(SECTION, point, us, metrics=metrics, samples=samples, note=note)


def points(context: Context) -> Iterator[tuple[str, Callable[[], Row]]]:
    for n, k in SHAPES[:1] if context.quick else SHAPES:
        for m in MASKED_M[::2] if context.quick else MASKED_M:
            yield masked_point(m, n, k), partial(measure, context, m, n, k)


def run(context: Context) -> list[Row]:
    return guarded_all(SECTION, points(context))
