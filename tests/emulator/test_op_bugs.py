"""Bugs injected into the kernels of the model operations must be caught, as tests/emulator/injection.py says."""

from __future__ import annotations

from typing import Any

import numpy as np
from emulator.op_bugs import Bug, bug_tests, bugs, check_caught, pack, text
from ops_cases import real
from reference import deepseek_v4 as ref

from deep_gemm import ops


def project() -> tuple[Any, str]:
    rng = np.random.default_rng(1)
    rows, n, k = 5, 9, 132
    x, w, y = real(rng, (rows, k)), real(rng, (n, k)), np.full((rows, n), np.nan, np.float32)
    params = pack(["x", (k,), (0,)], ["y", (n,), (0,)], [None, (0,), (0,)], [None, (0,), (0,)],
                  ["w", None, (n * k,), (k,), (0,), (0,)], rows, 1, n, k)  # fmt: skip
    launch = bugs.Launch("deep_gemm::project<kSpec>", (2 * 2,), 256, 0, {"x": x, "w": w, "y": y}, params,
                         {"y": x.astype(np.float64) @ w.T}, 1e-4)  # fmt: skip
    return launch, text("project", "ProjectSpec", ".w = Format::fp32, .rows = 4")


def project_mma() -> tuple[Any, str]:
    rng = np.random.default_rng(7)
    rows, n, k = 9, 37, 1280
    x, w = real(rng, (rows, k), "bf16"), real(rng, (n, k), "bf16", k**-0.5)
    add, y = real(rng, (rows, n)), np.full((rows, n), np.nan, np.float32)
    part = ["w", None, (k,), (0,), (0,), (0,), "y", "add", (n,), (n,), n, 3]
    nothing = [None, None, (0,), (0,), (0,), (0,), None, None, (0,), (0,), 0, 0]
    params = pack("x", None, (k,), (0,), rows, k, 1, 2, part, *[nothing] * 15)
    expected = x.astype(np.float64) @ w.astype(np.float64).T + add
    launch = bugs.Launch("deep_gemm::project_mma<kSpec>", (6,), 256, 4096, {"x": x, "w": w, "add": add, "y": y},
                         params, {"y": expected}, 1e-4)  # fmt: skip
    return launch, text("project_mma", "ProjectMmaSpec", ".add = Format::fp32")


def hc_mix() -> tuple[Any, str]:
    rng = np.random.default_rng(2)
    d, rows = 256, 4  # two rounds of two
    x, fn, base = real(rng, (rows, 4, d)), real(rng, (24, 4 * d), scale=0.05), real(rng, (24,))
    scale, weight = np.array([0.7, 1.3, 1.9], np.float32), real(rng, (d,))
    parts = [ref.hyper_connection(x[t], fn, base, scale, 20, 1e-6, 1e-6) for t in range(rows)]
    y = np.stack([ref.rms_norm(parts[t][0] @ x[t].astype(np.float64), weight, 1e-6) for t in range(rows)])
    expected = {"y": y, "post": np.stack([p[1] for p in parts]), "comb": np.stack([p[2] for p in parts])}
    arrays = {"x": x, "fn": fn, "base": base, "scale": scale, "weight": weight}
    arrays |= {name: np.full(value.shape, np.nan, np.float32) for name, value in expected.items()}
    params = pack(
        ["x", (4 * d,), (d,)],
        "fn",
        "base",
        "scale",
        "weight",
        ["y", (d,), (0,)],
        [None, (0,), (0,)],
        None,
        None,
        None,
        "post",
        "comb",
        rows,
        d,
        20,
        1,
        1e-6,
        1e-6,
    )
    launch = bugs.Launch(
        "deep_gemm::hc_mix<kSpec>", (8,), 544, 163840, arrays, params, expected, 1e-4, cluster=8
    )
    return launch, text("hyper_connection", "HcSpec", ".weight = Format::fp32, .tokens = 2")


