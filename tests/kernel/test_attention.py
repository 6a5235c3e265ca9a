"""Latent attention against float64: windows, compressed rows, picks, sinks, every cache format."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from certificate import assert_batch_invariant
from ops_cases import DTYPES, Array, assert_close, poisoned, real, run, same_bits
from reference import deepseek_v4 as ref

from deep_gemm import _C, ops

FREQUENCIES = ops.rope_frequencies(64, 1.6e5, yarn_factor=16)
WIDE = ref.frequencies(64, 1.6e5, (16, 65536, 32, 1))
RATIO, WINDOW, RING = 4, 20, 25
BF16 = DTYPES["bf16"]


def fp8_pages(rng: np.random.Generator, sequences: int, rows: int, page_rows: int) -> Array:
    """Random bytes of sound rows: finite values of moderate scales, poison in the padding."""
    pages = -(-rows // page_rows)
    raw = np.full((sequences, pages, ops.latent_page_bytes(page_rows)), 0x7F, np.uint8)
    for s, page, row in np.ndindex(sequences, pages, page_rows):
        values = real(rng, (448,), "fp8_e4m3", 40).view(np.uint8)
        rotated = real(rng, (64,), "bf16").view(np.uint8)
        raw[s, page, row * 576 : row * 576 + 576] = np.concatenate([values, rotated])
        at = page_rows * 576 + row * 8
        raw[s, page, at : at + 8] = [*rng.integers(120, 123, 7), 0]
    return raw.view(np.int8)


def latent_rows(rng: np.random.Generator, rows: int, dtype: str, d: int = 512) -> tuple[Array, Array, int]:
    """(what the kernel gets, the values [2, rows, d], rows of a page)"""
    if dtype == "fp8":
        pages = fp8_pages(rng, 2, rows, 5)
        return pages, ref.read_fp8_rows(pages, 5), 5
    data = real(rng, (2, rows, d), dtype)
    return data, data.astype(np.float64), 0


def expect(c: dict[str, Any], t: int, ring: Array, compressed: Array | None) -> Array:
    position = int(c["positions"][t])
    if position < 0:
        return np.zeros(c["q"].shape[1:])
    s = int(c["sequences"][t])
    seen = [ring[s, p % ring.shape[1]] for p in range(max(0, position - WINDOW + 1), position + 1)]
    if compressed is not None:
        visible = min((position + 1) // RATIO, compressed.shape[1])
        chosen = range(visible) if c.get("picks") is None else [i for i in c["picks"][t] if 0 <= i < visible]
        seen += [compressed[s, i] for i in chosen]
    o = ref.attention(c["q"][t], np.stack(seen), np.stack(seen), c["q"].shape[-1] ** -0.5, c.get("sinks"))
    return ref.rotate(o, position, WIDE, inverse=True) if c.get("frequencies") is not None else o


def case(heads: int = 5, d: int = 512, dtype: str = "fp32") -> dict[str, Any]:
    rng = np.random.default_rng(heads)
    return {
        "q": real(rng, (5, heads, d), dtype),
        "positions": np.array([0, 19, -1, 20, 77], np.int32),
        "sequences": np.array([0, 1, 0, 1, 0], np.int32),
    }


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp8"])
@pytest.mark.parametrize("kind", ["window", "all", "picks"])
def test_latent(device: Any, dtype: str, kind: str) -> None:
    rng = np.random.default_rng(7)
    c = case()
    c |= {"sinks": real(rng, (5,), scale=2), "frequencies": FREQUENCIES}
    ring, ring_values, page_rows = latent_rows(rng, RING, dtype)
    extra: dict[str, Any] = {}
    values = None
    if kind != "window":
        data, values, _ = latent_rows(rng, 30, dtype)
        extra = {"compressed": data, "compressed_page_rows": page_rows, "ratio": RATIO}
    if kind == "picks":
        c["picks"] = np.stack([np.sort(rng.permutation(20)[:6]) for _ in range(5)]).astype(np.int32)
        c["picks"][4, -2:], c["picks"][4, 0] = -1, 29
    out = run(
        device,
        "latent_attention",
        {"out": poisoned((5, 5, 512))},
        **c,
        ring=ring,
        ring_page_rows=page_rows,
        window=WINDOW,
        **extra,
    )["out"]
    for t in range(5):
        assert_close(out[t], expect(c, t, ring_values, values), 2e-5)


@pytest.mark.parametrize("d", [64, 512])
def test_formats_and_mixed_caches(device: Any, d: int) -> None:
    """bf16 queries and outputs; a bf16 ring with fp32 compressed rows; no sinks, no rotation."""
    rng = np.random.default_rng(8)
    c = case(4, d, "bf16")
    ring, ring_values, _ = latent_rows(rng, RING, "bf16", d)
    data, values, _ = latent_rows(rng, 30, "fp32", d)
    out = run(
        device,
        "latent_attention",
        {"out": poisoned((5, 4, d), "bf16")},
        **c,
        ring=ring,
        compressed=data,
        ratio=RATIO,
        window=WINDOW,
    )["out"]
    for t in range(5):
        assert_close(out[t], expect(c, t, ring_values, values), 1e-4)


def mma_case(heads: int, kind: str) -> tuple[dict[str, Any], Array, Array | None]:
    """bf16 queries over FP8 rows, up to 90 of them: (arguments, values of the ring, of compressed rows)"""
    rng = np.random.default_rng(heads)
    c = case(heads, 512, "bf16")
    c |= {"sinks": real(rng, (heads,), scale=2), "frequencies": FREQUENCIES, "window": WINDOW}
    c["positions"][4] = 279  # two chunks
    ring, ring_values, _ = latent_rows(rng, RING, "fp8")
    c |= {"ring": ring, "ring_page_rows": 5}
    if kind == "window":
        return c, ring_values, None
    data, values, _ = latent_rows(rng, 70, "fp8")
    c |= {"compressed": data, "compressed_page_rows": 5, "ratio": RATIO}
    if kind == "picks":
        c["picks"] = np.stack([np.sort(rng.permutation(70)[:60]) for _ in range(5)]).astype(np.int32)
        c["picks"][4, -2:] = -1
    return c, ring_values, values


@pytest.mark.parametrize("split", [True, False])
@pytest.mark.parametrize(
    ("heads", "kind"), [(5, "window"), (16, "all"), (20, "picks"), (70, "picks"), (128, "picks")]
)
def test_tensor_cores(device: Any, heads: int, kind: str, split: bool) -> None:
    c, ring_values, values = mma_case(heads, kind)
    out = {"out": poisoned((5, heads, 512), "bf16")}
    if split:
        out["records"] = poisoned((5, -(-heads // 16), 3, 16 * 516))
    got = run(device, "latent_attention", out, **c)["out"]
    largest = max(np.abs(v).max() for v in (ring_values, values) if v is not None)
    for t in range(5):
        # Weights that sum to one at most are rounded to bf16, each by 2^-9 of itself.
        assert_close(got[t], expect(c, t, ring_values, values), 2.0**-9 * largest + 1e-4)


@pytest.mark.parametrize("tokens", [2, 9])
def test_1024_picks(device: Any, tokens: int) -> None:
    """As many as any model has, by the kernel of few tokens and that of many."""
    c, ring_values, _ = mma_case(16, "window")
    c = rows_of(c, np.arange(tokens) % 5) | {"positions": np.full(tokens, 4399, np.int32)}
    rng = np.random.default_rng(15)
    data, values, _ = latent_rows(rng, 1100, "fp8")
    picks = np.stack([np.sort(rng.permutation(1100)[:1024]) for _ in range(tokens)]).astype(np.int32)
    c |= {"compressed": data, "compressed_page_rows": 5, "ratio": RATIO, "picks": picks}
    got = run(device, "latent_attention", {"out": poisoned((tokens, 16, 512), "bf16")}, **c)["out"]
    largest = max(np.abs(ring_values).max(), np.abs(values).max())
    for t in range(tokens):
        assert_close(got[t], expect(c, t, ring_values, values), 2.0**-9 * largest + 1e-4)


@pytest.mark.parametrize("kind", ["window", "all", "picks"])
@pytest.mark.parametrize("heads", [20, 64, 70])
def test_memory_between_two_kernels_changes_nothing(device: Any, heads: int, kind: str) -> None:
    c, _, _ = mma_case(heads, kind)
    out = {"out": poisoned((5, heads, 512), "bf16")}
    alone = run(device, "latent_attention", out, **c)["out"]
    out["records"] = poisoned((5, -(-heads // 16), 4, 16 * 516))
    assert same_bits(run(device, "latent_attention", out, **c)["out"], alone)


BY_ROW = ("q", "positions", "sequences", "picks")


def rows_of(c: dict[str, Any], rows: Array) -> dict[str, Any]:
    return {name: value[rows] if name in BY_ROW else value for name, value in c.items()}


def large_case(heads: int, kind: str) -> dict[str, Any]:
    """Windows of 128 rows about to fill, full and gone round; up to 1024 rows of a token, none at all, absent picks."""
    rng = np.random.default_rng(heads)
    positions = np.array([0, 63, 126, 127, 128, 4095, -1, 900], np.int32)
    c: dict[str, Any] = {
        "q": real(rng, (8, heads, 512), "bf16"),
        "positions": positions,
        "sequences": np.array([0, 1, 0, 1, 1, 0, 0, 1], np.int32),
        "sinks": real(rng, (heads,), scale=2),
        "frequencies": FREQUENCIES,
        "window": 128,
        "ring": latent_rows(rng, 140, "fp8")[0],
        "ring_page_rows": 5,
    }
    if kind == "window":
        return c
    count = 890 if kind == "all" else 1100
    c |= {"compressed": latent_rows(rng, count, "fp8")[0], "compressed_page_rows": 5, "ratio": 4}
    if kind == "picks":
        visible = np.maximum((positions + 1) // 4, 1)
        c["picks"] = np.stack([np.sort(rng.permutation(max(v, 512))[:512]) for v in visible]).astype(np.int32)
        c["picks"][5, -40:] = -1
    return c


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize(
    ("heads", "kind"), [(20, "window"), (16, "all"), (64, "picks"), (128, "window"), (5, "picks")]
)
def test_clusters_of_few_tokens_change_nothing(device: Any, heads: int, kind: str, raw: bool) -> None:
    """1 to 8 tokens, a cluster for the chunks of each, give the bits of many tokens, which other kernels serve; norm and
    rotation of queries on the way give those of rope()."""
    c = large_case(heads, kind)
    many = rows_of(c, np.arange(40) % 8)
    turned = dict(many)
    if raw:
        y = {"y": np.zeros((40, heads, 512), BF16)}
        turned["q"] = run(device, "rope", y, x=many["q"], frequencies=FREQUENCIES, positions=many["positions"], norm=True)["y"]  # fmt: skip
    expected = run(device, "latent_attention", {"out": poisoned((40, heads, 512), "bf16")}, **turned)["out"][
        :8
    ]
    for count in (1, 3, 8):
        got = np.concatenate(
            [
                run(device, "latent_attention", {"out": poisoned((count, heads, 512), "bf16")}, raw_queries=raw,
                    **rows_of(c, (np.arange(first, first + count)) % 8))["out"]
                for first in range(0, 8, count)
            ]
        )[:8]  # fmt: skip
        assert same_bits(got, expected), count


def test_raw_queries_of_others(device: Any) -> None:
    c, _, _ = mma_case(5, "window")
    out = {"out": poisoned((9, 5, 512), "bf16")}
    with pytest.raises(ValueError, match="got raw queries, expected few bf16 queries over FP8 rows"):
        run(device, "latent_attention", out, **rows_of(c, np.arange(9) % 5), raw_queries=True)


@pytest.mark.parametrize("tokens", [2, 9])
def test_bad_records(emulator: Any, tokens: int) -> None:
    """Also where no kernel of this call uses them."""
    c = rows_of(large_case(16, "window"), np.arange(tokens) % 8)
    out = {"out": poisoned((tokens, 16, 512), "bf16"), "records": np.zeros((1, 1, 1, 5), np.float32)}
    with pytest.raises(ValueError, match=rf"records has shape .*, expected \[{tokens}, 1, any, 8256\]"):
        run(emulator, "latent_attention", out, **c)


def test_devices_without_room_for_clusters() -> None:
    """Groups of SMs that hold no cluster: the kernels of more tokens serve few, and queries come turned."""
    c = rows_of(large_case(16, "picks"), np.arange(2))
    small, large = _C.Device("emulator:sm_90a,sms=4"), _C.Device("emulator:sm_90a,sms=8")
    out = {"out": poisoned((2, 16, 512), "bf16")}
    one, other = (run(device, "latent_attention", out, **c)["out"] for device in (small, large))
    assert same_bits(one, other)
    run(large, "latent_attention", out, **c, raw_queries=True)
    with pytest.raises(ValueError, match="on a device with room for clusters"):
        run(small, "latent_attention", out, **c, raw_queries=True)


# Poisoned neighbours: of a sequence whose cache rows are NaN, of that of the others, and one of each with few rows.
SICK = {"sequences": np.array([1, 0, 1], np.int32), "positions": np.array([20, 19, 3], np.int32)}


def alone_in_sequence_0(c: dict[str, Any]) -> dict[str, Array]:
    """The rows of a case, all of sequence 0; the other's cache is NaN."""
    for name in ("ring", "compressed"):
        if name in c:
            c[name][1] = 0x7F if c[name].dtype == np.int8 else np.nan
    c["sequences"][:] = 0
    return {name: c.pop(name) for name in BY_ROW if name in c}


