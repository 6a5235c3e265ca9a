"""Bugs injected into projections whose rows are made on the way must be caught: norm, rounding, and whose
weights come when; and into the launches that they share with cache rows and with the indexer."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from emulator.op_bugs import Bug, bug_tests, bugs, check_caught, pack, text
from emulator.test_index_few_bugs import CTAS, K, index_few
from emulator.test_joined_bugs import NO_MATRIX, Rows, attention_rows
from ops_cases import real
from reference import deepseek_v4 as ref
from reference import quantize

K_COLUMNS = 1024


def rounded(x: Any) -> Any:
    """What FP8 with scales rounded up leaves of bf16 rows."""
    codes, scales = quantize.fp8_128(ref.to_bf16(x).astype(np.float32), "up")
    return codes.view(ml_dtypes.float8_e4m3fn).astype(np.float64) * scales.repeat(128, 1)


def weights(rng: np.random.Generator, sizes: dict[str, int], k: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arrays of matrices, and what they mean."""
    arrays, meant = dict[str, Any](), dict[str, Any]()
    for name, n in sizes.items():
        w = real(rng, (n, k), "fp8_e4m3")
        scale = rng.uniform(0.01, 0.02, (-(-n // 128), k // 128)).astype(np.float32)
        arrays |= {f"w_{name}": w, f"scale_{name}": scale}
        meant[name] = w.astype(np.float64) * scale.repeat(128, 1).repeat(128, 0)[:n]
    return arrays, meant


def parameters(sizes: dict[str, int], x: str, width: int, rows: int, k: int, *rest: Any) -> list[Any]:
    parts, end = [], 0
    for name, n in sizes.items():
        end += n // 16
        parts.append(
            [
                f"w_{name}",
                f"scale_{name}",
                (k,),
                (k // 128,),
                (0,),
                (0,),
                f"y_{name}",
                None,
                (n,),
                (0,),
                n,
                end,
            ]
        )
    mma = [x, None, (width,), (0,), rows, k, len(sizes), 1, *parts, *[NO_MATRIX] * (16 - len(sizes))]
    return [mma, *rest]


def plain() -> tuple[Any, str]:
    """Two chunks of a warp, three tiles for a block of threads of which two are stored at once, two rows."""
    rng = np.random.default_rng(51)
    rows, k, sizes = 2, 2 * K_COLUMNS, {"a": 32, "b": 16}
    x = real(rng, (rows, k), "bf16", 2.0)
    arrays, meant = weights(rng, sizes, k)
    values = rounded(x.astype(np.float64))
    expected = {f"y_{name}": values @ meant[name].T for name in sizes}
    arrays |= {"x": x} | {name: np.full(y.shape, np.nan, np.float32) for name, y in expected.items()}
    params = pack(*parameters(sizes, "x", k, rows, k, None, 0.0))
    launch = bugs.Launch(
        "deep_gemm::project_staged<kSpec>",
        (1,),
        256,
        48 * 272 + 48 * 4 + 6144,
        arrays,
        params,
        expected,
        1e-3,
    )
    fields = ".w_scale = Format::fp32, .y = Format::fp32, .few = 2, .row_tiles = 2, .depth = 2, .tokens = 3"
    return launch, text("project_staged", "ProjectStagedSpec", fields)


def normed(
    rng: np.random.Generator, sizes: dict[str, int]
) -> tuple[dict[str, Any], dict[str, Any], list[Any]]:
    """Arrays, results and parameters of the projections of two normed rows."""
    x, weight = real(rng, (2, K_COLUMNS), "bf16", 3.0), real(rng, (K_COLUMNS,))
    arrays, meant = weights(rng, sizes, K_COLUMNS)
    values = rounded(ref.rms_norm(x.astype(np.float64), weight, 1e-6))
    expected = {f"y_{name}": values @ meant[name].T for name in sizes}
    arrays |= {"query": x, "query_weight": weight}
    arrays |= {name: np.full(y.shape, np.nan, np.float32) for name, y in expected.items()}
    return arrays, expected, parameters(sizes, "query", K_COLUMNS, 2, K_COLUMNS, "query_weight", 1e-6)


NORMED = (
    "{.input = StagedInput::normed, .weight = Format::fp32, .w_scale = Format::fp32, .y = Format::fp32, "
    ".row_tiles = 2, .depth = 2, .tokens = 3}"
)
STAGED_BYTES = 3 * (8 * 272 + 8 * 4 + 2 * 8 * 2 * 16 * 4)


def query_rows() -> tuple[Any, str]:
    """Five tiles of two matrices for two blocks of threads, behind the rows of attention_rows() without its norm."""
    launch, _ = attention_rows()
    rng = np.random.default_rng(52)
    arrays, expected, project = normed(rng, {"a": 48, "b": 32})
    kept = {"latent", "weight", "frequencies", "positions", "ring"}
    kept |= {f"{part}_{name}" for part in ("kv", "gate", "ape", "state", "rows") for name in "ab"}
    arrays |= {name: launch.arrays[name] for name in kept}
    expected |= {name: value for name, value in launch.expected.items() if name in kept}
    dim, tokens = 128, 8
    write = [["latent", (dim,), (0,)], "weight", "frequencies", "positions", None,
             ["ring", (0,), (dim,), 1, tokens, 1, 0, None], dim, 64, 1e-6]  # fmt: skip
    compressors = [[f"kv_{name}", f"gate_{name}", (2 * dim,), (2 * dim,), f"ape_{name}", "weight", "frequencies",
                    "positions", None, f"state_{name}", None, [f"rows_{name}", (0,), (dim,), 1, 2, 1, 0, None],
                    tokens, dim, 64, 4, 1e-6, 1, tokens] for name in "ab"]  # fmt: skip
    params = pack(project, write, *compressors, 8, 9, 10)
    made = Rows("deep_gemm::query_rows<kSpec>", (12,), 256, STAGED_BYTES, arrays, params, expected, 1e-2)
    compressor = "{.weight = Format::fp32}"
    fields = (
        f".project = {NORMED}, .write = {{.weight = Format::fp32}}, .main = {compressor}, .index = {compressor}, "
        ".has_main = true, .has_index = true"
    )
    return made, text("query_rows", "QueryRowsSpec", fields)


def query_index() -> tuple[Any, str]:
    """A cluster that chooses, and one of three blocks of threads that has five tiles."""
    launch, _ = index_few()
    arrays, expected, project = normed(np.random.default_rng(53), {"a": 80})
    index = {name if name != "query" else "index_query": value for name, value in launch.arrays.items()}
    selection = [
        ["index_query", (64 * 128,), (128,), "weights", (64,), ["rows", (0,), (128,), 1, 420, 1, 0, None],
         "positions", None, None, (0,), None, (0,), 1, 64, 128, 4, 0, 0.25, 0],
        "frequencies", "picks", 64, K, CTAS,
    ]  # fmt: skip
    made = bugs.Launch(
        "deep_gemm::query_index<kSpec>",
        (2 * CTAS,),
        256,
        launch.smem_bytes,
        arrays | index,
        pack(project, selection, CTAS),
        expected | launch.expected,
        1e-2,
        cluster=CTAS,
    )
    fields = f".project = {NORMED}, .index = {{.finish = RowFinish::hadamard}}"
    return made, text("query_index", "QueryIndexSpec", fields)


CASES = {"plain": plain, "query_rows": query_rows, "query_index": query_index}
BUGS = [
    ("plain", Bug("rows read before other lanes have made them", "        ptx::sync_warp();\n    }\n    /// Chunk `i` of the warp.", "    }\n    /// Chunk `i` of the warp.")),
    ("plain", Bug("the first row for all", "keep(i, row, now.get(i))", "keep(i, 0, now.get(i))", 8)),
    ("plain", Bug("a chunk in the place of the one before", "(warp_ * S.few + i) * S.tokens + row", "(warp_ * S.few) * S.tokens + row", 8)),
    ("plain", Bug("rows beyond the last", "row < q_.p.rows ? row : q_.p.rows - 1", "row", 8)),
    ("plain", Bug("columns of another load", "from + piece / 2 * 128", "from", 8)),
    ("plain", Bug("weights of the chunk after the next", "weights.fetch(slot, (i + S.depth) % S.few)", "weights.fetch(slot, (i + S.depth + 1) % S.few)", 8)),
    ("plain", Bug("rows of the part before", "        place_.advance();\n        find_row();", "        place_.advance();", 8)),
    ("plain", Bug("weights beyond the last", "if (place_.tile() >= last_) return;", "", 8)),
    ("query_rows", Bug("squares of half the row", "squares[i % kNormWarps] = tile", "squares[i % 2] = tile", 8)),
    ("query_rows", Bug("without the norm's weight", "v = tile::times(v, weight[i])", "v = tile::times(v, 1.0f)", 8)),
    ("query_rows", Bug("one block of rows less", "if (block >= p.rows_end)", "if (block + 1 >= p.rows_end)", 8)),
    ("query_rows", Bug("shares of all blocks", "ptx::grid_size() - p.rows_end", "ptx::grid_size()", 8)),
    ("query_rows", Bug("one compressor twice", "compressor_block<S.index>(p.index, block - p.main_end)", "compressor_block<S.index>(p.main, block - p.main_end)", 8, 2)),
    ("query_rows", Bug("all threads write rows", "if (ptx::thread_index() < kLatentThreads) query_rows_detail", "query_rows_detail")),
    ("query_index", Bug("one block of the indexer less", "if (block < p.index_blocks)", "if (block + 1 < p.index_blocks)")),
    ("query_index", Bug("another token's cluster", "block / p.index.ctas)", "block / p.index.ctas + 1)", 8)),
    ("query_index", Bug("tiles from the wrong block on", "p.project, block - p.index_blocks", "p.project, block", 8)),
    ("query_index", Bug("shares of all blocks", "ptx::grid_size() - p.index_blocks", "ptx::grid_size()", 8)),
]  # fmt: skip

test_clean, test_bugs = bug_tests(CASES, BUGS, check_caught)
