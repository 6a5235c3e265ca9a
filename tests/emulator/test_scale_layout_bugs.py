"""Bugs injected into the kernels of scale layouts must be caught, as tests/emulator/injection.py says."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import pytest
from emulator.op_bugs import Bug, bugs, check_caught, pack, text
from reference import scale_layout as reference

BATCHES, MN, COLUMNS = 2, 67, 33  # two tiles along both sides
KS = tuple(i % 7 * 96 for i in range(40))  # 32 to a scale, more groups than a warp looks at together
SMEM_BYTES = 16384


def launch_of(kernel: str, grid: int, sf: Any, expected: Any, ks: Any, strides: Any, counts: Any) -> Any:
    """`expected` as the output lies in memory: [batches, columns, mn]."""
    arrays = {"sf": sf, "out": np.full(expected.shape, -559038737, np.int32).view(expected.dtype)}
    arrays |= {} if ks is None else {"ks": ks}
    params = pack("sf", "out", None if ks is None else "ks", *[(stride,) for stride in strides], *counts)
    return bugs.Launch(
        f"deep_gemm::{kernel}<kSpec>", (grid,), 256, SMEM_BYTES, arrays, params, {"out": expected}
    )


def transpose() -> tuple[Any, str]:
    sf = np.random.default_rng(1).standard_normal((BATCHES, MN, COLUMNS)).astype(np.float32)
    strides = (MN * COLUMNS, COLUMNS, 1, MN * COLUMNS, MN)
    launch = launch_of("transpose_fp32", 8, sf, np.ascontiguousarray(sf.swapaxes(1, 2)), None, strides,
                       (BATCHES, MN, COLUMNS, COLUMNS, 0, 1))  # fmt: skip
    return launch, text("scale_layout", "ScaleLayoutSpec", "")


def packed() -> tuple[Any, str]:
    exponents = np.random.default_rng(2).integers(0, 256, (BATCHES, COLUMNS, MN)).astype(np.uint32)
    sf = (exponents << 23).view(np.float32)  # rows are neighbours
    words = -(-COLUMNS // 4)
    expected = np.stack([reference.packed(batch.T).T for batch in sf])
    strides = (MN * COLUMNS, 1, MN, MN * words, MN)
    launch = launch_of("pack_fp32_into_ue8m0", 8, sf, np.ascontiguousarray(expected), None, strides,
                       (BATCHES, MN, COLUMNS, words, 0, 1))  # fmt: skip
    return launch, text("scale_layout", "ScaleLayoutSpec", ".rows_are_neighbours = true")


def grouped() -> tuple[Any, str]:
    columns = [k // 32 for k in KS]
    exponents = np.random.default_rng(3).integers(0, 256, (sum(columns), MN)).astype(np.uint32)
    sf = (exponents << 23).view(np.float32)
    expected = np.ascontiguousarray(reference.packed(sf.T, columns).T)
    words = len(expected)
    launch = launch_of("pack_fp32_into_ue8m0", 2 * -(-words // 8), sf, expected, np.array(KS, np.int32),
                       (0, 1, MN, 0, MN), (1, MN, len(sf), words, len(KS), 32))  # fmt: skip
    return launch, text("scale_layout", "ScaleLayoutSpec", ".rows_are_neighbours = true, .grouped = true")


CASES = {"transpose": transpose, "packed": packed, "grouped": grouped}
TILE_BARRIER = "values[i]);\n        ptx::sync_threads();"
BUGS = [
    ("transpose", Bug("tile read before it is there", TILE_BARRIER, "values[i]);")),
    ("transpose", Bug("rows beyond the last are read", "bool present = row_ + row < p_.mn;", "bool present = true;", 8)),
    ("transpose", Bug("columns beyond the last are read", "!present || column >= p_.columns", "!present", 8)),
    ("transpose", Bug("rows beyond the last are written", "row_ + row >= p_.mn || column_", "column_", 8)),
    ("transpose", Bug("lines of the tile overlap", "kScaleTilePitch = kScaleTileRows + 1", "kScaleTilePitch = kScaleTileRows - 1", 8)),
    ("transpose", Bug("the first batch for all", "p_.sf + batch * p_.sf_stride_batch", "p_.sf", 8)),
    ("packed", Bug("tile read before it is there", TILE_BARRIER, "values[i]);")),
    ("packed", Bug("exponents in reverse order", "<< i * 8;", "<< (3 - i) * 8;", 8)),
    ("packed", Bug("columns beyond the last are read", "!present || column >= p_.columns", "!present", 8)),
    ("packed", Bug("a word is a column", "column_ * PerColumn + slot", "column_ + slot", 8)),
    ("packed", Bug("half of the rows are loaded", "i % kTurns * ptx::kWarpThreads + lane_", "lane_", 8)),
    ("grouped", Bug("columns used before they are found", "find_columns();\n            ptx::sync_threads();", "find_columns();")),
    ("grouped", Bug("a word runs into the next group", "present = present && slot % PerColumn < found.y;", "", 8)),
    ("grouped", Bug("every chunk of groups starts anew", "words_before = ptx::shfl_idx(words_end, ptx::kWarpThreads - 1);", "", 8)),
    ("grouped", Bug("first words of a group only", "owner)) * PerColumn;", "owner)) * 0;", 8)),
    ("grouped", Bug("groups by their last word", "ptx::ballot(word < words_end)", "ptx::ballot(word <= words_end)", 8)),
]  # fmt: skip


@lru_cache
def made(name: str) -> tuple[Any, str]:
    return CASES[name]()


@pytest.mark.parametrize("name", CASES)
def test_clean(name: str) -> None:
    bugs.check_clean(*made(name))


@pytest.mark.parametrize(("name", "bug"), BUGS, ids=[f"{name}: {bug.name}" for name, bug in BUGS])
def test_bugs(name: str, bug: Bug) -> None:
    check_caught(*made(name), bug)
