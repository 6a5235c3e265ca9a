"""DeepGEMM's own kernels beside ours and cuBLASLt in the same rounds, where a built DeepGEMM is named.

Its Python package and ours have one name: it is loaded from its folder under another. Its scales are brought into the
layout that its kernels read before the clock starts; ours are read as quantisers leave them, row by row. Ours launch
with programmatic dependent launch, which DeepGEMM leaves off unless it is asked for: it is timed both ways.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

import deep_gemm
from bench import data, dense, grouped, masked, timing
from bench.context import Context
from bench.data import Rotation
from bench.records import Row, guarded_all, median, paired_ratio
from bench.targets import SHAPES, contiguous_point, gemm_point, masked_point
from bench.timing import Variant

SECTION = "deepgemm"
NAME = "deepgemm_peer"
M = (1, 16, 64, 128, 256, 1024, 4096)
MASKED_M = (1, 16, 64)


def load(folder: Path) -> Any:
    """The package in `folder`, as a module that is not called deep_gemm."""
    if NAME in sys.modules:
        return sys.modules[NAME]
    found = importlib.util.spec_from_file_location(
        NAME, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    if found is None or found.loader is None or not (folder / "__init__.py").exists():
        raise FileNotFoundError(
            f"got {folder}, expected the folder of a built DeepGEMM package, with __init__.py in it"
        )
    module = importlib.util.module_from_spec(found)
    sys.modules[NAME] = module
    found.loader.exec_module(module)
    return module


def with_pdl(peer: Any, launch: Callable[[int], None]) -> Variant:
    """The peer's launch as its set_pdl(True) makes it."""

    def switched(i: int) -> None:
        peer.set_pdl(True)
        try:
            launch(i)
        finally:
            peer.set_pdl(False)

    return Variant("deepgemm with pdl", switched)


def row_of(
    point: str, variants: list[Variant], num_sets: int, expected_us: float, flops: float, rounds: int
) -> Row:
    """Of "ours", "deepgemm", that "with pdl", and perhaps "cublaslt"."""
    samples = timing.interleave(timing.capture(variants, num_sets, expected_us), rounds)
    us = {name: median(values) for name, values in samples.items()}
    metrics = {
        "ratio": paired_ratio(samples["deepgemm"], samples["ours"]),
        "ratio_peer_pdl": paired_ratio(samples["deepgemm with pdl"], samples["ours"]),
        "tflops": flops / us["ours"] / 1e6,
    }
    if "cublaslt" in samples:
        metrics["of_cublaslt"] = paired_ratio(samples["cublaslt"], samples["ours"])
        metrics["peer_of_cublaslt"] = paired_ratio(samples["cublaslt"], samples["deepgemm"])
    return Row(SECTION, point, us["ours"], us["deepgemm"], "DeepGEMM", metrics, samples)


def measure_dense(context: Context, peer: Any, m: int, n: int, k: int) -> Row:
    problem = dense.Problem.make(m, n, k)
    scales = peer_scales(peer, problem.sets)

    def theirs(i: int) -> None:
        a, _, b, scale_b, d = problem.sets[i]
        peer.fp8_gemm_nt((a, scales[i]), (b, scale_b), d)

    point = gemm_point(m, n, k)
    problem.check(point)
    d = data.poison(problem.sets[0][4])
    theirs(0)
    data.require_close(d, problem.reference, data.ERROR_LIMIT["fp8"], f"{point}, DeepGEMM")
    variants = [
        Variant("ours", problem.launch),
        Variant("deepgemm", theirs),
        with_pdl(peer, theirs),
        dense.peer_variant(problem, fast=False),
    ]
    return row_of(point, variants, len(problem.sets), problem.expected_us, 2 * m * n * k, context.rounds)


def grouped_operands(groups: int, rows: int, n: int, k: int) -> Rotation:
    """Sets of [groups, rows, k] tokens and [groups, n, k] weights, with their scales, and [groups, rows, n] outputs."""
    a, b = data.scaled_tokens(groups, rows, k), data.scaled_weights(groups, n, k)
    d = torch.empty(groups, rows, n, dtype=torch.bfloat16, device="cuda")
    return Rotation.of((*a, *b, d), timing.num_sets_for(data.num_bytes(*b)))


