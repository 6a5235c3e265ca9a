"""The points of the grouped FP8 tables as contests of their plans: both contiguous layouts, and masked groups.

Plans may add in different orders, so each is compared with the float32 reference as the tables' own rows are.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

import deep_gemm
from bench import data, grouped, masked, timing
from bench.contest import Contest, Table
from bench.data import Rotation, Tensor
from bench.dense import expected_us
from bench.targets import MASKED_M, contiguous_point, masked_point
from deep_gemm import _C


def contest_of(
    problem: str,
    sets: Rotation,
    result: Tensor,
    reference: Tensor,
    flops: int,
    launch: Callable[[int, Any], None],
) -> Contest:
    """`result`: the part of the first set's output that the reference has."""
    specs = [one["spec"] for one in _C.candidates(problem) if one["rejected"] is None]
    d = sets[0][4]

    def check(what: str, spec: Any) -> None:
        data.poison(d)
        launch(0, spec)
        torch.cuda.synchronize()
        data.require_close(result, reference, data.ERROR_LIMIT["fp8"], what)

    size = data.num_bytes(*sets[0][:4], result)
    return Contest(_C.plan(problem)["spec"], specs, launch, check, len(sets), expected_us(size, flops))


def contiguous(psum: bool, groups: int, rows: int, n: int, k: int) -> Contest:
    a, b = data.scaled_tokens(groups * rows, k), data.scaled_weights(groups, n, k)
    d = torch.empty(groups * rows, n, dtype=torch.bfloat16, device="cuda")
    reference = grouped.reference_of(a, b, groups)
    sets = Rotation.of((*a, *b, d), timing.num_sets_for(data.num_bytes(*a, *b, d)))
    index = torch.arange(groups, dtype=torch.int32, device="cuda").repeat_interleave(rows)
    ends = torch.arange(1, groups + 1, dtype=torch.int32, device="cuda") * rows
    layout: dict[str, Any] = (
        {"grouped_layout": ends, "use_psum_layout": True, "expected_m_for_psum_layout": rows}
        if psum
        else {"grouped_layout": index}
    )

    def launch(i: int, spec: Any) -> None:
        a_i, scale_a, b_i, scale_b, d_i = sets[i]
        deep_gemm.m_grouped_fp8_gemm_nt_contiguous((a_i, scale_a), (b_i, scale_b), d_i, **layout, spec=spec)

    form = f"psum expected_m={rows}" if psum else "contiguous"
    problem = f"gemm {form} groups={groups} m={groups * rows} n={n} k={k}"
    return contest_of(problem, sets, sets[0][4], reference, 2 * groups * rows * n * k, launch)


def masked_groups(m: int, n: int, k: int) -> Contest:
    groups, max_m = masked.GROUPS, masked.MAX_M
    a, b = data.scaled_tokens(groups, max_m, k), data.scaled_weights(groups, n, k)
    d = torch.empty(groups, max_m, n, dtype=torch.bfloat16, device="cuda")
    masked_m = torch.full((groups,), m, dtype=torch.int32, device="cuda")
    sets = Rotation.of((*a, *b, d), timing.num_sets_for(data.num_bytes(*b)))
    reference = data.product(data.dequantised((a[0][:, :m], a[1][:, :m])), data.dequantised(b, 128))

    def launch(i: int, spec: Any) -> None:
        a_i, scale_a, b_i, scale_b, d_i = sets[i]
        deep_gemm.m_grouped_fp8_gemm_nt_masked((a_i, scale_a), (b_i, scale_b), d_i, masked_m, m, spec=spec)

    problem = f"gemm masked groups={groups} m={max_m} expected_m={m} n={n} k={k}"
    return contest_of(problem, sets, sets[0][4][:, :m], reference, 2 * groups * m * n * k, launch)


def table(quick: bool) -> Table:
    points: dict[str, Callable[[], Contest]] = {}
    for n, k in masked.SHAPES[:1] if quick else masked.SHAPES:
        for m in MASKED_M[::2] if quick else MASKED_M:
            points[masked_point(m, n, k)] = partial(masked_groups, m, n, k)
    for groups, rows in grouped.GROUPS[:1] if quick else grouped.GROUPS:
        for n, k in grouped.SHAPES:
            for psum in (False, True):
                point = contiguous_point("psum" if psum else "contiguous", groups, rows, n, k)
                points[point] = partial(contiguous, psum, groups, rows, n, k)
    return Table(points)
