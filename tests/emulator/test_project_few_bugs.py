"""Bugs injected into project_few must be caught: what was asked for is used too early or too late, tiles and parts."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from emulator.op_bugs import Bug, bug_tests, bugs, check_caught, pack, text
from emulator.test_joined_bugs import NO_MATRIX, matrix
from ops_cases import real
from reference import quantize


def tiles() -> tuple[Any, str]:
    """FP8 with scales, two groups of columns of x, seven tiles for two blocks of threads, two of them at once."""
    rng = np.random.default_rng(31)
    rows, k, sizes = 5, 1024, (64, 48)
    codes, x_scale = quantize.fp8_128(real(rng, (rows, 2 * k)).astype(np.float32), "up")
    x = codes.view(ml_dtypes.float8_e4m3fn)
    arrays: dict[str, Any] = {"x": x, "x_scale": x_scale}
    expected, parts, end = {}, [], 0
    values = x.astype(np.float64) * x_scale.repeat(128, 1)
    for i, n in enumerate(sizes):
        w, scale = real(rng, (n, k), "fp8_e4m3"), rng.uniform(0.01, 0.02, (1, 8)).astype(np.float32)
        arrays |= {f"w{i}": w, f"scale{i}": scale, f"y{i}": np.full((rows, n), np.nan, np.float32)}
        expected[f"y{i}"] = values[:, i * k : (i + 1) * k] @ (w.astype(np.float64) * scale.repeat(128, 1)).T
        end += n // 16
        parts.append(
            [f"w{i}", f"scale{i}", (k,), (8,), (i * k,), (i * 8,), f"y{i}", None, (n,), (0,), n, end]
        )
    params = pack("x", "x_scale", (2 * k,), (16,), rows, k, 2, 1, *parts, *[NO_MATRIX] * 14)
    launch = bugs.Launch(
        "deep_gemm::project_few<kSpec>", (2,), 256, 2 * 16384 + 16384, arrays, params, expected, 1e-3
    )
    fields = (
        ".x = Format::fp8_e4m3, .w = Format::fp8_e4m3, .w_scale = Format::fp32, .row_tiles = 2, .few = 1, "
        ".depth = 2, .tokens = 8"
    )
    return launch, text("project_few", "ProjectMmaSpec", fields)


def ahead() -> tuple[Any, str]:
    """bf16 with more chunks than registers have room for."""
    rng = np.random.default_rng(32)
    rows, k, n = 3, 5120, 32
    x, w = real(rng, (rows, k), "bf16"), real(rng, (n, k), "bf16", k**-0.5)
    add = real(rng, (rows, n))
    part = ["w", None, (k,), (0,), (0,), (0,), "y", "add", (n,), (n,), n, 2]
    params = pack("x", None, (k,), (0,), rows, k, 1, 1, part, *[NO_MATRIX] * 15)
    arrays = {"x": x, "w": w, "add": add, "y": np.full((rows, n), np.nan, np.float32)}
    expected = {"y": x.astype(np.float64) @ w.astype(np.float64).T + add}
    launch = bugs.Launch(
        "deep_gemm::project_few<kSpec>", (1,), 256, 3 * 32768 + 8192, arrays, params, expected, 1e-4
    )
    return launch, text(
        "project_few", "ProjectMmaSpec", ".add = Format::fp32, .few = 5, .depth = 3, .tokens = 8"
    )


def pair() -> tuple[Any, str]:
    """Two launches in one: two blocks of threads for three tiles, one for two."""
    rng = np.random.default_rng(33)
    rows, k, sizes = 1, 1024, {"a": 48, "b": 32}
    x = real(rng, (rows, k), "bf16")
    arrays: dict[str, Any] = {"x": x}
    expected, halves = {}, []
    for name, n in sizes.items():
        w = real(rng, (n, k), "bf16", k**-0.5)
        arrays |= {f"w_{name}": w, f"y_{name}": np.full((rows, n), np.nan, np.float32)}
        expected[f"y_{name}"] = x.astype(np.float64) @ w.astype(np.float64).T
        part = matrix(f"w_{name}", f"y_{name}", n, k, n // 16)
        halves.append(["x", None, (k,), (0,), rows, k, 1, 1, part, *[NO_MATRIX] * 15])
    launch = bugs.Launch(
        "deep_gemm::project_few_pair<kSpec>",
        (3,),
        256,
        32768 + 1024,
        arrays,
        pack(*halves, 2),
        expected,
        1e-4,
    )
    half = "{.few = 1, .depth = 1, .tokens = 1}"
    return launch, text("project_few", "ProjectPairSpec", f".first = {half}, .second = {half}")


CASES = {"tiles": tiles, "ahead": ahead, "pair": pair}
BUGS = [
    ("tiles", Bug("weights read before they are there", "ptx::cp_async_wait<S.depth - 1>();", "ptx::cp_async_wait<S.depth>();")),
    ("tiles", Bug("weights brought over those that come next", "fetched_ = next(fetched_);", "fetched_ = 0;", 8)),
    ("tiles", Bug("sums read before they are there", "DG_DEVICE void store(u32 first, u32 last) {\n        ptx::sync_threads();", "DG_DEVICE void store(u32 first, u32 last) {")),
    ("tiles", Bug("sums written while they are read", "flip_ ^= 1;", "flip_ ^= 0;")),
    ("tiles", Bug("a warp is left out", "u32 warp = 1; warp < kProjectWarps", "u32 warp = 2; warp < kProjectWarps", 8)),
    ("tiles", Bug("columns of the part before", "(other && place.part().x_offset != columns)", "(other && place.part().x_offset == columns)", 8)),
    ("tiles", Bug("scales of the part before", "(other || place.row() % kProjectColumns == 0)", "place.row() % kProjectColumns == 1", 8)),
    ("tiles", Bug("rows of the part before", "if (place_.advance()) find_rows();", "place_.advance();", 8)),
    ("tiles", Bug("tiles beyond the last", "if (first + g >= last) continue;", "", 8)),
    ("tiles", Bug("rows of x beyond the last are read", "row < p.rows ? row : p.rows - 1", "row", 8)),
    ("ahead", Bug("chunks of x in the wrong place", "tile_[place].load(rows_, i + kAhead)", "tile_[0].load(rows_, i + kAhead)", 8)),
    ("ahead", Bug("x of the tile before", "fresh = !project_few_holds(S) ||", "fresh = false ||", 8)),
    ("ahead", Bug("the chunk after the next", "const u32 next = i + S.depth % S.few;", "const u32 next = i + (S.depth + 1) % S.few;", 8)),
    ("pair", Bug("blocks of the first launch from the second one's", "run_few<S.second>(p.second, block - p.first_blocks,", "run_few<S.second>(p.second, block,", 8)),
    ("pair", Bug("shares of all blocks", "run_few<S.first>(p.first, block, p.first_blocks)", "run_few<S.first>(p.first, block, ptx::grid_size())", 8)),
    ("pair", Bug("shares of too few blocks", "ptx::grid_size() - p.first_blocks);", "ptx::grid_size() - p.first_blocks + 1);", 8)),
    ("pair", Bug("the first one twice", "run_few<S.second>(p.second,", "run_few<S.second>(p.first,", 8)),
]  # fmt: skip

test_clean, test_bugs = bug_tests(CASES, BUGS, check_caught)
