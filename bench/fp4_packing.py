"""Packing FP4 checkpoints that are on the GPU: the whole call, which waits for the device, and its bytes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial

import torch

import deep_gemm
from bench import data
from bench.context import Context
from bench.records import Row, guarded_all, median

SECTION = "fp4_packing"
LAYERS = ((64, 4096, 4096), (256, 4096, 2048), (1, 4096, 4096))  # experts, n, k
FORMS = ("mx_e4m3", "nv_single", "nv_exact")


def seconds(work: Callable[[], object], rounds: int) -> list[float]:
    """Microseconds of calls; a first one warms up."""
    samples = []
    for _ in range(rounds + 1):
        torch.cuda.synchronize()
        started = time.perf_counter()
        work()
        torch.cuda.synchronize()
        samples.append((time.perf_counter() - started) * 1e6)
    return samples[1:]


def measure(context: Context, form: str, experts: int, n: int, k: int) -> Row:
    point = f"{form} {experts}x{n}x{k}"
    nvfp4 = form.startswith("nv")
    span, group = ((0x38, 0x50), 16) if nvfp4 else ((115, 125), 32)
    codes = torch.randint(0, 256, (experts, n, k // 2), dtype=torch.uint8, device="cuda")
    scales = torch.randint(*span, (experts, n, k // group), dtype=torch.uint8, device="cuda")
    shared = torch.ones(experts, device="cuda") if nvfp4 else None
    packed = deep_gemm.pack_fp4_weights(codes, scales, shared, form=form)
    some = slice(0, 1)
    host = deep_gemm.pack_fp4_weights(
        codes[some].cpu(), scales[some].cpu(), None if shared is None else shared[some].cpu(), form=form
    )
    if packed.split or not torch.equal(packed.blobs[: host.blobs.numel()].cpu(), host.blobs):
        raise RuntimeError(f"{point}: the first expert's blobs are not the host's")
    num_bytes = data.num_bytes(codes, scales, packed.blobs, packed.row_scales)
    source, copy = (torch.empty(num_bytes // 2, dtype=torch.int8, device="cuda") for _ in range(2))
    del packed
    samples = {
        "ours": seconds(lambda: deep_gemm.pack_fp4_weights(codes, scales, shared, form=form), context.rounds),
        "device copy": seconds(lambda: copy.copy_(source), context.rounds),
    }
    us = {name: median(values) for name, values in samples.items()}
    metrics = {"gbs": num_bytes / us["ours"] / 1e3, "ratio": us["device copy"] / us["ours"]}
    return Row(SECTION, point, us["ours"], us["device copy"], "device copy", metrics, samples)


def points(context: Context) -> Iterator[tuple[str, Callable[[], Row]]]:
    for layer in LAYERS[:1] if context.quick else LAYERS:
        for form in FORMS:
            yield f"{form} {'x'.join(map(str, layer))}", partial(measure, context, form, *layer)
            torch.cuda.empty_cache()


def run(context: Context) -> list[Row]:
    return guarded_all(SECTION, points(context))
