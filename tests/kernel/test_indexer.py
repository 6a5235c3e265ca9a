"""Indexer scores against float64, and the exact choice of the largest against a stable sort of the same scores."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from certificate import assert_batch_invariant
from ops_cases import Array, assert_close, poisoned, real, run, same_bits
from reference import deepseek_v4 as ref

from deep_gemm import ops


@pytest.mark.parametrize(("heads", "d"), [(5, 128), (5, 32), (70, 128)])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_scores(device: Any, heads: int, d: int, dtype: str) -> None:
    rng = np.random.default_rng(d)
    positions, sequences = (
        np.array([2, 3, 270, -1, 1000, 9], np.int32),
        np.array([0, 1, 1, 0, 0, 3], np.int32),
    )
    query, weights, rows = (
        real(rng, (6, heads, d), dtype),
        real(rng, (6, heads)),
        real(rng, (2, 70, d), dtype),
    )
    scores = run(
        device,
        "index_scores",
        {"scores": poisoned((6, 70))},
        query=query,
        weights=weights,
        rows=rows,
        positions=positions,
        sequences=sequences,
        scale=0.25,
    )["scores"]
    for t, (position, sequence) in enumerate(zip(positions, sequences, strict=True)):
        visible = min((int(position) + 1) // 4, 70) if position >= 0 and sequence < 2 else 0
        expected = ref.index_scores(query[t], weights[t], rows[min(sequence, 1), :visible], 0.25)
        if visible:
            assert_close(scores[t, :visible], expected, 2e-5 * np.sqrt(d * heads / 5))
        assert np.isnan(scores[t, visible:]).all()


PAGE_ROWS = 8


def fp4_pages(rng: np.random.Generator, sequences: int, pages: int) -> Array:
    """Random rows in pages; one group has the smallest scale, one a large one, and one is NaN."""
    raw = rng.integers(0, 256, (sequences, pages, ops.index_page_bytes(PAGE_ROWS)), dtype=np.uint8)
    scales = rng.integers(122, 130, (sequences, pages, PAGE_ROWS, 4), dtype=np.uint8)
    scales[0, 0, 0, 1], scales[0, 0, 1, 2], scales[0, 1, 3, 3] = 0, 140, 255
    raw[:, :, PAGE_ROWS * 64 : PAGE_ROWS * 68] = scales.reshape(sequences, pages, -1)
    return raw.view(np.int8)


@pytest.mark.parametrize("heads", [5, 70])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_scores_of_fp4_rows(device: Any, heads: int, dtype: str) -> None:
    """On CUDA cores the same bits as of the rows' values in fp32."""
    rng = np.random.default_rng(heads)
    positions, sequences = np.array([2, 3, 270, -1, 1000], np.int32), np.array([0, 1, 1, 0, 0], np.int32)
    query, weights = real(rng, (5, heads, 128), dtype), real(rng, (5, heads))
    pages = fp4_pages(rng, 2, 9)
    values = ref.read_fp4_rows(pages, PAGE_ROWS)
    given = {"query": query, "weights": weights, "positions": positions, "sequences": sequences}
    out = {"scores": poisoned((5, 72))}
    scores = run(device, "index_scores", out, rows=pages, page_rows=PAGE_ROWS, scale=0.25, **given)["scores"]
    if dtype == "fp32":
        wide = run(device, "index_scores", out, rows=values.astype(np.float32), scale=0.25, **given)["scores"]
        assert np.array_equal(scores.view(np.uint32), wide.view(np.uint32))
    for t, (position, sequence) in enumerate(zip(positions, sequences, strict=True)):
        visible = min((int(position) + 1) // 4, 72) if position >= 0 else 0
        assert np.isnan(scores[t, visible:]).all()
        if not visible:
            continue
        finite = np.isfinite(values[sequence, :visible]).all(1)
        assert np.isnan(scores[t, :visible][~finite]).all()
        rows = values[sequence, :visible][finite]
        expected = ref.index_scores(query[t], weights[t], rows, 0.25)
        assert_close(scores[t, :visible][finite], expected, 1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("kind", ["bf16", "fp4"])
def test_blocks_take_turns(device: Any, kind: str) -> None:
    """So many tokens that each has one block, which goes through three tiles of rows; alone it has three."""
    rng = np.random.default_rng(8)
    tokens, columns = 40 if device.emulated else 1200, 152
    query, weights = real(rng, (tokens, 5, 128), "bf16"), real(rng, (tokens, 5))
    positions = rng.integers(0, 4 * columns, tokens).astype(np.int32)
    fp4 = {"rows": fp4_pages(rng, 1, columns // PAGE_ROWS), "page_rows": PAGE_ROWS}
    cache = fp4 if kind == "fp4" else {"rows": real(rng, (1, columns, 128), "bf16")}

    def call(some: Array) -> Array:
        out = {"scores": np.zeros((len(some), columns), np.float32)}
        given = {"query": query[some], "weights": weights[some], "positions": positions[some]}
        return run(device, "index_scores", out, **given, **cache)["scores"]

    whole = call(np.arange(tokens))
    for token in (0, int(positions.argmax()), tokens - 1):
        assert same_bits(whole[token : token + 1], call(np.array([token])))


def test_scores_not_needed(device: Any) -> None:
    rng = np.random.default_rng(1)
    arguments = {"query": real(rng, (2, 2, 32)), "weights": real(rng, (2, 2)), "rows": real(rng, (1, 9, 32))}
    scores = run(
        device,
        "index_scores",
        {"scores": poisoned((2, 9))},
        **arguments,
        positions=np.array([31, 35], np.int32),
        only_above=8,
    )["scores"]
    assert np.isnan(scores[0]).all() and np.isfinite(scores[1]).all()


def picks_of(device: Any, scores: Array, positions: Array, k: int, ratio: int = 1) -> Array:
    return run(
        device,
        "top_k",
        {"picks": poisoned((len(scores), k), "int32")},
        scores=scores,
        positions=positions,
        ratio=ratio,
    )["picks"]


def last(n: int, rows: int = 1) -> Array:
    return np.full(rows, n - 1, np.int32)


@pytest.mark.parametrize("n", [1, 15, 16, 17, 255, 257, 2048, 8192])
@pytest.mark.parametrize("kind", ["random", "few values", "equal", "infinities", "nan"])
def test_top_k(device: Any, n: int, kind: str) -> None:
    rng = np.random.default_rng(n)
    scores = real(rng, (1, n))
    if kind == "few values":
        scores = np.round(scores).astype(np.float32)
        scores[scores == 0] *= rng.choice([-1, 1], (scores == 0).sum())  # zeros of both signs are equal
    elif kind == "equal":
        scores[:] = -3
    elif kind == "infinities":
        scores[rng.random((1, n)) < 0.4] = -np.inf
        scores[rng.random((1, n)) < 0.1] = np.inf
    elif kind == "nan":
        scores[rng.random((1, n)) < 0.9] = np.nan
    picks = picks_of(device, scores, last(n), 16)[0]
    expected = ref.top_k(scores[0], 16)
    assert (picks[: len(expected)] == expected).all() and (picks[len(expected) :] == -1).all()


def test_every_exponent(device: Any) -> None:
    """Values over the whole range, so that each pass of the selection decides."""
    rng = np.random.default_rng(2)
    bits = rng.integers(0, 2**32, (4, 3000), dtype=np.uint64).astype(np.uint32)
    scores = bits.view(np.float32)
    picks = picks_of(device, scores, last(3000, 4), 512)
    for t in range(4):
        assert (picks[t] == ref.top_k(scores[t], 512)).all()


def test_visibility_and_ratio(device: Any) -> None:
    scores = np.tile(np.arange(40, dtype=np.float32), (4, 1))
    picks = picks_of(device, scores, np.array([-1, 3, 47, 1000], np.int32), 5, ratio=4)
    assert picks.tolist() == [[-1] * 5, [0, -1, -1, -1, -1], [7, 8, 9, 10, 11], [35, 36, 37, 38, 39]]


def test_many_rows(device: Any) -> None:
    """262144 rows: a million tokens; zeros with a few ones, and random scores."""
    n = 20000 if device.emulated else 262144
    scores = real(np.random.default_rng(4), (2, n))
    scores[0] = 0
    scores[0, 5::1000] = 1
    picks = picks_of(device, scores, last(n, 2), 512)
    for t in range(2):
        assert (picks[t] == ref.top_k(scores[t], 512)).all()


@pytest.mark.parametrize("n", [9000, 33000])
@pytest.mark.parametrize("kind", ["random", "ascending", "few values", "mostly nan"])
def test_many_scores(device: Any, n: int, kind: str) -> None:
    """Of one CTA, and of a cluster; the largest may be neighbours, and all of one warp."""
    rng = np.random.default_rng(n)
    scores = real(rng, (2, n))
    if kind == "ascending":
        scores = np.sort(scores, axis=1)
    elif kind == "few values":
        scores = np.round(scores).astype(np.float32)
    elif kind == "mostly nan":
        scores[rng.random((2, n)) < 0.98] = np.nan
    positions = np.array([n - 1, n - 70], np.int32)
    for k in (512, 1024):
        picks = picks_of(device, scores, positions, k)
        for t in range(2):
            assert (picks[t] == ref.top_k(scores[t, : positions[t] + 1], k)).all()


@pytest.mark.parametrize("kind", ["fp32", "fp4"])
def test_rows_are_independent(device: Any, kind: str) -> None:
    """Poisoned neighbours have cache rows of NaN in one sequence, and sound ones in that of the others."""
    rng = np.random.default_rng(3)
    query = real(rng, (4, 3, 128), "fp32" if kind == "fp32" else "bf16")
    cache: dict[str, Any] = {"rows": real(rng, (2, 26, 128))}
    if kind == "fp4":
        cache = {"rows": fp4_pages(rng, 2, 4), "page_rows": PAGE_ROWS}
        cache["rows"].view(np.uint8)[1, :, PAGE_ROWS * 64 : PAGE_ROWS * 68] = 255
    else:
        cache["rows"][1] = np.nan
    columns = 26 if kind == "fp32" else 32

    def call(rows: dict[str, Array]) -> dict[str, Array]:
        out = {"scores": np.zeros((len(rows["query"]), columns), np.float32)}
        scores = run(device, "index_scores", out, **rows, **cache)["scores"]
        return {"scores": scores, "picks": picks_of(device, scores, rows["positions"], 16, 4)}

    rows = {
        "query": query,
        "weights": real(rng, (4, 3)),
        "positions": np.array([103, 60, 75, 45], np.int32),
        "sequences": np.zeros(4, np.int32),
    }
    sick = {"sequences": np.array([1, 0, 1], np.int32)}
    assert_batch_invariant(call, rows, sick)


def test_bad_input(emulator: Any) -> None:
    pages = np.zeros((1, 2, ops.index_page_bytes(PAGE_ROWS)), np.int8)
    given = (last(4), np.zeros((1, 16), np.float32))
    with pytest.raises(ValueError, match=r"rows are int8 with 64 channels .* expected 128 channels"):
        ops.index_scores(np.zeros((1, 2, 64), np.float32), np.zeros((1, 2), np.float32), pages, *given,
                         page_rows=PAGE_ROWS, device=emulator)  # fmt: skip
    with pytest.raises(ValueError, match=r"rows has shape \[1, 2, 576\], expected \[any, any, 512\]"):
        ops.index_scores(np.zeros((1, 2, 128), np.float32), np.zeros((1, 2), np.float32), pages, *given, page_rows=7,
                         device=emulator)  # fmt: skip
    scores = np.zeros((2, 4), np.float32)
    with pytest.raises(ValueError, match=r"picks has shape \[3, 2\], expected \[2, any\]"):
        ops.top_k(scores, last(4, 2), np.zeros((3, 2), np.int32), device=emulator)
    peaks = np.zeros((1, 1), np.int32)
    with pytest.raises(ValueError, match="got peaks with fp32 queries"):
        ops.index_scores(np.zeros((1, 2, 128), np.float32), np.zeros((1, 2), np.float32), np.zeros((1, 16, 128), np.float32),
                         *given, peaks=peaks, device=emulator)  # fmt: skip
    with pytest.raises(ValueError, match=r"peaks has shape \[1, 1\], expected \[2, 1\]"):
        ops.top_k(scores, last(4, 2), np.zeros((2, 2), np.int32), peaks=peaks, device=emulator)
    with pytest.raises(ValueError, match="got ratio 0"):
        ops.top_k(scores, last(4, 2), np.zeros((2, 2), np.int32), ratio=0, device=emulator)


def peaks_of(scores: Array, positions: Array) -> Array:
    """What index_scores() leaves of them: orders of the largest of each 16 that are visible."""
    tokens, n = scores.shape
    padded = np.full((tokens, -(-n // 16) * 16), np.nan, np.float32)
    for t, position in enumerate(positions):
        padded[t, : position + 1] = scores[t, : position + 1]
    bits = (padded + np.float32(0)).view(np.uint32)
    orders = np.where(bits >> 31 != 0, ~bits, bits | 0x80000000)
    orders[np.isnan(padded)] = 0
    return orders.reshape(tokens, -1, 16).max(2).view(np.int32)


@pytest.mark.parametrize("n", [16400, 40000])
@pytest.mark.parametrize(
    "kind", ["random", "ascending", "neighbours", "few values", "zeros", "mostly nan", "infinities"]
)
def test_peaks_change_nothing(device: Any, n: int, kind: str) -> None:
    """What reaches the bound has room, or does not; one token sees too few scores for peaks."""
    rng = np.random.default_rng(n)
    scores = real(rng, (2, n))
    if kind == "ascending":
        scores = np.sort(scores, axis=1)
    elif kind == "neighbours":
        scores[:, 3000:3700] += 20
    elif kind == "few values":
        scores = np.round(scores).astype(np.float32)
    elif kind == "zeros":
        scores = np.maximum(scores - 2, 0)
    elif kind == "mostly nan":
        scores[rng.random((2, n)) < 0.98] = np.nan
    elif kind == "infinities":
        scores[rng.random((2, n)) < 0.4] = -np.inf
        scores[rng.random((2, n)) < 0.03] = np.inf
    positions = np.array([n - 1, n - 1700 if n > 20000 else 9000], np.int32)
    out = {"picks": poisoned((2, 512), "int32")}
    peaks = peaks_of(scores, positions)
    picks = run(device, "top_k", out, scores=scores, positions=positions, ratio=1, peaks=peaks)["picks"]
    for t in range(2):
        assert (picks[t] == ref.top_k(scores[t, : positions[t] + 1], 512)).all()


@pytest.mark.parametrize("kind", ["bf16", "fp4"])
def test_peaks(device: Any, kind: str) -> None:
    rng = np.random.default_rng(12)
    columns = 152
    query, weights = real(rng, (3, 5, 128), "bf16"), real(rng, (3, 5))
    fp4 = {"rows": fp4_pages(rng, 1, columns // PAGE_ROWS), "page_rows": PAGE_ROWS}
    cache = fp4 if kind == "fp4" else {"rows": real(rng, (1, columns, 128), "bf16")}
    positions = np.array([4 * columns - 1, 4 * 70 + 3, 4 * 64 - 1], np.int32)
    out = {"scores": poisoned((3, columns)), "peaks": np.full((3, 10), -7, np.int32)}
    made = run(device, "index_scores", out, query=query, weights=weights, positions=positions, **cache)
    for t, visible in enumerate((positions + 1) // 4):
        groups = -(-int(visible) // 16)
        expected = peaks_of(made["scores"][t : t + 1], np.array([visible - 1]))[0]
        assert (made["peaks"][t, :groups] == expected[:groups]).all()
        assert (made["peaks"][t, groups:] == -7).all()


WIDE = 8192  # rows that a sequence has room for from which wgmma finds scores of FP4 rows


@pytest.mark.parametrize(("page_rows", "heads"), [(64, 64), (8, 5), (24, 33)])
def test_many_fp4_rows_on_wgmma(device: Any, page_rows: int, heads: int) -> None:
    """The bits of mma.sync, which serves where a sequence has room for fewer rows: here for parts of the cache. Tiles end
    in the middle; tokens see all rows, some, too few to need scores and none, of pages that a table scatters."""
    rng = np.random.default_rng(heads)
    pages, part = -(-(WIDE + 72) // page_rows), 2400 // page_rows
    columns, size = pages * page_rows, ops.index_page_bytes(page_rows)
    pool = rng.integers(0, 256, (pages + 3, size), dtype=np.uint8)
    scales = rng.integers(122, 132, (pages + 3, page_rows * 4), dtype=np.uint8)
    scales[rng.random(scales.shape) < 0.002] = 0
    scales[rng.random(scales.shape) < 0.001] = 255
    pool[:, page_rows * 64 : page_rows * 68] = scales
    table = rng.permutation(pages + 3)[None, :pages].astype(np.int32)
    visible, only_above = np.array([columns, 0, 4003, 90, columns - 17, 100, 91], np.int32), 90
    sequences = np.array([0, 0, 0, 0, 0, 1, 0], np.int32)  # there is no second one
    tokens = len(visible)
    query, weights = real(rng, (tokens, heads, 128), "bf16"), real(rng, (tokens, heads))

    def call(some: slice, first: int, count: int, at_most: int) -> dict[str, Array]:
        n = count * page_rows
        positions = 4 * (visible[some] - first * page_rows).clip(0, n) - 1
        shape = (len(positions), -(-n // 16))
        out = {"scores": poisoned((len(positions), n)), "peaks": np.full(shape, -7, np.int32)}
        return run(device, "index_scores", out, rows=pool.view(np.int8), table=table[:, first : first + count],
                   positions=positions.astype(np.int32), query=query[some], weights=weights[some], scale=0.3,
                   sequences=sequences[some], page_rows=page_rows, only_above=at_most)  # fmt: skip

    wide = call(slice(None), 0, pages, only_above)
    for t, n in enumerate(visible):
        assert np.isnan(wide["scores"][t, n if n > only_above and sequences[t] == 0 else 0 :]).all()
    whole = slice(4, 5)
    alone = call(whole, 0, pages, 0)  # with more blocks
    assert all(same_bits(alone[name], wide[name][whole]) for name in alone)
    needed = np.flatnonzero(visible > only_above)
    for first in range(0, pages, part):
        count = min(part, pages - first)
        narrow = call(slice(None), first, count, 0)
        begin, end = first * page_rows, (first + count) * page_rows
        assert same_bits(wide["scores"][needed, begin:end], narrow["scores"][needed])
        assert begin % 16 == 0
        assert same_bits(wide["peaks"][needed, begin // 16 : -(-end // 16)], narrow["peaks"][needed])
