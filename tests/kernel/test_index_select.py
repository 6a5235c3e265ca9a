"""The indexer of few tokens in one launch: the picks of index_query(), index_scores() and top_k(), bit for bit, which
float64 tests of their own cover."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from certificate import assert_batch_invariant
from ops_cases import DTYPES, Array, poisoned, real, run
from reference import deepseek_v4 as ref

from deep_gemm import _C, ops

FREQUENCIES = ops.rope_frequencies(64, 1.6e5, yarn_factor=16)
PAGE_ROWS = 8
# Nothing visible, fewer than are chosen, as many, one more, the end of a unit, all rows.
POSITIONS = np.array([-1, 130, 259, 263, 700, 1279, 4000, 2], np.int32)
K = 65
BY_ROW = ("query", "weights", "positions", "sequences")


def case(heads: int, dtype: str, count: int = 1000, tokens: int = 8) -> dict[str, Any]:
    """Rows of two sequences that repeat: many scores are equal. Pages of FP4 rows are scattered."""
    rng = np.random.default_rng(heads)
    c: dict[str, Any] = {
        "query": real(rng, (tokens, heads, 128), "bf16"),
        "weights": real(rng, (tokens, heads)),
        "positions": POSITIONS[:tokens],
        "sequences": np.array([0, 1, 1, 0, 0, 1, 0, 0], np.int32)[:tokens],
    }
    if dtype == "bf16":
        rows = real(rng, (2, count, 128), "bf16")
        rows[:, count // 2 :] = rows[:, : count - count // 2]
        return c | {"rows": rows}
    pages, size = count // PAGE_ROWS, ops.index_page_bytes(PAGE_ROWS)
    pool = rng.integers(0, 256, (2 * pages + 3, size), dtype=np.uint8)
    pool[:, PAGE_ROWS * 64 : PAGE_ROWS * 68] = rng.integers(122, 130, (len(pool), PAGE_ROWS * 4))
    pool[: len(pool) // 2] = pool[len(pool) // 2 : len(pool) // 2 * 2]
    table = rng.permutation(len(pool))[: 2 * pages].reshape(2, pages).astype(np.int32)
    return c | {"rows": pool.view(np.int8), "page_rows": PAGE_ROWS, "table": table}


def of(c: dict[str, Any], rows: Array) -> dict[str, Any]:
    return {name: value[rows] if name in BY_ROW else value for name, value in c.items()}


def apart(device: Any, c: dict[str, Any], finish: str, k: int) -> Array:
    """The picks of the three operations."""
    tokens, positions = len(c["query"]), c["positions"]
    count = c["table"].shape[1] * PAGE_ROWS if "table" in c else c["rows"].shape[1]
    y = {"y": np.zeros(c["query"].shape, DTYPES["bf16"])}
    turned = run(
        device, "index_query", y, x=c["query"], frequencies=FREQUENCIES, positions=positions, finish=finish
    )
    given = c | {"query": turned["y"]}
    scores = run(device, "index_scores", {"scores": poisoned((tokens, count))}, scale=0.25, **given)["scores"]
    out = {"picks": np.full((tokens, k), -7, np.int32)}
    return run(device, "top_k", out, scores=scores, positions=positions)["picks"]


def at_once(device: Any, c: dict[str, Any], finish: str, k: int) -> Array:
    out = {"picks": np.full((len(c["query"]), k), -7, np.int32)}
    return run(device, "index_select", out, frequencies=FREQUENCIES, finish=finish, scale=0.25, **c)["picks"]


@pytest.mark.parametrize("finish", ["none", "hadamard_fp4"])
@pytest.mark.parametrize("dtype", ["bf16", "fp4"])
@pytest.mark.parametrize("heads", [5, 64])
def test_same_picks(device: Any, heads: int, dtype: str, finish: str) -> None:
    c = case(heads, dtype)
    expected = apart(device, c, finish, K)
    for count in (1, 3, 8):
        for first in range(0, 8, count):
            rows = np.arange(first, min(first + count, 8))
            got = at_once(device, of(c, rows), finish, K)
            assert np.array_equal(got, expected[rows]), (first, count)


@pytest.mark.parametrize("k", [512, 1024])
def test_most_rows(device: Any, k: int) -> None:
    """2048 rows, as many as fit; as many are chosen as released models choose."""
    c = case(64, "fp4", 2048, 2) | {"positions": np.array([8191, 4500], np.int32)}
    assert np.array_equal(at_once(device, c, "hadamard_fp4", k), apart(device, c, "hadamard_fp4", k))


def test_against_float64(device: Any) -> None:
    """Queries that no rounding changes, and rows far from each other's scores."""
    rng = np.random.default_rng(3)
    query = rng.integers(-2, 3, (1, 8, 128)).astype(DTYPES["bf16"])
    rows = rng.integers(-2, 3, (1, 200, 128)).astype(DTYPES["bf16"])
    weights = rng.integers(1, 4, (1, 8)).astype(np.float32)
    picks = run(
        device, "index_select", {"picks": np.zeros((1, 20), np.int32)}, query=query, weights=weights, rows=rows,
        frequencies=FREQUENCIES, positions=np.array([0], np.int32), ratio=1, finish="none",
    )["picks"]  # fmt: skip
    assert picks[0].tolist() == [0] + [-1] * 19
    turned = ref.rotate(query[0].astype(np.float64), 199, ref.frequencies(64, 1.6e5, (16, 65536, 32, 1)))
    scores = ref.index_scores(ref.to_bf16(turned), weights[0], rows[0].astype(np.float64), 1)
    got = run(
        device, "index_select", {"picks": np.zeros((1, 20), np.int32)}, query=query, weights=weights, rows=rows,
        frequencies=FREQUENCIES, positions=np.array([199], np.int32), ratio=1, finish="none",
    )["picks"][0]  # fmt: skip
    chosen = np.sort(scores)[-20]
    assert (np.diff(got) > 0).all() and (scores[got] >= chosen - 1e-3 * abs(chosen)).all()