def peer_scales(peer: Any, sets: Rotation) -> list[Any]:
    """The tokens' scales of each set as the peer's kernels read them."""
    return [peer.get_mn_major_tma_aligned_tensor(one[1]) for one in sets.sets]


def same_results(
    sets: Rotation, rows: int, ours: Callable[[int], None], theirs: Callable[[int], None]
) -> None:
    """Our result has a reference in the sections of the grouped kernels; the peer's must be close to it."""
    d = data.poison(sets[0][4])
    ours(0)
    reference = d[:, :rows].float()
    data.poison(d)
    theirs(0)
    data.require_close(d[:, :rows], reference, data.ERROR_LIMIT["fp8"], "DeepGEMM")


def measure_contiguous(context: Context, peer: Any, groups: int, rows: int, n: int, k: int) -> Row:
    m = groups * rows
    sets = grouped_operands(groups, rows, n, k)
    flat = Rotation(
        [
            (a.view(m, k), scale_a.view(m, -1), b, scale_b, d.view(m, n))
            for a, scale_a, b, scale_b, d in sets.sets
        ]
    )
    scales = peer_scales(peer, flat)
    index = torch.arange(groups, dtype=torch.int32, device="cuda").repeat_interleave(rows)

    def ours(i: int) -> None:
        a, scale_a, b, scale_b, d = flat[i]
        deep_gemm.m_grouped_fp8_gemm_nt_contiguous((a, scale_a), (b, scale_b), d, index)

    def theirs(i: int) -> None:
        a, _, b, scale_b, d = flat[i]
        peer.m_grouped_fp8_gemm_nt_contiguous((a, scales[i]), (b, scale_b), d, index)

    same_results(sets, rows, ours, theirs)
    flops = 2 * m * n * k
    variants = [Variant("ours", ours), Variant("deepgemm", theirs), with_pdl(peer, theirs)]
    expected = dense.expected_us(0, flops)
    return row_of(
        contiguous_point("contiguous", groups, rows, n, k),
        variants,
        len(flat),
        expected,
        flops,
        context.rounds,
    )


def measure_masked(context: Context, peer: Any, m: int, n: int, k: int) -> Row:
    groups = masked.GROUPS
    sets = grouped_operands(groups, masked.MAX_M, n, k)
    scales = peer_scales(peer, sets)
    counts = torch.full((groups,), m, dtype=torch.int32, device="cuda")

    def ours(i: int) -> None:
        a, scale_a, b, scale_b, d = sets[i]
        deep_gemm.m_grouped_fp8_gemm_nt_masked((a, scale_a), (b, scale_b), d, counts, m)

    def theirs(i: int) -> None:
        a, _, b, scale_b, d = sets[i]
        peer.m_grouped_fp8_gemm_nt_masked((a, scales[i]), (b, scale_b), d, counts, m)

    same_results(sets, m, ours, theirs)
    variants = [Variant("ours", ours), Variant("deepgemm", theirs), with_pdl(peer, theirs)]
    expected = dense.expected_us(data.num_bytes(*sets[0][2:4]), 0)
    return row_of(
        masked_point(m, n, k), variants, len(sets), expected, 2 * groups * m * n * k, context.rounds
    )


def points(context: Context, peer: Any) -> Iterator[tuple[str, Callable[[], Row]]]:
    m_values, masked_m = (M[::3], MASKED_M[::2]) if context.quick else (M, MASKED_M)
    groups_of_rows = grouped.GROUPS[:1] if context.quick else grouped.GROUPS
    for m, n, k in [*((m, n, k) for n, k in SHAPES for m in m_values), (8192, 8192, 8192)]:
        yield gemm_point(m, n, k), partial(measure_dense, context, peer, m, n, k)
    for groups, rows in groups_of_rows:
        for n, k in grouped.SHAPES:
            point = contiguous_point("contiguous", groups, rows, n, k)
            yield point, partial(measure_contiguous, context, peer, groups, rows, n, k)
    for n, k in grouped.SHAPES:
        for m in masked_m:
            yield masked_point(m, n, k), partial(measure_masked, context, peer, m, n, k)


def run(context: Context) -> list[Row]:
    if context.deepgemm is None:
        return []
    return guarded_all(SECTION, points(context, load(context.deepgemm)))
