"""Deliberate bugs in what reads and writes the indexer's FP4 rows; the emulator must catch each."""

from __future__ import annotations

import numpy as np
from emulator.op_bugs import Bug, Launch, bug_tests, check_caught, pack, text
from ops_cases import real
from reference import deepseek_v4 as ref

from deep_gemm import ops

PAGE_ROWS = 8


def scores_of(
    kernel: str,
    spec: str,
    *,
    heads: int,
    page_rows: int,
    pages: int,
    visible: tuple[int, ...],
    block: tuple[int, int],
) -> tuple[Launch, str]:
    """Pages that a table scatters; a block (its threads, bytes of shared memory) takes a token's rows in turns."""
    rng = np.random.default_rng(46)
    tokens, columns, positions = len(visible), pages * page_rows, np.array(visible, np.int32) * 4 - 1
    query, weights = real(rng, (tokens, heads, 128), "bf16"), real(rng, (tokens, heads))
    size = ops.index_page_bytes(page_rows)
    raw = rng.integers(0, 256, (1, pages, size), dtype=np.uint8)
    raw[..., page_rows * 64 : page_rows * 68] = rng.integers(124, 131, (1, pages, page_rows * 4))
    rows = ref.read_fp4_rows(raw.view(np.int8), page_rows)[0]
    table = rng.permutation(pages + 1)[None, :pages].astype(np.int32)
    pool = np.full((pages + 1, size), 0x7F, np.uint8)
    pool[table[0]] = raw[0]
    scores = np.zeros((tokens, columns))
    for t, n in enumerate(visible):
        scores[t, :n] = ref.index_scores(query[t], weights[t], rows[:n], 0.25)
    params = pack(["query", (heads * 128,), (128,)], "weights", (heads,),
                  ["pool", (size,), (0,), 1, columns, page_rows, pages, "table"],
                  "positions", None, "scores", (columns,), None, (0,), tokens, heads, 128, 4, 0, 0.25,
                  1)  # fmt: skip
    arrays = {"query": query, "weights": weights, "pool": pool, "table": table, "positions": positions,
              "scores": np.zeros(scores.shape, np.float32)}  # fmt: skip
    entry = f"deep_gemm::{kernel}<kSpec>"
    launch = Launch(entry, (tokens,), *block, arrays, params, {"scores": scores}, 1e-3)
    return launch, text(*spec.split())


def index_mma() -> tuple[Launch, str]:
    return scores_of("index_mma", "indexer IndexMmaSpec .rows=Format::fp4_e2m1", heads=70, page_rows=PAGE_ROWS, pages=12,
                     visible=(92, 7), block=(128, 64 * 324))  # fmt: skip


def index_wide() -> tuple[Launch, str]:
    """Warpgroups have three tiles and two, the last of which ends early."""
    return scores_of("index_wide", "index_wide IndexWideSpec .ahead=2", heads=61, page_rows=24, pages=26,
                     visible=(610, 70), block=(512, 64 * 260))  # fmt: skip


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