@pytest.mark.parametrize(
    ("heads", "split", "sizes"),
    [(16, True, (2, 3, 5, 8, 16)), (16, False, (2, 3, 4, 33, 128)), (40, False, (2, 3))],
    ids=str,
)
def test_rows_on_tensor_cores_are_independent(
    device: Any, heads: int, split: bool, sizes: tuple[int, ...]
) -> None:
    c, _, _ = mma_case(heads, "picks")
    rows = alone_in_sequence_0(c)

    def call(some: dict[str, Array]) -> dict[str, Array]:
        count = len(some["q"])
        out = {"out": poisoned((count, heads, 512), "bf16")}
        if split:
            out["records"] = poisoned((count, 1, 3, 16 * 516))
        return {"out": run(device, "latent_attention", out, **some, **c)["out"]}

    assert_batch_invariant(call, rows, SICK, sizes)


def test_sinks_without_limits(device: Any) -> None:
    c = case(4)
    rng = np.random.default_rng(9)
    ring, ring_values, _ = latent_rows(rng, RING, "fp32")
    sinks = np.array([np.inf, -np.inf, 100, 0], np.float32)
    out = run(
        device, "latent_attention", {"out": poisoned((5, 4, 512))}, **c, ring=ring, sinks=sinks, window=WINDOW
    )["out"]
    assert (out[:, 0] == 0).all() and np.abs(out[4, 2]).max() < 1e-30
    plain = {**c, "sinks": None}
    assert_close(out[4, 1], expect(plain, 4, ring_values, None)[1], 1e-5)


