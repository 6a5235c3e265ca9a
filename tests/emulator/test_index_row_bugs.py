"""Deliberate bugs in what reads and writes the indexer's FP4 rows; the emulator must catch each."""

from __future__ import annotations

import numpy as np
from emulator.op_bugs import Bug, Launch, bug_tests, check_caught, pack, text
from ops_cases import real
from reference import deepseek_v4 as ref

from deep_gemm import ops

PAGE_ROWS = 8


def index_mma() -> tuple[Launch, str]:
    """92 and 7 of 96 rows are visible, in pages that a table scatters; a block takes them in two turns."""
    rng = np.random.default_rng(46)
    heads, tokens, pages, positions = 70, 2, 12, np.array([367, 30], np.int32)
    query, weights = real(rng, (tokens, heads, 128), "bf16"), real(rng, (tokens, heads))
    size = ops.index_page_bytes(PAGE_ROWS)
    raw = rng.integers(0, 256, (1, pages, size), dtype=np.uint8)
    raw[..., PAGE_ROWS * 64 : PAGE_ROWS * 68] = rng.integers(124, 129, (1, pages, PAGE_ROWS * 4))
    rows = ref.read_fp4_rows(raw.view(np.int8), PAGE_ROWS)[0]
    table = np.array([[4, 0, 6, 2, 5, 1, 12, 9, 8, 11, 7, 10]], np.int32)
    pool = np.full((13, size), 0x7F, np.uint8)
    pool[table[0]] = raw[0]
    scores = np.zeros((tokens, pages * PAGE_ROWS))
    for t, visible in enumerate((92, 7)):
        scores[t, :visible] = ref.index_scores(query[t], weights[t], rows[:visible], 0.25)
    params = pack(["query", (heads * 128,), (128,)], "weights", (heads,),
                  ["pool", (size,), (0,), 1, pages * PAGE_ROWS, PAGE_ROWS, pages, "table"],
                  "positions", None, "scores", (pages * PAGE_ROWS,), None, (0,), tokens, heads, 128, 4, 0, 0.25,
                  1)  # fmt: skip
    arrays = {"query": query, "weights": weights, "pool": pool, "table": table, "positions": positions,
              "scores": np.zeros(scores.shape, np.float32)}  # fmt: skip
    launch = Launch(
        "deep_gemm::index_mma<kSpec>", (tokens,), 128, 64 * 324, arrays, params, {"scores": scores}, 1e-3
    )
    return launch, text("indexer", "IndexMmaSpec", ".rows = Format::fp4_e2m1")


def compressor() -> tuple[Launch, str]:
    """Two windows of four tokens into a page of eight rows. No value of this seed lies where float64 and fp32 round to
    different codes."""
    rng = np.random.default_rng(52)
    dim, tokens = 128, 8
    kv, gate, ape = real(rng, (tokens, 2 * dim)), real(rng, (tokens, 2 * dim)), real(rng, (4, 2 * dim))
    weight, wide = real(rng, (dim,)), ref.frequencies(64, 1e4)
    pooled = ref.compressed_rows(kv, gate, ape, 4, True)
    rows = np.stack(
        [ref.rotate(ref.rms_norm(row, weight, 1e-6), 4 * w, wide) for w, row in enumerate(pooled)]
    )
    y = ref.to_bf16(ref.hadamard(ref.to_bf16(rows)))
    scales = ref.power_of_two_scales(y, 32, 6, 6 * 2.0**-126)
    codes = abs(np.abs(y / scales.repeat(32, -1))[..., None] - np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])).argmin(
        -1
    ) + 8 * (y < 0)
    total = (gate + ape[np.arange(tokens) % 4])[4:].astype(np.float64)
    largest = total.max(0)
    weights = np.exp(total - largest)
    pools = np.stack([largest, weights.sum(0), (weights * kv[4:]).sum(0)])
    state = np.concatenate([pools[:, :dim], pools[:, :dim], pools[:, dim:]])[None]
    page = np.full((1, ops.index_page_bytes(PAGE_ROWS)), 0x7F, np.uint8)
    expected = page.copy()
    expected[0, :128] = (codes[:, ::2] | codes[:, 1::2] << 4).reshape(-1)
    expected[0, PAGE_ROWS * 64 : PAGE_ROWS * 64 + 8] = (np.log2(scales) + 127).astype(np.uint8).reshape(-1)
    arrays = {"kv": kv, "gate": gate, "ape": ape, "weight": weight, "frequencies": ops.rope_frequencies(64, 1e4),
              "positions": np.arange(tokens, dtype=np.int32), "state": np.full(state.shape, np.nan, np.float32),
              "page": page}  # fmt: skip
    params = pack("kv", "gate", (2 * dim,), (2 * dim,), "ape", "weight", "frequencies", "positions", None, "state", None,
                  ["page", (0,), (0,), 1, PAGE_ROWS, PAGE_ROWS, 0, None], tokens, dim, 64, 4, 1e-6, 1, tokens)  # fmt: skip
    launch = Launch("deep_gemm::compressor_update<kSpec>", (1,), 128, 1024, arrays, params,
                    {"page": expected.astype(np.float64), "state": state}, 1e-4)  # fmt: skip
    fields = ".weight = Format::fp32, .rows = Format::fp4_e2m1, .finish = RowFinish::hadamard_fp4"
    return launch, text("compressor", "CompressorSpec", fields)


