"""Dense BF16 products beside torch.mm."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch

import deep_gemm
from bench import data, timing
from bench.context import Context
from bench.data import Rotation
from bench.dense import expected_us
from bench.records import Row, guarded_all, median, paired_ratio
from bench.targets import gemm_point
from bench.timing import Variant

SECTION = "bf16"
SHAPES = ((4096, 7168), (7168, 2048))
M = (1, 16, 64, 128, 1024, 4096)


def measure(context: Context, m: int, n: int, k: int) -> Row:
    point = gemm_point(m, n, k)
    a, b = data.random_fp32(m, k).bfloat16(), data.random_fp32(n, k).bfloat16()
    d = torch.empty(m, n, dtype=torch.bfloat16, device="cuda")
    reference = data.product(a.float(), b.float())
    deep_gemm.bf16_gemm_nt(a, b, data.poison(d))
    torch.cuda.synchronize()
    error = data.require_close(d, reference, data.ERROR_LIMIT["bf16"], point)
    plan = deep_gemm.last_plan()

    size, flops = data.num_bytes(a, b, d), 2 * m * n * k
    sets = Rotation.of((a, b, d, torch.empty_like(d)), timing.num_sets_for(size))

    def ours(i: int) -> None:
        deep_gemm.bf16_gemm_nt(*sets[i][:3])

    def peer(i: int) -> None:
        torch.mm(sets[i][0], sets[i][1].t(), out=sets[i][3])

    variants = [Variant("ours", ours), Variant("torch.mm", peer)]
    bursts = timing.capture(variants, len(sets), 2 * expected_us(size // 2, flops))
    samples = timing.interleave(bursts, context.rounds)
    us = median(samples["ours"])
    metrics = {
        "ratio": paired_ratio(samples["torch.mm"], samples["ours"]),
        "tflops": flops / us / 1e6,
        "gbs": size / us / 1e3,
        "error": error,
    }
    note = f"{plan['spec']}, grid {plan['grid_blocks']}"
    return Row(SECTION, point, us, median(samples["torch.mm"]), "torch.mm", metrics, samples, note)


def problems(quick: bool) -> list[tuple[int, int, int]]:
    m_values = (1, 4096) if quick else M
    return [*((m, n, k) for n, k in SHAPES for m in m_values), (8192, 8192, 8192)]


def points(context: Context) -> Iterator[tuple[str, Callable[[], Row]]]:
    for m, n, k in problems(context.quick):
        yield gemm_point(m, n, k), partial(measure, context, m, n, k)


def run(context: Context) -> list[Row]:
    return guarded_all(SECTION, points(context))