def test_large_scores(device: Any) -> None:
    """Scores beyond e^88: the maximum is taken out, whichever tile it is in."""
    c = case(4)
    rng = np.random.default_rng(10)
    ring, ring_values, _ = latent_rows(rng, RING, "fp32")
    c["q"] = c["q"] * np.float32(200)
    out = run(device, "latent_attention", {"out": poisoned((5, 4, 512))}, **c, ring=ring, window=WINDOW)[
        "out"
    ]
    assert_close(out[4], expect(c, 4, ring_values, None), 2e-2)


def test_latent_rows_are_independent(device: Any) -> None:
    """Of one head, so that a batch of 128 is few heads."""
    rng = np.random.default_rng(11)
    ring, _, page_rows = latent_rows(rng, RING, "fp8")
    c = case(1) | {"ring": ring, "ring_page_rows": page_rows, "ratio": RATIO, "window": WINDOW}
    c |= {"compressed": latent_rows(rng, 30, "fp8")[0], "compressed_page_rows": page_rows}
    rows = alone_in_sequence_0(c)

    def call(some: dict[str, Array]) -> dict[str, Array]:
        return run(device, "latent_attention", {"out": poisoned(some["q"].shape)}, **some, **c)

    assert_batch_invariant(call, rows, SICK)


def test_bad_input(emulator: Any) -> None:
    c = case(4)
    ring = np.zeros((2, RING, 512), np.float32)
    out = poisoned((5, 4, 512))
    with pytest.raises(ValueError, match="got a window of 26 rows, expected 1 to the ring's 25"):
        ops.latent_attention(**c, ring=ring, out=out, window=26, device=emulator)
    with pytest.raises(ValueError, match="got picks without compressed rows"):
        ops.latent_attention(
            **c, ring=ring, out=out, window=8, picks=np.zeros((5, 2), np.int32), device=emulator
        )
    with pytest.raises(TypeError, match="ring is fp8_e4m3, expected fp32 or bf16"):
        ops.latent_attention(
            **c, ring=ring.astype(ml_dtypes.float8_e4m3fn), out=out, window=8, device=emulator
        )
