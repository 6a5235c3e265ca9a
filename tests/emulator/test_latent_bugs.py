"""Bugs injected into the attention over latent rows on tensor cores must be caught."""

from __future__ import annotations

from typing import Any

import numpy as np
from emulator.op_bugs import BF16, Bug, bug_tests, bugs, check_caught, pack, text
from ops_cases import real
from reference import deepseek_v4 as ref

from deep_gemm import ops

NO_ROWS = [None, (0,), (0,), 0, 0, 0, 0, None]


def latent_params(chunks: int, page_rows: int, heads: int, window: int, pages: int) -> Any:
    page = (584 * page_rows + -584 * page_rows % 576,)
    width = 512
    return pack(["q", (heads * width,), (width,)], ["out", (heads * width,), (width,)],
                ["ring", (0,), page, 1, pages * page_rows, page_rows, 0, None], NO_ROWS, None, None, None,
                "positions", None, 1, heads, window, 0, 0, 0, float(width**-0.5), "records", chunks)  # fmt: skip


def latent_inputs(heads: int = 5) -> tuple[dict[str, Any], Any, Any]:
    """Arrays of both kernels, scores [heads, rows] and the rows in order."""
    rng = np.random.default_rng(8)
    page_rows, pages, window, position = 10, 8, 70, 101
    raw = np.zeros((1, pages, 584 * page_rows + -584 * page_rows % 576), np.uint8)
    for page, row in np.ndindex(pages, page_rows):
        values = np.concatenate(
            [real(rng, (448,), "fp8_e4m3", 40).view(np.uint8), real(rng, (64,), "bf16").view(np.uint8)]
        )
        raw[0, page, row * 576 : row * 576 + 576] = values
        at = page_rows * 576 + row * 8
        raw[0, page, at : at + 7] = rng.integers(120, 123, 7)
    values = ref.read_fp8_rows(raw.view(np.int8), page_rows)[0]
    seen = np.stack([values[p % len(values)] for p in range(position - window + 1, position + 1)])
    # The last chunk has the largest score.
    q = (real(rng, (1, heads, 512)) + seen[-2] * 0.2).astype(BF16)
    scores = q[0].astype(np.float64) @ seen.T * 512**-0.5
    arrays = {"q": q, "ring": raw, "positions": np.array([position], np.int32)}
    return arrays, scores, seen


def latent_records(scores: Any, seen: Any) -> Any:
    records = np.zeros((1, 2, 16, 516))
    for chunk in range(2):
        part = scores[:, chunk * 64 : chunk * 64 + 64]
        weights = np.exp(part - part.max(1, keepdims=True))
        records[0, chunk, :5, :512] = weights @ seen[chunk * 64 : chunk * 64 + 64]
        records[0, chunk, :5, 512], records[0, chunk, :5, 513] = part.max(1), weights.sum(1)
    return records


def latent_mma(heads: int = 5, tiles: int = 1, smem: int = 91904) -> tuple[Any, str]:
    arrays, scores, seen = latent_inputs(heads)
    weights = np.exp(scores - scores.max(1, keepdims=True))
    expected = (weights / weights.sum(1, keepdims=True) @ seen)[None]
    arrays |= {
        "out": np.full((1, heads, 512), np.nan, np.float32).astype(BF16),
        "records": np.zeros(4, np.float32),
    }
    kernel, threads, fields = "latent_mma", 256, f".tiles = {tiles}"
    if heads > 32:
        kernel, threads, fields = "latent_wide", 384, ".wide = true"
    launch = bugs.Launch(f"deep_gemm::{kernel}<kSpec>", (1,), threads, smem, arrays,
                         latent_params(1, 10, heads, 70, 8), {"out": expected}, 2e-2)  # fmt: skip
    return launch, text(kernel, "LatentMmaSpec", fields)


def latent_mma_tiles() -> tuple[Any, str]:
    return latent_mma(20, 2, 114176)


def latent_wide() -> tuple[Any, str]:
    """A CTA with two groups of heads, of two chunks each."""
    return latent_mma(66, 4, 213040)


def latent_merge() -> tuple[Any, str]:
    arrays, scores, seen = latent_inputs()
    weights = np.exp(scores - scores.max(1, keepdims=True))
    expected = (weights / weights.sum(1, keepdims=True) @ seen)[None]
    arrays |= {
        "records": latent_records(scores, seen).astype(np.float32),
        "out": np.full((1, 5, 512), np.nan, np.float32).astype(BF16),
    }
    launch = bugs.Launch("deep_gemm::latent_merge<kSpec>", (5,), 256, 0, arrays, latent_params(2, 10, 5, 70, 8),
                         {"out": expected}, 2e-2)  # fmt: skip
    return launch, text("latent_mma", "LatentMergeSpec", "")