def test_rows_are_independent(device: Any) -> None:
    """In batches of as many tokens as it takes; poisoned neighbours look at cache rows of NaN as well."""
    c = case(5, "bf16", 80)
    rows = {name: c[name][1:5] for name in BY_ROW} | {"sequences": np.zeros(4, np.int32)}
    c["rows"][1] = np.nan

    def call(some: dict[str, Array]) -> dict[str, Array]:
        return {"picks": at_once(device, c | some, "hadamard_fp4", 20)}

    sick = {"sequences": np.array([1, 0, 1], np.int32)}
    assert_batch_invariant(call, rows, sick, sizes=(2, 3, 4, 5, 8))


def test_bad_input(emulator: Any) -> None:
    c = case(5, "bf16") | {
        "frequencies": FREQUENCIES,
        "picks": np.zeros((8, K), np.int32),
        "device": emulator,
    }

    def refused(text: str, **changes: Any) -> None:
        with pytest.raises(ValueError, match=text):
            ops.index_select(**c | changes)

    refused("got 8 tokens of 5 fp32 heads of 128 channels", query=c["query"].astype(np.float32))
    nine = of(c, np.arange(9) % 8) | {"picks": np.zeros((9, K), np.int32)}
    refused("9 tokens of 5 bf16 heads of 128 channels, 64 of them rotated, and 1000 rows", **nine)
    refused("picks has shape", picks=np.zeros((8, 0), np.int32))
    refused("128 of them rotated.* expected .* 64 rotated", frequencies=ops.rope_frequencies(128, 1e4))
    refused(r"frequencies has shape \[64\], expected \[any, 2\]", frequencies=FREQUENCIES.ravel())
    for where in ("sm_80", "sm_120a", "sm_90a,sms=1"):
        refused(
            "got emulated .*, expected a device with room for clusters", device=_C.Device(f"emulator:{where}")
        )
