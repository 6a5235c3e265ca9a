"""Lists of gathered tokens that claim what does not exist: no memory beyond the operands, the other slots as they were."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from fp4_cases import Case, Data, forced_spec, make_data, on_device, poisoned

import deep_gemm
from deep_gemm.demo.arrays import put, take

CASE = Case(64, 128, rows=(1, 1, 1), d="fp32")
ROWS, SLOTS = 9, 8  # of a and of d; named by a_rows and d_rows
ENTRIES = [(0, 0, 2, 0), (2, 2, 3, 0), (1, 5, 3, 0)]
A_ROWS, D_ROWS = [3, 1, 4, 8, 5, 0, 2, 6], [8, 2, 7, 1, 0, 3, 5, 4]
KERNELS: dict[str, dict[str, Any]] = {
    "few": {"block_m": 16, "stages": 4},
    "queue": {"block_m": 16, "stages": 4, "queue": True},
    "wide": {"wide": True, "warpgroups": 2, "k_blocks": 1, "stages": 4, "block_m": 64, "cluster": 2},
}
LOWEST, HIGHEST = -(2**31), 2**31 - 1


def run(
    device: Any, kernel: str, entries: Any, count: int, a_rows: Any, d_rows: Any, data: Data | None = None
) -> np.ndarray:
    data = data or make_data(CASE, (ROWS,))
    assert not isinstance(data.a, np.ndarray)
    out = put(device, poisoned((ROWS, CASE.n), CASE))
    spec = forced_spec(Case(64, 128, d="fp32", spec=KERNELS[kernel]), data, "gathered")
    head = put(device, np.array([count, 0, 0, 0], np.int32))
    lists = (put(device, np.array(part, np.int32)) for part in (entries, a_rows, d_rows))
    listed, from_rows, to_rows = lists
    a = put(device, data.a.values), put(device, data.a.scales)
    deep_gemm.m_grouped_fp8_fp4_gemm_nt_gathered(
        a, on_device(device, data.weights), out, listed, head, from_rows, to_rows, spec=spec, device=device
    )
    assert (take(head)[1:3] == 0).all(), "the counters are left at zero"
    return take(out)


def check(device: Any, kernel: str, gone: set[int], **changes: Any) -> None:
    """As without the changes, but that slots of `gone` are not written."""
    given: dict[str, Any] = {"entries": ENTRIES, "count": 3, "a_rows": A_ROWS, "d_rows": D_ROWS}
    expected = run(device, kernel, **given)
    expected.view(np.uint32)[[D_ROWS[slot] for slot in gone]] = 0xFFFFFFFF
    assert (run(device, kernel, **(given | changes)).view(np.uint32) == expected.view(np.uint32)).all()


def entries_with(index: int, **fields: int) -> list[tuple[int, ...]]:
    names = ("expert", "first", "count")
    changed = [list(entry) for entry in ENTRIES]
    for name, value in fields.items():
        changed[index][names.index(name)] = value
    return [tuple(entry) for entry in changed]


@pytest.mark.parametrize("kernel", KERNELS)
def test_entries_out_of_range(device: Any, kernel: str) -> None:
    for expert in (-1, 3, LOWEST, HIGHEST):
        check(device, kernel, {2, 3, 4}, entries=entries_with(1, expert=expert))
    for first in (-1, SLOTS, LOWEST, HIGHEST):
        check(device, kernel, {5, 6, 7}, entries=entries_with(2, first=first))
    for count in (-1, 0, LOWEST):
        check(device, kernel, {5, 6, 7}, entries=entries_with(2, count=count))
    for count in (4, HIGHEST):
        check(device, kernel, set(), entries=entries_with(2, count=count))
    for count in (4, HIGHEST):
        check(device, kernel, set(), count=count)
    for count in (0, -1, LOWEST):
        check(device, kernel, set(range(SLOTS)), count=count)


@pytest.mark.parametrize("kernel", KERNELS)
def test_rows_out_of_range(device: Any, kernel: str) -> None:
    """A row beyond d is not written; a row beyond a is its first one."""
    for row in (-1, ROWS, LOWEST, HIGHEST):
        check(device, kernel, {3}, d_rows=[*D_ROWS[:3], row, *D_ROWS[4:]])
        first = run(device, kernel, ENTRIES, 3, [*A_ROWS[:3], 0, *A_ROWS[4:]], D_ROWS)
        beyond = run(device, kernel, ENTRIES, 3, [*A_ROWS[:3], row, *A_ROWS[4:]], D_ROWS)
        assert (first.view(np.uint32) == beyond.view(np.uint32)).all()


def test_slots_need_rows(emulator: Any) -> None:
    data = make_data(CASE, (ROWS,))
    assert not isinstance(data.a, np.ndarray)
    out, head = np.zeros((ROWS, CASE.n), np.float32), np.zeros(4, np.int32)
    entries, rows = np.zeros((3, 4), np.int32), np.zeros(ROWS + 1, np.int32)
    for words, shape, lists in (
        (r"d has 8 rows, expected at least 9, one for each slot; pass d_rows", (8, CASE.n), {}),
        (r"d has 9 rows, expected at least 10, one for each slot", (ROWS, CASE.n), {"a_rows": rows}),
        (
            r"a has 9 rows, expected at least 10, one for each slot; pass a_rows",
            (10, CASE.n),
            {"d_rows": rows},
        ),
        (
            r"d_rows has 10 slots, expected 0 as a_rows has",
            (ROWS, CASE.n),
            {"a_rows": rows[:0], "d_rows": rows},
        ),
    ):
        out = np.full(shape, 7, np.float32)
        with pytest.raises(ValueError, match=words):
            deep_gemm.m_grouped_fp8_fp4_gemm_nt_gathered(
                (data.a.values, data.a.scales), data.weights, out, entries, head, **lists, device=emulator
            )
        assert (out == 7).all()