def latent_few() -> tuple[Any, str]:
    """Three chunks of picked and window rows, queries as projected, output turned back."""
    arrays, _, seen = latent_inputs()
    rng = np.random.default_rng(9)
    frequencies, wide, position = ops.rope_frequencies(64, 1e4), ref.frequencies(64, 1e4), 101
    picks = np.insert(np.sort(rng.permutation(50)[:40]), 20, [-1] * 40).astype(np.int32)[None]
    values = ref.read_fp8_rows(arrays["ring"].view(np.int8), 10)[0]
    seen = np.concatenate([seen, values[picks[picks >= 0]]])
    q = ref.rotate(ref.rms_norm(arrays["q"][0].astype(np.float64), np.ones(512), 1e-6), position, wide)
    scores = ref.to_bf16(q) @ seen.T * 512**-0.5
    weights = np.exp(scores - scores.max(1, keepdims=True))
    expected = ref.rotate(weights / weights.sum(1, keepdims=True) @ seen, position, wide, inverse=True)[None]
    arrays |= {
        "out": np.full((1, 5, 512), np.nan, np.float32).astype(BF16),
        "picks": picks,
        "frequencies": frequencies,
    }
    page = (arrays["ring"].shape[-1],)
    cache = [page, 1, 80, 10, 0, None]
    params = pack(["q", (5 * 512,), (512,)], ["out", (5 * 512,), (512,)], ["ring", (0,), *cache],
                  ["ring", (0,), *cache], "picks", None, "frequencies", "positions", None, 1, 5, 70, 2, 80, 64,
                  float(512**-0.5), None, 3, 1e-6)  # fmt: skip
    launch = bugs.Launch(
        "deep_gemm::latent_few<kSpec>", (3,), 256, 91904, arrays, params, {"out": expected}, 2e-2, cluster=3
    )
    return launch, text(
        "latent_few",
        "LatentMmaSpec",
        ".compressed = true, .picks = true, .rotate = true, .split = true, .raw = true",
    )


