"""Rows in pages that a table scatters: every operation gives the bits that it gives for rows one after the other, and
leaves the pages of others alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from kernel.test_attention import FREQUENCIES, fp8_pages
from kernel.test_indexer import PAGE_ROWS, fp4_pages
from ops_cases import Array, poisoned, real, run, same_bits

from deep_gemm import ops

TABLE = np.array([[5, 1, 7], [0, 6, 3]], np.int32)  # pages 2 and 4 belong to nobody
POOL = 8


def scatter(rows: Array, page_rows: int) -> Array:
    """[sequences, rows, ..] as pages [POOL, page_rows, ..]; what nobody owns is poison."""
    pool = np.empty((POOL, page_rows, *rows.shape[2:]), rows.dtype)
    pool.view(np.uint8)[:] = 0x7F
    for s, i in np.ndindex(*TABLE.shape):
        pool[TABLE[s, i]] = rows[s, i * page_rows : (i + 1) * page_rows]
    return pool


def scatter_fp8(pages: Array) -> Array:
    """[sequences, pages, bytes] as [POOL, bytes]."""
    pool = np.full((POOL, pages.shape[2]), 0x7F, np.int8)
    pool[TABLE] = pages
    return pool


@pytest.mark.parametrize(("dtype", "rows"), [("fp32", "fp32"), ("fp32", "fp8"), ("bf16", "fp8")])
def test_latent_attention(device: Any, dtype: str, rows: str) -> None:
    rng = np.random.default_rng(1)
    page_rows = 5 if rows == "fp8" else 10
    data = fp8_pages(rng, 2, 15, 5) if rows == "fp8" else real(rng, (2, 30, 512), rows)
    ring = fp8_pages(rng, 2, 25, 5) if rows == "fp8" else real(rng, (2, 25, 512), rows)
    given = {
        "q": real(rng, (3, 5, 512), dtype),
        "positions": np.array([59, 40, 57], np.int32),
        "sequences": np.array([1, 0, 0], np.int32),
        "ring": ring,
        "ring_page_rows": 5 if rows == "fp8" else 0,
        "compressed_page_rows": 5 if rows == "fp8" else 0,
        "sinks": real(rng, (5,), scale=2),
        "frequencies": FREQUENCIES,
        "picks": np.array([[0, 5, 14], [3, 9, -1], [1, 2, 13]], np.int32),
        "window": 20,
        "ratio": 4,
    }
    out = {"out": poisoned((3, 5, 512), dtype)}
    plain = run(device, "latent_attention", out, **given, compressed=data)["out"]
    paged = {
        "compressed": scatter_fp8(data) if rows == "fp8" else scatter(data, page_rows),
        "compressed_table": TABLE,
        "compressed_page_rows": page_rows,
    }
    assert same_bits(run(device, "latent_attention", out, **{**given, **paged})["out"], plain)


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp4"])
def test_index_scores(device: Any, dtype: str) -> None:
    rng = np.random.default_rng(2)
    fp4 = dtype == "fp4"
    rows = fp4_pages(rng, 2, 24) if fp4 else real(rng, (2, 192, 128), dtype)
    dtype = "bf16" if fp4 else dtype
    given = {
        "query": real(rng, (2, 5, 128), dtype),
        "weights": real(rng, (2, 5)),
        "positions": np.array([767, 500], np.int32),
        "sequences": np.array([1, 0], np.int32),
    }
    out = {"scores": poisoned((2, 192))}
    if fp4:  # eight rows a page: a table of 24 pages of a sequence
        plain = run(device, "index_scores", out, rows=rows, page_rows=PAGE_ROWS, **given)["scores"]
        order = np.random.default_rng(5).permutation(50)[:48].reshape(2, 24).astype(np.int32)
        pool = np.full((50, rows.shape[2]), 0x7F, np.int8)
        pool[order] = rows
        paged = run(device, "index_scores", out, rows=pool, page_rows=PAGE_ROWS, table=order, **given)
        assert same_bits(paged["scores"], plain)
        return
    plain = run(device, "index_scores", out, rows=rows, **given)["scores"]
    paged = run(device, "index_scores", out, rows=scatter(rows, 64), page_rows=64, table=TABLE, **given)
    assert same_bits(paged["scores"], plain)


@pytest.mark.parametrize("rows", ["fp32", "fp8"])
def test_compressor(device: Any, rows: str) -> None:
    rng = np.random.default_rng(3)
    tokens, dim, ratio = 24, 512, 4
    given = {
        "kv": real(rng, (tokens, 2 * dim)),
        "gate": real(rng, (tokens, 2 * dim)),
        "ape": real(rng, (ratio, 2 * dim)),
        "weight": real(rng, (dim,), "bf16"),
        "frequencies": FREQUENCIES,
        "positions": np.arange(tokens, dtype=np.int32),
        "sequences": np.ones(tokens, np.int32),
    }
    state = poisoned((2, 9, dim))
    size = ops.latent_page_bytes(2)
    empty = np.full((2, 3, size), 0x7F, np.int8) if rows == "fp8" else poisoned((2, 6, dim))
    page_rows = 2 if rows == "fp8" else 0
    plain = run(device, "compressor_update", {"state": state, "rows": empty}, page_rows=page_rows, **given)[
        "rows"
    ]
    pool = np.full((POOL, size), 0x7F, np.int8) if rows == "fp8" else scatter(poisoned((2, 6, dim)), 2)
    paged = run(
        device, "compressor_update", {"state": state, "rows": pool}, page_rows=2, table=TABLE, **given
    )["rows"]
    assert same_bits(paged, scatter_fp8(plain) if rows == "fp8" else scatter(plain, 2))


def test_plain_rows_and_gqa(device: Any) -> None:
    rng = np.random.default_rng(4)
    x = real(rng, (3, 2, 32))
    positions, sequences = np.array([0, 300, 129], np.int32), np.array([1, 1, 0], np.int32)
    empty = real(rng, (2, 384, 2, 32))
    at = {"positions": positions, "sequences": sequences}
    plain = run(device, "cache_write", {"rows": empty}, x=x, **at)["rows"]
    paged = run(device, "cache_write", {"rows": scatter(empty, 128)}, x=x, table=TABLE, **at)["rows"]
    assert same_bits(paged, scatter(plain, 128))
    out = {"out": poisoned((3, 4, 32)), "records": poisoned(ops.gqa_records_shape(3, 4, 384, 32))}
    given = {"q": real(rng, (3, 4, 32)), **at}
    a = run(device, "gqa_attention", out, keys=plain, values=empty, **given)["out"]
    b = run(device, "gqa_attention", out, keys=paged, values=scatter(empty, 128), table=TABLE, **given)["out"]
    assert same_bits(a, b)


def test_bad_input(emulator: Any) -> None:
    rows, out = np.zeros((POOL, 100, 2, 32), np.float32), poisoned((1, 4, 32))
    records, positions = poisoned(ops.gqa_records_shape(1, 4, 300, 32)), np.zeros(1, np.int32)
    with pytest.raises(ValueError, match="pages of 100 rows, expected a multiple of 128"):
        ops.gqa_attention(
            np.zeros((1, 4, 32), np.float32),
            rows,
            rows,
            positions,
            records,
            out,
            table=TABLE,
            device=emulator,
        )
    with pytest.raises(ValueError, match="have a table and 0 rows a page, expected page_rows"):
        ops.latent_attention(
            np.zeros((1, 4, 512), np.float32), np.zeros((1, 8, 512), np.float32), positions, poisoned((1, 4, 512)),
            compressed=np.zeros((POOL, 4, 512), np.float32), compressed_table=TABLE, ratio=4, window=8,
            device=emulator,
        )  # fmt: skip
