"""Products that are added to what D holds, as gradients are, at the shapes of DeepGEMM's tests. The peer adds in place
as well: `torch.addmm` for BF16; for FP8, which it does not take, cuBLASLt's product and an addition after it.
"""

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
from bench.dense import expected_us
from bench.records import Row, guarded_all, median, paired_ratio
from bench.timing import Variant

SECTION = "accumulate"
PER_ROW = (1, 1, 128)  # FP8: both operands have a scale for each row and 128 of K
# |D - reference| / |reference| of an fp32 D, which is rounded nowhere. BF16: each of the K / 16 <= 96 steps of a sum in
# the tensor core loses less than one of 24 bits, 96 * 2^-23 = 1.1e-5, the float32 reference as much. FP8: the tensor
# core keeps 14 bits in each of the 4 steps over 128 of K, 4 * 2^-13 = 4.9e-4.
FP32_LIMIT = {"bf16": 3e-5, "fp8": 5e-4}


@dataclass(frozen=True)
class Case:
    """D = D + A B^T; `turned`: A and B are stored along M and N, as activations are in a weight's gradient."""

    ab: str
    d: str
    m: int
    n: int
    k: int
    turned: bool = False

    @property
    def point(self) -> str:
        form = " tn" if self.turned else ""
        return f"{self.ab}{form} to {self.d} m={self.m} n={self.n} k={self.k}"

    @property
    def limit(self) -> float:
        return FP32_LIMIT[self.ab] if self.d == "fp32" else data.ERROR_LIMIT[self.ab]


CASES = (
    Case("bf16", "bf16", 4096, 24576, 1536),
    Case("bf16", "bf16", 4096, 32768, 512),
    Case("bf16", "fp32", 32768, 4096, 512),
    Case("bf16", "fp32", 32768, 4096, 512, turned=True),
    Case("fp8", "fp32", 24576, 4096, 1536),
    Case("fp8", "fp32", 32768, 4096, 512),
)


@dataclass
class Problem:
    case: Case
    sets: Rotation  # a, b, with their scales for FP8; then c, d and the peer's d
    operands: int  # of A and B in a set, scales included
    reference: Tensor  # c + a b^T

    @staticmethod
    def make(case: Case) -> Problem:
        m, n, k = case.m, case.n, case.k
        if case.ab == "fp8":
            a, b = data.scaled_tokens(m, k), data.scaled_tokens(n, k)
            operands = (*a, *b)
            product = data.product(data.dequantised(a), data.dequantised(b))
        else:
            shapes = ((k, m), (k, n)) if case.turned else ((m, k), (n, k))
            operands = tuple(data.random_fp32(*shape).bfloat16() for shape in shapes)
            rows_a, rows_b = (x.t() if case.turned else x for x in operands)
            product = data.product(rows_a.float(), rows_b.float())
        # As large as what is added to it: a kernel that forgets one of them is far from the reference.
        c = (data.random_fp32(m, n) * k**0.5).to(torch.float32 if case.d == "fp32" else torch.bfloat16)
        tensors = (*operands, c, c.clone(), c.clone())
        num_sets = timing.num_sets_for(data.num_bytes(*operands, c))
        return Problem(case, Rotation.of(tensors, num_sets), len(operands), product.add_(c.float()))

    @property
    def num_bytes(self) -> int:
        """A and B once, and D once in and once out."""
        return data.num_bytes(*self.sets[0][: self.operands]) + 2 * data.num_bytes(self.sets[0][-2])

    def add(self, index: int, c: Tensor | None) -> None:
        operands, d = self.sets[index][: self.operands], self.sets[index][-2]
        if self.case.ab == "fp8":
            a, scale_a, b, scale_b = operands
            deep_gemm.fp8_gemm_nt((a, scale_a), (b, scale_b), d, c=c, recipe=PER_ROW)
            return
        a, b = operands
        if self.case.turned:
            deep_gemm.bf16_gemm_tn(a, b, d, c=c)
        else:
            deep_gemm.bf16_gemm_nt(a, b, d, c=c)

    def in_place(self, index: int) -> None:
        self.add(index, self.sets[index][-2])

    def from_elsewhere(self, index: int) -> None:
        self.add(index, self.sets[index][-3])

    def without_c(self, index: int) -> None:
        self.add(index, None)

    def check(self) -> float:
        """Of C elsewhere, into poisoned memory, and in place; the larger error."""
        c, d = self.sets[0][-3:-1]
        errors = []
        for launch, before in ((self.from_elsewhere, data.poison(d)), (self.in_place, c)):
            d.copy_(before)
            launch(0)
            torch.cuda.synchronize()
            errors.append(data.require_close(d, self.reference, self.case.limit, self.case.point))
        return max(errors)

    def peer(self) -> Variant:
        case = self.case
        if case.ab == "fp8":
            one = torch.ones((), device="cuda")
            product = torch.empty_like(self.sets[0][-1])

            def product_and_add(i: int) -> None:
                a, _, b, _ = self.sets[i][: self.operands]
                torch._scaled_mm(a, b.t(), one, one, out_dtype=product.dtype, out=product)
                self.sets[i][-1].add_(product)

            return Variant("cublaslt and add", product_and_add)
        wide: dict[str, Any] = {"out_dtype": torch.float32} if case.d == "fp32" else {}

        def addmm(i: int) -> None:
            a, b, d = *self.sets[i][: self.operands], self.sets[i][-1]
            left, right = (a.t(), b) if case.turned else (a, b.t())
            torch.addmm(d, left, right, out=d, **wide)

        return Variant("torch.addmm", addmm)


def measure(context: Context, case: Case) -> Row:
    problem = Problem.make(case)
    error = problem.check()
    plan = deep_gemm.last_plan()
    peer = problem.peer()
    variants = [
        Variant("ours", problem.in_place),
        peer,
        Variant("C elsewhere", problem.from_elsewhere),
        Variant("without C", problem.without_c),
    ]
    flops = 2 * case.m * case.n * case.k
    slower = 1 if case.ab == "fp8" else 2  # products of BF16
    bursts = timing.capture(variants, len(problem.sets), expected_us(problem.num_bytes, slower * flops))
    samples = timing.interleave(bursts, context.rounds)
    us = {name: median(values) for name, values in samples.items()}
    metrics = {
        "ratio": paired_ratio(samples[peer.name], samples["ours"]),
        "tflops": flops / us["ours"] / 1e6,
        "gbs": problem.num_bytes / us["ours"] / 1e3,
        "of_plain": paired_ratio(samples["without C"], samples["ours"]),
        "error": error,
    }
    others = ", ".join(f"{name} {us[name]:.1f} us" for name in ("C elsewhere", "without C"))
    note = f"{plan['spec']}, grid {plan['grid_blocks']}; {others}"
    return Row(SECTION, case.point, us["ours"], us[peer.name], peer.name, metrics, samples, note)


def points(context: Context) -> Iterator[tuple[str, Callable[[], Row]]]:
    for case in CASES[1::2] if context.quick else CASES:
        yield case.point, partial(measure, context, case)


def run(context: Context) -> list[Row]:
    return guarded_all(SECTION, points(context))
