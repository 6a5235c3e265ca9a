"""Dense FP8 products, row-major scales, beside cuBLASLt with one scale per tensor (torch._scaled_mm)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

import deep_gemm
from bench import data, timing
from bench.context import Context
from bench.data import Rotation, Tensor
from bench.records import Row, guarded_all, median, paired_ratio
from bench.targets import SHAPES, gemm_point
from bench.timing import Variant

SECTION = "dense"
M = (1, 16, 32, 64, 128, 256, 1024, 4096)
PEER_ROWS = 16  # _scaled_mm wants m to be a multiple of it
FASTEST_BYTES_PER_US, FASTEST_FLOPS_PER_US = 4e6, 1.3e9


def expected_us(num_bytes: int, flops: int) -> float:
    """A guess of the time, for the length of a burst."""
    return 2.0 + max(num_bytes / FASTEST_BYTES_PER_US, flops / FASTEST_FLOPS_PER_US)


@dataclass
class Problem:
    """Operands in rotation, and the result they must give."""

    m: int
    n: int
    k: int
    sets: Rotation  # a, scales of a, b, scales of b, d
    reference: Tensor

    @staticmethod
    def make(m: int, n: int, k: int) -> Problem:
        a, b = data.scaled_tokens(m, k), data.scaled_weights(n, k)
        d = torch.empty(m, n, dtype=torch.bfloat16, device="cuda")
        reference = data.product(data.dequantised(a), data.dequantised(b, 128))
        num_sets = timing.num_sets_for(data.num_bytes(*a, *b, d))
        return Problem(m, n, k, Rotation.of((*a, *b, d), num_sets), reference)

    def launch(self, index: int, spec: Any = None) -> None:
        a, scale_a, b, scale_b, d = self.sets[index]
        deep_gemm.fp8_gemm_nt((a, scale_a), (b, scale_b), d, spec=spec)

    @property
    def expected_us(self) -> float:
        return expected_us(data.num_bytes(*self.sets[0]), 2 * self.m * self.n * self.k)

    def check(self, what: str, spec: Any = None) -> float:
        """Runs set 0 into poisoned memory and compares; the relative error."""
        d = data.poison(self.sets[0][4])
        self.launch(0, spec)
        torch.cuda.synchronize()
        return data.require_close(d, self.reference, data.ERROR_LIMIT["fp8"], what)

    def check_burst(self, burst: timing.Burst, what: str) -> None:
        """The graph that was timed writes the same bits into every poisoned output of the rotation."""
        first = self.sets[0][4].clone()
        for index in range(len(self.sets)):
            data.poison(self.sets[index][4])
        burst.replay()
        for index in range(len(self.sets)):
            if not torch.equal(self.sets[index][4], first):
                raise AssertionError(f"{what}: the timed graph wrote something else into output {index}")


def peer_variant(problem: Problem, fast: bool) -> Variant:
    rows = -(-problem.m // PEER_ROWS) * PEER_ROWS
    repeats = -(-rows // problem.m)
    one = torch.ones((), device="cuda")
    padded = [one_set[0].repeat(repeats, 1)[:rows].contiguous() for one_set in problem.sets.sets]
    outputs = [torch.empty(rows, problem.n, dtype=torch.bfloat16, device="cuda") for _ in padded]

    def launch(i: int) -> None:
        b = problem.sets[i][2]
        torch._scaled_mm(
            padded[i], b.t(), one, one, out_dtype=torch.bfloat16, use_fast_accum=fast, out=outputs[i]
        )

    return Variant("cublaslt fast accumulation" if fast else "cublaslt", launch)


def measure(context: Context, m: int, n: int, k: int) -> Row:
    point = gemm_point(m, n, k)
    problem = Problem.make(m, n, k)
    error = problem.check(point)
    plan = deep_gemm.last_plan()
    variants = [
        Variant("ours", problem.launch),
        peer_variant(problem, fast=False),
        Variant("ours without pdl", problem.launch, pdl=False),
    ]
    if m >= 1024:
        variants.append(peer_variant(problem, fast=True))
    bursts = timing.capture(variants, len(problem.sets), problem.expected_us)
    problem.check(point)
    problem.check_burst(bursts["ours"], point)
    samples = timing.interleave(bursts, context.rounds)
    us = {name: median(values) for name, values in samples.items()}
    metrics = {
        "ratio": paired_ratio(samples["cublaslt"], samples["ours"]),
        "ratio_without_pdl": paired_ratio(samples["cublaslt"], samples["ours without pdl"]),
        "tflops": 2 * m * n * k / us["ours"] / 1e6,
        "gbs": data.num_bytes(*problem.sets[0]) / us["ours"] / 1e3,
        "error": error,
    }
    if context.read_gbs:
        metrics["percent_of_read"] = 100 * metrics["gbs"] / context.read_gbs
    note = f"{plan['spec']}, grid {plan['grid_blocks']}; without pdl {us['ours without pdl']:.2f} us"
    if "cublaslt fast accumulation" in us:
        metrics["ratio_fast"] = paired_ratio(samples["cublaslt fast accumulation"], samples["ours"])
        note += f"; cublaslt fast accumulation {us['cublaslt fast accumulation']:.1f} us"
    return Row(SECTION, point, us["ours"], us["cublaslt"], "cuBLASLt", metrics, samples, note)


def problems(quick: bool) -> list[tuple[int, int, int]]:
    m_values = (1, 64, 4096) if quick else M
    return [*((m, n, k) for n, k in SHAPES for m in m_values), (8192, 8192, 8192)]


def points(context: Context) -> Iterator[tuple[str, Callable[[], Row]]]:
    for m, n, k in problems(context.quick):
        yield gemm_point(m, n, k), partial(measure, context, m, n, k)


def run(context: Context) -> list[Row]:
    return guarded_all(SECTION, points(context))
