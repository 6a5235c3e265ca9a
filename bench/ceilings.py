"""What this GPU can do at most: a read-only stream, and the largest products of cuBLASLt."""

from __future__ import annotations

from typing import Any

import torch

from bench import timing
from bench.context import Context
from bench.data import random_fp32, scaled_tokens
from bench.records import Row, guarded_all, median
from bench.timing import Variant

SECTION = "ceilings"
STREAM_BYTES = 2 << 30
SIZE = 8192


def samples_of(context: Context, variant: Variant, expected_us: float, num_sets: int = 1) -> list[float]:
    bursts = timing.capture([variant], num_sets, expected_us)
    return timing.interleave(bursts, context.rounds)[variant.name]


def read_stream(context: Context) -> Row:
    x = random_fp32(STREAM_BYTES // 4)
    out = torch.empty((), device="cuda")
    samples = samples_of(context, Variant("amax", lambda i: torch.amax(x, 0, out=out)), 500.0)
    us = median(samples)
    context.read_gbs = STREAM_BYTES / us / 1e3
    return Row(
        SECTION,
        "read stream, amax over 2 GiB",
        us,
        metrics={"gbs": context.read_gbs},
        samples={"amax": samples},
    )


def copy_stream(context: Context) -> Row:
    x = random_fp32(STREAM_BYTES // 8)
    y = torch.empty_like(x)
    samples = samples_of(context, Variant("copy", lambda i: y.copy_(x)), 500.0)
    us = median(samples)
    metrics = {"gbs": STREAM_BYTES / us / 1e3}
    return Row(SECTION, "device copy, 1 GiB read and written", us, metrics=metrics, samples={"copy": samples})


def product(context: Context, name: str, a: Any, b: Any, multiply: Any) -> Row:
    d = torch.empty(SIZE, SIZE, dtype=torch.bfloat16, device="cuda")
    samples = samples_of(context, Variant(name, lambda i: multiply(a, b.t(), d)), 1000.0)
    us = median(samples)
    return Row(SECTION, name, us, metrics={"tflops": 2 * SIZE**3 / us / 1e6}, samples={name: samples})


def fp8_product(context: Context, fast: bool) -> Row:
    one = torch.ones((), device="cuda")

    def multiply(a: Any, b: Any, d: Any) -> None:
        torch._scaled_mm(a, b, one, one, out_dtype=d.dtype, use_fast_accum=fast, out=d)

    # Codes over the whole range, as quantised operands have them: they cost more power than small ones.
    a, b = (scaled_tokens(SIZE, SIZE)[0] for _ in range(2))
    return product(context, f"cuBLASLt FP8 8192^3{', fast accumulation' if fast else ''}", a, b, multiply)


def bf16_product(context: Context) -> Row:
    def multiply(a: Any, b: Any, d: Any) -> None:
        torch.mm(a, b, out=d)

    a, b = (random_fp32(SIZE, SIZE).bfloat16() for _ in range(2))
    return product(context, "cuBLAS BF16 8192^3", a, b, multiply)


def run(context: Context) -> list[Row]:
    points = {
        "read stream": lambda: read_stream(context),
        "device copy": lambda: copy_stream(context),
        "cuBLASLt FP8 8192^3": lambda: fp8_product(context, fast=False),
        "cuBLASLt FP8 8192^3, fast accumulation": lambda: fp8_product(context, fast=True),
        "cuBLAS BF16 8192^3": lambda: bf16_product(context),
    }
    return guarded_all(SECTION, iter(points.items()))
