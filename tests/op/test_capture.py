"""GEMMs captured on the emulated device: nothing runs in the capture, and each replay reads and checks what its tensors
hold by then.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from gemm_cases import Array, Case, argument, check_close, group_rows, poisoned, random_operand
from reference import gemm as reference

import deep_gemm
from deep_gemm import _C

GROUPED = (128, 5, 200)
MASKED = (130, 0, 2)


@dataclass
class Problem:
    """One BF16 GEMM; `rows` says which rows of D (a boolean mask) it must write."""

    case: Case
    function: Callable[..., None]
    a: Array
    b: Array
    d: Array
    layout: list[Array] = field(default_factory=list)
    keywords: dict[str, Any] = field(default_factory=dict)

    @staticmethod
    def make(form: str) -> Problem:
        rng = np.random.default_rng(0)
        if form == "dense":
            case, m, groups = Case(130, 192, 320, ab="bf16"), (130,), ()
        elif form == "masked":
            case, m, groups = Case(130, 96, 192, ab="bf16", rows=MASKED), (3, 130), (3,)
        else:
            case, m, groups = Case(0, 96, 192, ab="bf16", rows=GROUPED), (group_rows(GROUPED)[1],), (3,)
        a, b = (random_operand(rng, shape, case, 1) for shape in ((*m, case.k), (*groups, case.n, case.k)))
        p = Problem(case, deep_gemm.bf16_gemm_nt, a, b, poisoned((*m, case.n), case))
        if form == "masked":
            p.function, p.layout = deep_gemm.m_grouped_bf16_gemm_nt_masked, [np.array(MASKED, np.int32)]
            p.keywords["expected_m"] = 44
        elif form != "dense":
            p.function, p.layout = deep_gemm.m_grouped_bf16_gemm_nt_contiguous, [group_rows(GROUPED)[0]]
        if form == "psum":
            p.layout = [np.array([128, 133, 456], np.int32)]
            p.keywords |= {"use_psum_layout": True, "expected_m_for_psum_layout": 111}
        return p

    def capture(self, device: _C.Device) -> tuple[Any, Any]:
        stream = device.create_stream()
        device.begin_capture(stream)
        arguments = [argument(device, self.a), argument(device, self.b), self.d, *self.layout]
        self.function(*arguments, **self.keywords, device=device, stream=stream)
        return device.end_capture(stream), stream

    def check(self) -> None:
        if not self.layout:
            return check_close(self.d, reference.gemm(self.a, self.b, None), self.case)
        if "expected_m" in self.keywords:
            d, magnitude = reference.masked(self.a, self.b, self.layout[0])
            written = np.arange(self.case.m) < self.layout[0][:, None]
        else:
            psum = "use_psum_layout" in self.keywords
            group = reference.groups_of_psum(self.layout[0], len(self.d)) if psum else self.layout[0]
            d, magnitude = reference.contiguous(self.a, self.b, group)
            written = group >= 0
        check_close(self.d[written], (d[written], magnitude[written]), self.case)
        return None


def poison(d: Array) -> None:
    d.view(np.uint8)[...] = 0xFF


@pytest.mark.parametrize("form", ["dense", "contiguous", "psum", "masked"])
def test_replay_reads_what_the_tensors_hold(emulator: _C.Device, form: str) -> None:
    problem = Problem.make(form)
    graph, stream = problem.capture(emulator)
    assert (problem.d.view(np.uint8) == 0xFF).all(), "capture must not run anything"
    for factor in (1, -2):
        problem.a *= np.array(factor, problem.a.dtype)
        poison(problem.d)
        emulator.launch_graph(graph, stream=stream)
        problem.check()


def test_a_layout_is_checked_at_replay(emulator: _C.Device) -> None:
    problem = Problem.make("contiguous")
    (layout,) = problem.layout
    right = layout.copy()
    graph, stream = problem.capture(emulator)
    layout[5] = 1
    with pytest.raises(ValueError, match="grouped_layout gives row 0 to group 0 and row 5 to group 1"):
        emulator.launch_graph(graph, stream=stream)
    assert (problem.d.view(np.uint8) == 0xFF).all(), "nothing may have been launched"
    layout[:] = right
    emulator.launch_graph(graph, stream=stream)
    problem.check()
