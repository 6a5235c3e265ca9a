"""Bugs injected into the attention of grouped queries must be caught."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import pytest
from emulator.op_bugs import Bug, bugs, pack, text
from ops_cases import real

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


def gqa_params() -> Any:
    d, rows = GQA_WIDTH, GQA_KV_HEADS * GQA_WIDTH
    return pack(["q", (GQA_HEADS * d,), (d,)], ["out", (GQA_HEADS * d,), (d,)], ["keys", (128 * rows,), (rows,), (d,)],
                ["values", (128 * rows,), (rows,), (d,)], "records", "positions", None, "table", 3, 128, 1, GQA_ROWS, GQA_HEADS,
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
    "gqa_pieces": gqa_pieces,
    "gqa_join": gqa_join,
}
BUGS = [
    ("gqa_pieces", Bug("rows count from the page's start", "- first_row * rows.stride_row", "", 8)),
    ("gqa_pieces", Bug("pages of two pieces", "piece * kGqaSplit / p.page_rows", "piece * kGqaSplit / (2 * p.page_rows)", 8)),
    ("gqa_pieces", Bug("records read before they are there", "kRecord * 4);\n    ptx::sync_threads();", "kRecord * 4);")),
    ("gqa_pieces", Bug("a row that is not visible yet", "static_cast<u32>(position) + 1, end", "static_cast<u32>(position) + 2, end", 8)),
    ("gqa_pieces", Bug("keys of the first kv head", "+ kv_head * rows.stride_head +\n               channel", "+ channel", 8)),
    ("gqa_pieces", Bug("sums keep an old maximum", "sums[h][c] = ptx::mul_rn_f32(sums[h][c], mine);", ";", 8)),
    ("gqa_pieces", Bug("weights of the next head", "from_lane(scores[r], h * 4)", "from_lane(scores[r], (h * 4 + 4) % 32)", 8)),
    ("gqa_pieces", Bug("a step over the warp's share", "begin + kGqaWarpRows < end ? begin + kGqaWarpRows : end", "begin + kGqaWarpRows + 8 < end ? begin + kGqaWarpRows + 8 : end", 8)),
    ("gqa_pieces", Bug("halves do not change places", "const float kept = upper ? v[i + count] : v[i], given", "const float kept = v[i], given", 8)),
    ("gqa_join", Bug("the last piece is left out", "/ kGqaSplit + 1;", "/ kGqaSplit;", 8)),
    ("gqa_join", Bug("pieces are not scaled", "const float factor = gqa_detail::share(softmax.x, top);", "const float factor = 1;", 8)),
    ("gqa_join", Bug("weights of one piece", "weights = ptx::fma_rn_f32(factor, softmax.y, weights);", "weights = softmax.y;", 8)),
    ("gqa_join", Bug("channels of the first piece", "(records, i * kRecord + channel, part)", "(records, channel, part)", 8)),
]  # fmt: skip


@lru_cache
def made(name: str) -> tuple[Any, str]:
    return CASES[name]()


@pytest.mark.parametrize("name", CASES)
def test_clean(name: str) -> None:
    bugs.check_clean(*made(name))


@pytest.mark.parametrize(("name", "bug"), BUGS, ids=lambda value: getattr(value, "name", value))
def test_bugs(name: str, bug: Any) -> None:
    launch, source = made(name)
    bugs.check_caught(launch, source, bug)