CASES = {"index_mma": index_mma, "index_wide": index_wide, "compressor": compressor}
BUGS = [
    ("index_mma", Bug("the first group's scale for all", "in_page * kFp4RowScaleBytes + part;", "in_page * kFp4RowScaleBytes;", 8)),
    ("index_mma", Bug("scales of the page's first row", "+ in_page * kFp4RowScaleBytes + part", "+ part", 8)),
    ("index_mma", Bug("scales where the codes are", "page + view.page_rows * kFp4RowBytes + in_page", "page + in_page", 8)),
    ("index_mma", Bug("heads in the order of bf16 rows", "place_of<Rows>(piece), in_pairs<Rows>(v)", "piece * 16, in_pairs<Rows>(v)", 8)),
    ("index_mma", Bug("heads in pairs of neighbours", "in_pairs<Rows>(v));", "v);", 8)),
    ("index_mma", Bug("signs of the wrong codes", "kSign = 1 << 12", "kSign = 1 << 11", 8)),
    ("index_mma", Bug("magnitudes without their lowest bit", "kKept = 0x81c081c0u", "kKept = 0x81808180u", 8)),
    ("index_mma", Bug("large scales without what they have beyond the first factor", "if (exponent <= Fp4Factors::kMost) return;", "return;", 8)),
    ("index_mma", Bug("the rows of the turn before", "fetch(first + step);", "fetch(first);", 8)),
    ("index_mma", Bug("scores of the first turn's rows", "store_scores(p, token, first + ptx::warp_index()", "store_scores(p, token, begin + ptx::warp_index()", 8)),
    ("index_mma", Bug("rows of a lane change places", "row = first + lane / 4 + (upper ? 8 : 0)", "row = first + lane / 4 + (upper ? 0 : 8)", 8)),
    ("index_mma", Bug("no table", "if (view.table == nullptr) return sequence * view.stride_sequence + page * view.stride_row;", "return sequence * view.stride_sequence + page * view.stride_sequence;", 8)),
    ("index_wide", Bug("heads read before they are there", "smem + kPlan.weights);\n    ptx::sync_threads();", "smem + kPlan.weights);")),
    ("index_wide", Bug("heads hidden from the tensor cores", "d.w});\n    }\n    ptx::fence_proxy_async();", "d.w});\n    }", 8)),
    ("index_wide", Bug("sums read too early", "visible);\n            ptx::wgmma_wait<0>();", "visible);", 8)),
    ("index_wide", Bug("fragments that the tensor cores do not see yet", "if constexpr (Part == 0) ptx::wgmma_keep(dots);\n    ptx::wgmma_fence();", "if constexpr (Part == 0) ptx::wgmma_keep(dots);", 8)),
    ("index_wide", Bug("sums of the tile before stay", "Part > 0 || step > 0", "true", 8)),
    ("index_wide", Bug("the first channels twice", "Part * (kIndexSlabBytes / 32) + step", "step", 8)),
    ("index_wide", Bug("heads that are not swizzled", "((load % 2 * 4 + unit) ^ head % 8)", "(load % 2 * 4 + unit)", 8)),
    ("index_wide", Bug("heads beyond the last", "        if (head < p.heads)\n#pragma unroll", "#pragma unroll", 8)),
    ("index_wide", Bug("the page before", "if (in_page_ >= view_.page_rows) ++page_, in_page_ -=", "if (in_page_ >= view_.page_rows) in_page_ -=", 8)),
    ("index_wide", Bug("both rows of a lane in one page", "row_ + 8 < visible && in_page_ + 8 < view_.page_rows", "row_ + 8 < visible", 8)),
    ("index_wide", Bug("the tile after the next", "turn * kIndexWideRows; tile < visible;) {", "turn * kIndexWideRows; tile < visible; tile += step) {", 8)),
    ("compressor", Bug("nibbles change places", "code(v.x) | code(v.y) << 4", "code(v.y) | code(v.x) << 4", 8)),
    ("compressor", Bug("a scale for 16 channels", "warp_max<8>(amax_of(v)), 6 * 0x1p-126f", "warp_max<4>(amax_of(v)), 6 * 0x1p-126f", 8)),
    ("compressor", Bug("no Hadamard transform", "v = through_bf16(hadamard(through_bf16(v), d));", "v = through_bf16(v);", 8)),
    ("compressor", Bug("both rows in one place", "page + row % view.page_rows * kFp4RowBytes + channel / 2", "page + channel / 2", 8)),
    ("compressor", Bug("scales of the page's first row", "view.page_rows * kFp4RowBytes + row % view.page_rows * kFp4RowScaleBytes;\n        ptx::st", "view.page_rows * kFp4RowBytes;\n        ptx::st", 8)),
    ("compressor", Bug("channels beyond the row", "        if (channel >= kFp4RowChannels) return;\n", "", 8)),
]  # fmt: skip

test_clean, test_bugs = bug_tests(CASES, BUGS, check_caught)