def top_k() -> tuple[Any, str]:
    rng = np.random.default_rng(3)
    n, cluster = 8300, 2
    scores = np.round(real(rng, (3, n), scale=30)).astype(np.float32)
    # As many of equal size as there is no room for, in two rows.
    scores[1] = np.where(np.arange(n) < n // 2, 0, 1 + (np.arange(n) % 70 == 0))
    scores[2] = np.where(rng.random(n) < 0.5, -0.0, 0.0)
    expected = np.stack([ref.top_k(row, 100) for row in scores])
    arrays = {
        "scores": scores,
        "positions": np.full(3, n - 1, np.int32),
        "picks": np.full((3, 100), -7, np.int32),
    }
    params = pack("scores", (n,), None, (0,), "positions", "picks", n, 100, 1)
    launch = bugs.Launch("deep_gemm::top_k<kSpec>", (3 * cluster,), 1024, 66048, arrays, params,
                         {"picks": expected.astype(np.float64)}, cluster=cluster)  # fmt: skip
    return launch, text("top_k", "TopKSpec", f".cluster = {cluster}")


def attention() -> tuple[Any, str]:
    rng = np.random.default_rng(4)
    d, ring_rows, window, position = 128, 40, 36, 50
    q, ring, compressed = real(rng, (1, 4, d), scale=3), real(rng, (1, ring_rows, d)), real(rng, (1, 30, d))
    seen = np.stack(
        [
            *(ring[0, p % ring_rows] for p in range(position - window + 1, position + 1)),
            *compressed[0, [1, 5, 11]],
        ]
    )
    expected = ref.attention(q[0], seen, seen, d**-0.5, None)[None]
    picks = np.array([[1, 5, 11, 12, -1]], np.int32)  # row 12 ends with token 51
    table = np.array([[2, 0, 3]], np.int32)  # of pages of ten rows
    pages = np.full((4, 10, d), np.nan, np.float32)
    pages[table[0]] = compressed.reshape(3, 10, d)
    arrays = {"q": q, "ring": ring, "compressed": pages, "picks": picks, "positions": np.array([position], np.int32),
              "table": table, "out": np.full((1, 4, d), np.nan, np.float32)}  # fmt: skip
    params = pack(["q", (4 * d,), (d,)], ["out", (4 * d,), (d,)], ["ring", (0,), (d,), 1, ring_rows, 1, 0, None],
                  ["compressed", (10 * d,), (d,), 1, 30, 10, 3, "table"], "picks", None, None, "positions", None, 1, 4, window, 4, 5, 0,
                  float(d**-0.5))  # fmt: skip
    launch = bugs.Launch(
        "deep_gemm::attention<kSpec>", (1,), 128, 16384, arrays, params, {"out": expected}, 1e-4
    )
    return launch, text("attention", "AttentionSpec", ".compressed = Format::fp32, .d = 128, .picks = true")


def compressor() -> tuple[Any, str]:
    rng = np.random.default_rng(5)
    dim, tokens = 512, 8
    kv, gate, ape = real(rng, (tokens, 2 * dim)), real(rng, (tokens, 2 * dim)), real(rng, (4, 2 * dim))
    weight, wide = real(rng, (dim,)), ref.frequencies(64, 1e4)
    pooled = ref.compressed_rows(kv, gate, ape, 4, True)
    rows = np.stack(
        [ref.rotate(ref.rms_norm(row, weight, 1e-6), 4 * w, wide) for w, row in enumerate(pooled)]
    )[None]
    total = (gate + ape[np.arange(tokens) % 4])[4:].astype(np.float64)
    largest = total.max(0)
    weights = np.exp(total - largest)
    pools = np.stack([largest, weights.sum(0), (weights * kv[4:]).sum(0)])
    first, second = pools[:, :dim], pools[:, dim:]
    state = np.concatenate([first, first, second])[None]
    arrays = {"kv": kv, "gate": gate, "ape": ape, "weight": weight, "frequencies": ops.rope_frequencies(64, 1e4),
              "positions": np.arange(tokens, dtype=np.int32), "state": np.full(state.shape, np.nan, np.float32),
              "rows": np.full(rows.shape, np.nan, np.float32)}  # fmt: skip
    params = pack("kv", "gate", (2 * dim,), (2 * dim,), "ape", "weight", "frequencies", "positions", None, "state", None,
                  ["rows", (0,), (dim,), 1, 2, 1, 0, None], tokens, dim, 64, 4, 1e-6, 1, tokens)  # fmt: skip
    launch = bugs.Launch("deep_gemm::compressor_update<kSpec>", (1,), 128, 1024, arrays, params,
                         {"rows": rows, "state": state}, 1e-4)  # fmt: skip
    return launch, text("compressor", "CompressorSpec", ".weight = Format::fp32")


GQA_HEADS, GQA_KV_HEADS, GQA_WIDTH, GQA_ROWS = 6, 2, 32, 260


def gqa_inputs() -> tuple[dict[str, Any], Any, Any]:
    """Arrays of both kernels, the weights of the softmax [heads, rows], and values by head [heads, rows, d]."""
    rng = np.random.default_rng(6)
    q = real(rng, (1, GQA_HEADS, GQA_WIDTH), scale=3)
    keys, values = (real(rng, (1, GQA_ROWS, GQA_KV_HEADS, GQA_WIDTH)) for _ in range(2))
    group = GQA_HEADS // GQA_KV_HEADS
    position = GQA_ROWS - 3  # the cache holds two rows more, which are not seen
    wide = [
        np.repeat(x[0, : position + 1].astype(np.float64), group, 1).swapaxes(0, 1) for x in (keys, values)
    ]
    scores = np.einsum("hd,hrd->hr", q[0].astype(np.float64), wide[0]) * GQA_WIDTH**-0.5
    table = np.array([[3, 0, 2]], np.int32)  # of pages of one piece each
    pages = np.full((2, 4 * 128, GQA_KV_HEADS, GQA_WIDTH), np.nan, np.float32)
    for i in range(GQA_ROWS):
        pages[:, table[0, i // 128] * 128 + i % 128] = keys[0, i], values[0, i]
    arrays = {
        "q": q,
        "keys": pages[0],
        "values": pages[1],
        "table": table,
        "positions": np.array([position], np.int32),
    }
    return arrays, scores, wide[1]


def gqa_records(scores: Any, values: Any) -> Any:
    """What each piece of 128 rows leaves: [1, heads, pieces, d + 4], the padding zeros."""
    pieces = -(-GQA_ROWS // 128)
    records = np.zeros((1, GQA_HEADS, pieces, GQA_WIDTH + 4))
    for i in range(pieces):
        part = scores[:, i * 128 : i * 128 + 128]
        weights = np.exp(part - part.max(1, keepdims=True))
        records[0, :, i, :GQA_WIDTH] = np.einsum("hr,hrd->hd", weights, values[:, i * 128 : i * 128 + 128])
        records[0, :, i, GQA_WIDTH], records[0, :, i, GQA_WIDTH + 1] = part.max(1), weights.sum(1)
    return records


def argmax() -> tuple[Any, str]:
    rng = np.random.default_rng(27)
    logits = np.round(real(rng, (3, 9000)) * 2).astype(np.float32)  # ties
    logits[0, [8500, 8600]], logits[1, 2], logits[2, 5000] = 99, 98, np.nan
    arrays = {"logits": logits, "tokens": np.full(3, 7, np.int32)}
    launch = bugs.Launch("deep_gemm::argmax<kSpec>", (24,), 1024, 2160, arrays, pack("logits", (9000,), "tokens", 9000),
                         {"tokens": np.array([8500, 2, -1])}, cluster=8)  # fmt: skip
    return launch, text("sample", "SampleSpec", "")


def gqa_params() -> Any:
    d, rows = GQA_WIDTH, GQA_KV_HEADS * GQA_WIDTH
    return pack(["q", (GQA_HEADS * d,), (d,)], ["out", (GQA_HEADS * d,), (d,)], ["keys", (128 * rows,), (rows,), (d,)],
                ["values", (128 * rows,), (rows,), (d,)], "records", None, None, "positions", None, "table", 3, 128, 1, GQA_ROWS, GQA_HEADS,
                GQA_HEADS // GQA_KV_HEADS, 3, float(d**-0.5))  # fmt: skip


def gqa_pieces() -> tuple[Any, str]:
    arrays, scores, values = gqa_inputs()
    expected = gqa_records(scores, values)
    records = np.full(expected.shape, np.nan, np.float32)
    records[..., GQA_WIDTH + 2 :] = 0
    arrays |= {"records": records, "out": np.zeros((1, GQA_HEADS, GQA_WIDTH), np.float32)}
    launch = bugs.Launch("deep_gemm::gqa_pieces<kSpec>", (GQA_KV_HEADS * 3,), 128, 8192, arrays, gqa_params(),
                         {"records": expected}, 1e-4)  # fmt: skip
    return launch, text("gqa", "GqaSpec", ".d = 32")


def gqa_join() -> tuple[Any, str]:
    arrays, scores, values = gqa_inputs()
    weights = np.exp(scores - scores.max(1, keepdims=True))
    expected = np.einsum("hr,hrd->hd", weights / weights.sum(1, keepdims=True), values)[None]
    arrays |= {
        "records": gqa_records(scores, values).astype(np.float32),
        "out": np.full(expected.shape, np.nan, np.float32),
    }
    launch = bugs.Launch(
        "deep_gemm::gqa_join<kSpec>", (GQA_HEADS,), 32, 0, arrays, gqa_params(), {"out": expected}, 1e-4
    )
    return launch, text("gqa", "GqaSpec", ".d = 32")


CASES = {
    "project": project,
    "project_mma": project_mma,
    "hc_mix": hc_mix,
    "top_k": top_k,
    "attention": attention,
    "compressor": compressor,
    "argmax": argmax,
    "gqa_pieces": gqa_pieces,
    "gqa_join": gqa_join,
}
BUGS = [
    ("project", Bug("rows beyond the last are read", "first + i < p.rows ? first + i : p.rows - 1;", "first + i;", 8)),
    ("project", Bug("rows beyond the last are written", "row >= p.rows || ptx::lane_index() != 0", "ptx::lane_index() != 0", 8)),
    ("project", Bug("lanes are not added", "sums[i] = warp_sum(sums[i]);", ";", 8)),
    ("project", Bug("one step too many", "column < k; column", "column <= k; column", 8)),
    ("project_mma", Bug("sums read before they are there", "sums[r][t][i]);\n    ptx::sync_threads();", "sums[r][t][i]);")),
    ("project_mma", Bug("rows of x beyond the last are read", "t * kProjectTileTokens < count ? row + t * row_step : nullptr", "0 == t * 0 ? row + t * row_step : nullptr", 8)),
    ("project_mma", Bug("rows of w beyond the last are read", "wanted < part.n ? wanted : part.n - 1", "wanted", 8)),
    ("project_mma", Bug("a warp is left out", "u32 warp = 1; warp < kProjectWarps", "u32 warp = 2; warp < kProjectWarps", 8)),
    ("project_mma", Bug("pairs of a step change places", "(word[0], step, a[0], a[2]", "(word[0], step, a[2], a[0]", 8)),
    ("hc_mix", Bug("shares read before they are there", "Plan.partials);\n        if constexpr (!kAsksEarly) terms.fetch(p);\n        ptx::cluster_sync();", "Plan.partials);\n        if constexpr (!kAsksEarly) terms.fetch(p);\n        ptx::cluster_arrive();\n        if (warp != 0) ptx::cluster_wait();")),
    ("hc_mix", Bug("leaves while a peer reads", "            ptx::cluster_arrive();\n            ptx::cluster_wait();\n        }\n        return;", "        }\n        return;")),
    ("hc_mix", Bug("shares of the round before are still read", "        if (first >= stride) ptx::cluster_wait();\n", "")),
    ("hc_mix", Bug("factors read before they are there", "factors + warp * 4, factor);\n    }\n    sync_workers<S>();", "factors + warp * 4, factor);\n    }")),
    ("hc_mix", Bug("the factor of the first token", "ptx::ld_shared_f32(factors + t * 4)", "ptx::ld_shared_f32(factors)", 8)),
    ("hc_mix", Bug("coefficients read before they are there", "find_pre<S>(p, terms, warp, smem);\n        sync_workers<S>();", "find_pre<S>(p, terms, warp, smem);")),
    ("hc_mix", Bug("sums added before they are there", "        sync_workers<S>();\n        if (first >= stride)", "        if (first >= stride)")),
    ("hc_mix", Bug("norm of the first token", "kPlan.sums + (t * kHcMixWarps + warp) * 4, squares", "kPlan.sums + warp * 4, squares", 8)),
    ("hc_mix", Bug("fn of the mix before", "late + (m - kHeld) * S.threads * 16", "late + (m - kHeld - 1) * S.threads * 16", 8)),
    ("hc_mix", Bug("comb transposed", "row * H * H + i, comb[i / H][i % H]", "row * H * H + i, comb[i % H][i / H]", 8)),
    ("hc_mix", Bug("post without its factor", "const float post = 2 * sigmoid", "const float post = sigmoid", 8)),
    ("top_k", Bug("counted before the bins are cleared", "bins + i * 4, 0);\n        ptx::sync_threads();", "bins + i * 4, 0);")),
    ("top_k", Bug("histograms read before they are there", "sync_cluster<S>();\n            half_", "ptx::sync_threads();\n            half_")),
    ("top_k", Bug("bins of the pass cleared while they are read", "half_ ^= 1;\n            clear();", "clear();\n            half_ ^= 1;")),
    ("top_k", Bug("histogram of the own CTA", "load_pair<S>(bins + (top - i - 1) * 4, from)", "load_pair<S>(bins + (top - i - 1) * 4, rank<S>())", 8)),
    ("top_k", Bug("digits end before a bin is whole", "above | (wanted == above + counts[i] ? kWhole : 0)", "above | kWhole", 8)),
    ("top_k", Bug("kept scores fetched before they are there", "scores.kept());\n    ptx::cluster_sync();", "scores.kept());\n    ptx::cluster_arrive();\n    if (warp != 0) ptx::cluster_wait();")),
    ("top_k", Bug("leaves while its scores are fetched", "if (rank > 0) return ptx::cluster_sync();", "if (rank > 0) return;")),
    ("top_k", Bug("places of the first source", "j * share.per_warp + ptx::ld_cluster_u16", "ptx::ld_cluster_u16", 8)),
    ("top_k", Bug("scores beyond the room", "<= Scores<S>::kHalf", "<= 0xffffu")),
    ("top_k", Bug("ties beyond the last place", "is_equal && e < wanted", "is_equal && e <= wanted", 8)),
    ("top_k", Bug("own warp counted as earlier", "from == rank && lane < warp", "from == rank && lane <= warp", 8)),
    ("top_k", Bug("what lies above is forgotten", "t.wanted -= found.y & ~kWhole;", "", 8)),
    ("top_k", Bug("maxima of absent scores", "if (present) count_one(largest);", "count_one(0xffffffffu);", 8)),
    ("top_k", Bug("scores overwritten before they are read", "ptx::sync_warp();  // all have read", "// all have read")),
    ("top_k", Bug("places of the first score that stays", "at * 2, base + lane);", "at * 2, base);", 8)),
    ("top_k", Bug("zeros of two signs", "codec::bits_of_float(value + 0.0f)", "codec::bits_of_float(value)", 8)),
    ("attention", Bug("pages taken for neighbours", "static_cast<u64>(at) * view.stride_sequence", "page * view.stride_sequence", 8)),
    ("attention", Bug("rows count from the sequence's start", "row % view.page_rows * view.stride_row", "row * view.stride_row", 8)),
    ("attention", Bug("tile overwritten while it is read", "sums[u] = sum;\n            }\n            ptx::sync_threads();", "sums[u] = sum;\n            }")),
    ("attention", Bug("window of one row less", "end - p.window : 0;", "end - p.window + 1 : 0;", 8)),
    ("attention", Bug("sums keep an old maximum", "factor = empty ? 1.0f : ptx::exp_f32(max - largest);", "factor = 1.0f;", 8)),
    ("attention", Bug("a row that is not visible yet", "if (row >= visible) return false;", "if (row >= p.compressed.rows) return false;", 8)),
    ("argmax", Bug("peers have not stored yet", "ptx::cluster_sync();\n    if (rank == 0 && warp == 0)", "if (rank == 0 && warp == 0)")),
    ("argmax", Bug("its own part of the row", "lane % kArgmaxCluster", "0", 8)),
    ("argmax", Bug("NaN is no rank", "nan ? ~u64{0} : best", "best", 8)),
    ("argmax", Bug("columns of the first CTA", "first = rank * kArgmaxThreads + ptx::thread_index()", "first = ptx::thread_index()", 8)),
    ("gqa_pieces", Bug("rows count from the page's start", "- first_row * rows.stride_row", "", 8)),
    ("gqa_pieces", Bug("pages of two pieces", "piece * kGqaSplit / p.page_rows", "piece * kGqaSplit / (2 * p.page_rows)", 8)),
    ("gqa_pieces", Bug("records read before they are there", "kRecord * 4);\n    ptx::sync_threads();", "kRecord * 4);")),
    ("gqa_pieces", Bug("a row that is not visible yet", "static_cast<u32>(position) + 1, end", "static_cast<u32>(position) + 2, end", 8)),
    ("gqa_pieces", Bug("keys of the first kv head", "+ kv_head * rows.stride_head +\n               channel", "+ channel", 8)),
    ("gqa_pieces", Bug("sums keep an old maximum", "sums[h][c] = ptx::mul_rn_f32(sums[h][c], mine);", ";", 8)),
    ("gqa_pieces", Bug("weights of the next head", "ptx::shfl_idx_f32(scores[r], h * 4)", "ptx::shfl_idx_f32(scores[r], (h * 4 + 4) % 32)", 8)),
    ("gqa_pieces", Bug("a step over the warp's share", "begin + kGqaWarpRows < end ? begin + kGqaWarpRows : end", "begin + kGqaWarpRows + 8 < end ? begin + kGqaWarpRows + 8 : end", 8)),
    ("gqa_pieces", Bug("halves do not change places", "const float kept = upper ? v[i + count] : v[i], given", "const float kept = v[i], given", 8)),
    ("gqa_join", Bug("the last piece is left out", "/ kGqaSplit + 1;", "/ kGqaSplit;", 8)),
    ("gqa_join", Bug("pieces are not scaled", "const float factor = gqa_detail::share(softmax.x, top);", "const float factor = 1;", 8)),
    ("gqa_join", Bug("channels of the first piece", "(records, i * kRecord + channel, part)", "(records, channel, part)", 8)),
    ("gqa_join", Bug("weights of one piece", "weights = ptx::fma_rn_f32(factor, softmax.y, weights);", "weights = softmax.y;", 8)),
    ("compressor", Bug("every window is the first", "if (position == 0) pools", "if (slot == 0) pools", 8)),
    ("compressor", Bug("halves swapped", "push(pools[kNext], 0);", "push(pools[kNext], 1);", 8)),
    ("compressor", Bug("closed window is not kept", "pools[kClosed] = pools[kNext];", "", 8)),
    ("compressor", Bug("row rotated at its last token", "static_cast<i32>(window * p.ratio), false", "static_cast<i32>(position), false", 8)),
    ("compressor", Bug("position bias of the wrong slot", "static_cast<u64>(slot) * kHalves", "static_cast<u64>(position / p.ratio) * kHalves", 8)),
]  # fmt: skip

test_clean, test_bugs = bug_tests(CASES, BUGS, check_caught)
