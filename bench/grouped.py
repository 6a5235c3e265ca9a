"""Contiguous grouped FP8 products, both layouts, beside the dense kernel with as many rows in one matrix."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch

import deep_gemm
from bench import data, timing
from bench.context import Context
from bench.data import Rotation, Scaled, Tensor
from bench.dense import expected_us
from bench.records import Row, guarded_all, median, paired_ratio
from bench.targets import contiguous_point
from bench.timing import Variant

SECTION = "grouped"
GROUPS = ((8, 4096), (4, 8192), (32, 256))  # groups, rows of each
SHAPES = ((4096, 7168), (7168, 2048))


def reference_of(a: Scaled, b: Scaled, groups: int) -> Tensor:
    rows = a[0].shape[0] // groups
    parts = [
        data.product(
            data.dequantised((a[0][g * rows : (g + 1) * rows], a[1][g * rows : (g + 1) * rows])),
            data.dequantised((b[0][g], b[1][g]), 128),
        )
        for g in range(groups)
    ]
    return torch.cat(parts)


def variants_of(sets: Rotation, groups: int, rows: int) -> list[Variant]:
    index = torch.arange(groups, dtype=torch.int32, device="cuda").repeat_interleave(rows)
    ends = torch.arange(1, groups + 1, dtype=torch.int32, device="cuda") * rows

    def contiguous(i: int) -> None:
        a, scale_a, b, scale_b, d = sets[i]
        deep_gemm.m_grouped_fp8_gemm_nt_contiguous((a, scale_a), (b, scale_b), d, index)

    def psum(i: int) -> None:
        a, scale_a, b, scale_b, d = sets[i]
        deep_gemm.m_grouped_fp8_gemm_nt_contiguous(
            (a, scale_a), (b, scale_b), d, ends, use_psum_layout=True, expected_m_for_psum_layout=rows
        )

    def dense(i: int) -> None:
        a, scale_a, b, scale_b, d = sets[i]
        deep_gemm.fp8_gemm_nt((a, scale_a), (b[0], scale_b[0]), d)

    return [Variant("contiguous", contiguous), Variant("psum", psum), Variant("dense", dense)]


def measure(context: Context, groups: int, rows: int, n: int, k: int) -> Row:
    """The row of the contiguous layout; psum's is derived from it."""
    point = contiguous_point("contiguous", groups, rows, n, k)
    a, b = data.scaled_tokens(groups * rows, k), data.scaled_weights(groups, n, k)
    d = torch.empty(groups * rows, n, dtype=torch.bfloat16, device="cuda")
    reference = reference_of(a, b, groups)
    size, flops = data.num_bytes(*a, *b, d), 2 * groups * rows * n * k
    sets = Rotation.of((*a, *b, d), timing.num_sets_for(size))
    variants = variants_of(sets, groups, rows)
    errors, plans = {}, {}
    for variant in variants[:2]:
        data.poison(d)
        variant.launch(0)
        torch.cuda.synchronize()
        what = contiguous_point(variant.name, groups, rows, n, k)
        errors[variant.name] = data.require_close(d, reference, data.ERROR_LIMIT["fp8"], what)
        plans[variant.name] = deep_gemm.last_plan()
    bursts = timing.capture(variants, len(sets), expected_us(size, flops))
    samples = timing.interleave(bursts, context.rounds)
    us = {name: median(values) for name, values in samples.items()}
    metrics = {
        "tflops": flops / us["contiguous"] / 1e6,
        "psum_tflops": flops / us["psum"] / 1e6,
        "dense_tflops": flops / us["dense"] / 1e6,
        "of_dense": paired_ratio(samples["dense"], samples["contiguous"]),
        "psum_of_dense": paired_ratio(samples["dense"], samples["psum"]),
        "error": errors["contiguous"],
        "psum_error": errors["psum"],
    }
    metrics["ratio"] = metrics["of_dense"]
    note = f"{plans['contiguous']['spec']}; psum {us['psum']:.1f} us with {plans['psum']['spec']}"
    return Row(SECTION, point, us["contiguous"], us["dense"], "our dense, same rows", metrics, samples, note)


def points(context: Context) -> Iterator[tuple[str, Callable[[], Row]]]:
    for groups, rows in GROUPS[:1] if context.quick else GROUPS:
        for n, k in SHAPES:
            yield (
                contiguous_point("contiguous", groups, rows, n, k),
                partial(measure, context, groups, rows, n, k),
            )


def run(context: Context) -> list[Row]:
    return guarded_all(SECTION, points(context))