CASES = {"index_mma": index_mma, "compressor": compressor}
BUGS = [
    ("index_mma", Bug("the first group's scale for all", "in_page * kFp4RowScaleBytes + part);", "in_page * kFp4RowScaleBytes);", 8)),
    ("index_mma", Bug("scales of the page's first row", "+ in_page * kFp4RowScaleBytes + part", "+ part", 8)),
    ("index_mma", Bug("scales where the codes are", "page + view.page_rows * kFp4RowBytes + in_page", "page + in_page", 8)),
    ("index_mma", Bug("heads in the order of bf16 rows", "place_of<Rows>(piece), in_pairs<Rows>(v)", "piece * 16, in_pairs<Rows>(v)", 8)),
    ("index_mma", Bug("heads in pairs of neighbours", "in_pairs<Rows>(v));", "v);", 8)),
    ("index_mma", Bug("signs of the wrong codes", "pair(word << 2, word << 8)", "pair(word << 2, word << 12)", 8)),
    ("index_mma", Bug("magnitudes without their lowest bit", "kMagnitude = 0x01c001c0u", "kMagnitude = 0x01800180u", 8)),
    ("index_mma", Bug("the rows of the turn before", "fetch(first + step);", "fetch(first);", 8)),
    ("index_mma", Bug("scores of the first turn's rows", "const u32 row = first + place + half * 8;\n            if (lane", "const u32 row = begin + place + half * 8;\n            if (lane", 8)),
    ("index_mma", Bug("no table", "if (view.table == nullptr) return sequence * view.stride_sequence + page * view.stride_row;", "return sequence * view.stride_sequence + page * view.stride_sequence;", 8)),
    ("compressor", Bug("nibbles change places", "code(v.x) | code(v.y) << 4", "code(v.y) | code(v.x) << 4", 8)),
    ("compressor", Bug("a scale for 16 channels", "warp_max<8>(amax_of(v)), 6 * 0x1p-126f", "warp_max<4>(amax_of(v)), 6 * 0x1p-126f", 8)),
    ("compressor", Bug("no Hadamard transform", "v = through_bf16(hadamard(through_bf16(v), d));", "v = through_bf16(v);", 8)),
    ("compressor", Bug("both rows in one place", "page + row % view.page_rows * kFp4RowBytes + channel / 2", "page + channel / 2", 8)),
    ("compressor", Bug("scales of the page's first row", "view.page_rows * kFp4RowBytes + row % view.page_rows * kFp4RowScaleBytes;\n        ptx::st", "view.page_rows * kFp4RowBytes;\n        ptx::st", 8)),
    ("compressor", Bug("channels beyond the row", "        if (channel >= kFp4RowChannels) return;\n", "", 8)),
]  # fmt: skip

test_clean, test_bugs = bug_tests(CASES, BUGS, check_caught)