CASES = {
    "latent_few": latent_few,
    "latent_mma": latent_mma,
    "latent_mma_tiles": latent_mma_tiles,
    "latent_wide": latent_wide,
    "latent_merge": latent_merge,
}
BUGS = [
    ("latent_few", Bug("a cluster's sums read before they are there", "    ptx::cluster_sync();\n", "")),
    ("latent_few", Bug("a CTA leaves while its sums are read", "    ptx::cluster_wait();\n}\n\n}", "}\n\n}")),
    ("latent_few", Bug("sums where rows are still read", "    ptx::sync_threads();  // all have read the rows\n", "")),
    ("latent_few", Bug("weights read before they are there", "weigh<S>(alone, smem);\n        ptx::sync_threads();", "weigh<S>(alone, smem);")),
    ("latent_few", Bug("scores read before they are there", "score_rows<S>(smem, p.scale);\n        ptx::sync_threads();", "score_rows<S>(smem, p.scale);")),
    ("latent_few", Bug("rows read before they are there", "        ptx::sync_threads();\n        score_rows", "        score_rows")),
    ("latent_few", Bug("the last chunk is left out", "ceil_div(seen.total, kLatentChunk)", "seen.total / kLatentChunk", 8)),
    ("latent_few", Bug("the sums of the CTA's own chunk for all", "ptx::map_to_rank(sums, base + i)", "sums", 8)),
    ("latent_few", Bug("the first chunk's factors for all", "ptx::shfl_idx_f32(of_lane.factors.chunk, base + i)", "ptx::shfl_idx_f32(of_lane.factors.chunk, 0)", 8)),
    ("latent_few", Bug("sums keep an old maximum", "{ptx::exp_f32(before - max), ", "{1.0f, ", 8)),
    ("latent_few", Bug("weights are not scaled", "weights = ptx::mul_rn_f32(sum, factors.chunk);", "weights = sum;", 8)),
    ("latent_few", Bug("picks of the window before", "seen.in_window == p.window ? early : load_pick(p, token, i)", "early + 1", 8)),
    ("latent_few", Bug("queries are not turned", "if (quad + 1 == kQuadsOfLane && turns)", "if (false)", 8)),
    ("latent_few", Bug("queries without their norm", "tile::norm_factor(sum, kFp8RowChannels, eps)", "1.0f", 8)),
    ("latent_few", Bug("rows and queries read before they have come", "    ptx::cp_async_wait<0>();\n    ptx::sync_warp();\n", "    ptx::sync_warp();\n")),
    ("latent_few", Bug("codes overwritten before all have read them", "            ptx::sync_warp();  // all have read what others overwrite\n", "")),
    ("latent_few", Bug("scales of the row before", "ptx::shfl_idx(scales.x, row)", "ptx::shfl_idx(scales.x, row / 2)", 8)),
    ("latent_few", Bug("rotated channels in another order", "of + (lane + 32 - kPlainPieces) * 16", "of + lane * 16", 8)),
    ("latent_few", Bug("the output is turned the wrong way", "-by[0].sin", "by[0].sin", 8)),
    ("latent_mma", Bug("rows overwritten while they are read", "if (!S.split) ptx::sync_threads();", "")),
    ("latent_mma", Bug("queries read before they are there", "        ptx::cp_async_wait<0>();\n", "")),
    ("latent_mma", Bug("scores read before they are there", "score_rows<S>(smem, p.scale);\n        ptx::sync_threads();", "score_rows<S>(smem, p.scale);")),
    ("latent_mma", Bug("weights read before they are there", "weigh<S>(merged, smem);\n        ptx::sync_threads();", "weigh<S>(merged, smem);")),
    ("latent_mma", Bug("window of one row less", "end - p.window : 0;", "end - p.window + 1 : 0;", 8)),
    ("latent_mma", Bug("absent rows take part", "present ? ptx::mul_rn_f32(sums[tile][i], scale) : kNothing", "ptx::mul_rn_f32(sums[tile][i], scale)", 8)),
    ("latent_mma", Bug("sums keep an old maximum", "ptx::exp_f32(max - largest), ptx::exp_f32(m - largest)", "1.0f, ptx::exp_f32(m - largest)", 8)),
    ("latent_mma", Bug("scale of the next channels", "values + scales + lane * 16 / kFp8RowGroup", "values + scales + (lane * 16 + 16) / kFp8RowGroup", 8)),
    ("latent_mma_tiles", Bug("queries of the first tile", "queries + tile * kLatentMmaHeads * kPitchBytes", "queries", 8)),
    ("latent_mma_tiles", Bug("weights of the first tile", "weights + tile * kLatentMmaHeads * kWeightPitchBytes", "weights", 8)),
    ("latent_mma_tiles", Bug("factors of the first tile", "kPlan.stats + (tile * kLatentMmaHeads + head) * 8", "kPlan.stats + head * 8", 8)),
    ("latent_mma_tiles", Bug("rows of the next chunk", "load_rows<S>(found, smem);\n        if constexpr (!S.split)\n            found = find_rows<S, kWarpRows>(p, seen, base + kLatentChunk);", "if constexpr (!S.split)\n            found = find_rows<S, kWarpRows>(p, seen, base + kLatentChunk);\n        load_rows<S>(found, smem);", 8)),
    ("latent_wide", Bug("a stage read before it is there", "            ptx::mbarrier_wait(smem_ + kPlan.barriers + at_.stage * 16, at_.phase);\n", "")),
    ("latent_wide", Bug("a stage written before it is read", "if (first == 0) ptx::mbarrier_wait(full + 8, at.phase ^ 1);", "")),
    ("latent_wide", Bug("rows without a fence", "            ptx::fence_proxy_async();  // others have written the rows, with ordinary stores\n", "")),
    ("latent_wide", Bug("weights read before they are there", "        ptx::fence_proxy_async();\n        ptx::named_barrier_sync(2 + group_, 128);", "        ptx::fence_proxy_async();")),
    ("latent_wide", Bug("queries overwritten while they are read", "        ptx::named_barrier_sync(1, kLatentWideMathThreads);\n        if", "        if")),
    ("latent_wide", Bug("queries read before they are there", "            ptx::fence_proxy_async();\n        }\n        ptx::named_barrier_sync(1, kLatentWideMathThreads);", "            ptx::fence_proxy_async();\n        }")),
    ("latent_wide", Bug("absent rows take part", "present ? ptx::mul_rn_f32(scores[i], p_.scale) : kNothing", "ptx::mul_rn_f32(scores[i], p_.scale)", 8)),
    ("latent_wide", Bug("a warpgroup has the other one's channels", "rows + (group_ * kPieces + piece) * kLatentSlabBytes", "rows + piece * kLatentSlabBytes", 8)),
    ("latent_wide", Bug("heads have the factors of others", "factors[head_half(i)].apply", "factors[0].apply", 8)),
    ("latent_wide", Bug("the second group of heads is the first", "unit % groups * kLatentWideHeads", "0", 8)),
    ("latent_merge", Bug("the last chunk is left out", "ceil_div(seen.total, kLatentChunk)", "seen.total / kLatentChunk", 8)),
    ("latent_merge", Bug("records of another head", "head % kLatentMmaHeads) * kLatentRecord", "head / 2) * kLatentRecord", 8)),
    ("latent_merge", Bug("weights are not added", "sum = factors.apply(sum, weights);", "sum = weights;", 8)),
    ("latent_merge", Bug("sums keep an old maximum", "ptx::exp_f32(max - largest), ptx::exp_f32(m - largest)", "1.0f, ptx::exp_f32(m - largest)", 8)),
]  # fmt: skip

test_clean, test_bugs = bug_tests(CASES, BUGS, check_caught)
