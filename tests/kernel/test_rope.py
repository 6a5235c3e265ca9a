"""Rotary positions and cache writes against float64, up to positions of a million."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from certificate import assert_batch_invariant
from ops_cases import Array, assert_close, poisoned, real, run, same_bits
from reference import deepseek_v4 as ref

from deep_gemm import ops

YARN = (16.0, 65536.0, 32.0, 1.0)
POSITIONS = np.array([0, 1, 127, 65537, -1, 1048575], np.int32)


def table(theta: float = 1.6e5, yarn: bool = True, dims: int = 64) -> tuple[Array, Array]:
    f = ops.rope_frequencies(dims, theta, yarn_factor=16 if yarn else 0)
    return f, ref.frequencies(dims, theta, YARN if yarn else None)


def test_frequencies() -> None:
    for theta, yarn in ((1e4, False), (1.6e5, True)):
        pairs, expected = table(theta, yarn)
        got = pairs.astype(np.float64).sum(1) * 2 * np.pi
        assert np.abs(got / expected - 1).max() < 2.0**-46
    assert np.allclose(
        expected[[15, 16, 20, 25, 31]], [3.6355385e-3, 2.2656249e-3, 2.9697779e-4, 5.3723124e-6, 5.6805294e-7]
    )


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("norm", [False, True])
def test_rope(device: Any, dtype: str, inverse: bool, norm: bool) -> None:
    x, (f, wide) = real(np.random.default_rng(1), (6, 2, 512), dtype), table()
    y = run(
        device,
        "rope",
        {"y": poisoned((6, 2, 512), dtype)},
        x=x,
        frequencies=f,
        positions=POSITIONS,
        inverse=inverse,
        norm=norm,
    )["y"]
    for t, position in enumerate(POSITIONS):
        if position < 0:
            assert np.isnan(y[t].astype(np.float32)).all()
            continue
        expected = ref.rotate(ref.rms_norm(x[t], None, 1e-6) if norm else x[t], int(position), wide, inverse)
        assert_close(y[t], expected, 3e-6)


@pytest.mark.parametrize("d", [32, 64, 128])
def test_halves_with_weight(device: Any, d: int) -> None:
    rng = np.random.default_rng(2)
    x, weight, (f, wide) = real(rng, (6, 3, d)), real(rng, (d,), "bf16"), table(1e6, False, d)
    y = run(
        device,
        "rope",
        {"y": x.copy()},
        x=x,
        weight=weight,
        frequencies=f,
        positions=POSITIONS,
        norm=True,
        pairs="halves",
    )["y"]
    for t, position in enumerate(POSITIONS):
        if position >= 0:
            assert_close(
                y[t], ref.rotate(ref.rms_norm(x[t], weight, 1e-6), int(position), wide, halves=True), 3e-6
            )
        else:
            assert (y[t] == x[t]).all()


def latent(rows: Any, **more: Any) -> dict[str, Any]:
    rng = np.random.default_rng(3)
    return {
        "x": real(rng, (6, 512), scale=2),
        "weight": real(rng, (512,), "bf16"),
        "frequencies": table()[0],
        "positions": np.array([3, 4, 5, -1, 14, 1000007], np.int32),
        **more,
    }


def expected_rows(c: dict[str, Any]) -> Array:
    wide = table()[1]
    return np.stack(
        [
            ref.rotate(ref.rms_norm(x, c["weight"], 1e-6), int(p), wide)
            for x, p in zip(c["x"], c["positions"], strict=True)
        ]
    )


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_latent_write(device: Any, dtype: str) -> None:
    c = latent(None, sequences=np.array([0, 1, 1, 0, 2, 1], np.int32))
    rows = run(device, "latent_write", {"rows": poisoned((2, 10, 512), dtype)}, **c)["rows"]
    expected = expected_rows(c)
    written = {(0, 3): 0, (1, 4): 1, (1, 5): 2, (1, 7): 5}  # sequence 2 is outside the cache
    for place in np.ndindex(2, 10):
        if place in written:
            assert_close(rows[place], expected[written[place]], 5e-6)
        else:
            assert np.isnan(rows[place].astype(np.float32)).all(), place


def near_grid(got: Array, expected: Array, exact: Array) -> None:
    """Equal to the rounded reference, but for values so near a tie that fp32 may round them the other way."""
    differs = np.abs(got - expected) > 1e-9
    assert differs.mean() < 0.01
    assert (np.abs(got - exact) <= np.abs(expected - exact) * 1.001 + 1e-5).all()


def test_fp8_rows_and_round_trip(device: Any) -> None:
    c = latent(None)
    exact, page_rows = expected_rows(c), 4
    expected = ref.fp8_round_trip(exact, 64)
    pages = np.full((1, 3, ops.latent_page_bytes(page_rows)), 0x55, np.int8)
    pages = run(device, "latent_write", {"rows": pages}, **c, page_rows=page_rows)["rows"]
    plain = run(device, "latent_write", {"rows": poisoned((1, 12, 512))}, **c, fp8_round_trip=True)["rows"]
    got = ref.read_fp8_rows(pages, page_rows)
    for t, position in enumerate(c["positions"]):
        if position >= 0:
            row = int(position) % 12
            near_grid(got[0, row], expected[t], exact[t])
            assert (got[0, row] == plain[0, row]).all(), "the round trip is the FP8 row"
    assert (pages.view(np.uint8)[0, 0, :576] == 0x55).all(), "row 0 is untouched"
    assert (pages.view(np.uint8)[0, :, 4 * 584 :] == 0x55).all(), "the padding of a page is untouched"


@pytest.mark.parametrize("finish", ["none", "hadamard", "hadamard_fp4"])
@pytest.mark.parametrize("d", [128, 32])
def test_index_query(device: Any, finish: str, d: int) -> None:
    x, (f, wide) = real(np.random.default_rng(4), (6, 3, d)), table(dims=64 if d == 128 else 16)
    y = run(
        device,
        "index_query",
        {"y": poisoned(x.shape)},
        x=x,
        frequencies=f,
        positions=POSITIONS,
        finish=finish,
    )["y"]
    for t, position in enumerate(POSITIONS):
        if position < 0:
            continue
        turned = ref.rotate(x[t], int(position), wide)
        if finish == "hadamard_fp4":
            near_grid(y[t], ref.fp4_round_trip(turned), ref.hadamard(turned))
        else:
            assert_close(y[t], turned if finish == "none" else ref.hadamard(turned), 3e-6)


def test_cache_write(device: Any) -> None:
    x = real(np.random.default_rng(5), (4, 2, 8))
    positions, sequences = np.array([0, 9, -1, 3], np.int32), np.array([1, 0, 0, 5], np.int32)
    rows = run(
        device,
        "cache_write",
        {"rows": poisoned((2, 7, 2, 8), "bf16")},
        x=x,
        positions=positions,
        sequences=sequences,
    )["rows"].astype(np.float32)
    assert (rows[1, 0] == ref.to_bf16(x[0])).all() and (rows[0, 2] == ref.to_bf16(x[1])).all()
    assert np.isnan(rows).sum() == rows.size - 2 * 16


def test_rows_are_independent(device: Any) -> None:
    c = latent(None)

    def call(rows: dict[str, Array]) -> dict[str, Array]:
        """With a sequence for each row: nobody shares a cache row."""
        count = len(rows["x"])
        given = {**rows, "sequences": np.arange(count, dtype=np.int32), "frequencies": c["frequencies"]}
        pages = {"rows": np.zeros((count, 1, ops.latent_page_bytes(16)), np.int8)}
        written = run(device, "latent_write", pages, **given, page_rows=16, weight=c["weight"])["rows"]
        del given["sequences"]
        y = run(device, "rope", {"y": np.zeros((count, 512), np.float32)}, **given, norm=True)["y"]
        return {"pages": written, "y": y}

    assert_batch_invariant(call, {"x": c["x"], "positions": c["positions"]})


@pytest.mark.parametrize("finish", ["none", "hadamard_fp4"])
def test_queries_and_plain_cache_rows_are_independent(device: Any, finish: str) -> None:
    x, (frequencies, _) = real(np.random.default_rng(7), (6, 2, 128)), table()

    def call(rows: dict[str, Array]) -> dict[str, Array]:
        y = {"y": np.zeros(rows["x"].shape, np.float32)}
        turned = run(device, "index_query", y, **rows, frequencies=frequencies, finish=finish)
        cache = {"rows": np.zeros((len(rows["x"]), 3, 2, 128), np.float32)}
        sequences = np.arange(len(rows["x"]), dtype=np.int32)
        return turned | run(device, "cache_write", cache, **rows, sequences=sequences)

    assert_batch_invariant(call, {"x": x, "positions": POSITIONS})


def test_bad_input(emulator: Any) -> None:
    c = latent(None)
    with pytest.raises(ValueError, match=r"and 0 rows a page, expected 512 channels \(FP8\) and page_rows"):
        ops.latent_write(**c, rows=np.zeros((1, 1, 2336), np.int8), device=emulator)
    with pytest.raises(ValueError, match=r"rows has shape .* expected \[any, any, 2880\]"):
        ops.latent_write(**c, rows=np.zeros((1, 1, 2336), np.int8), page_rows=4, device=emulator)
    with pytest.raises(ValueError, match="halves of 64 of 512 channels"):
        ops.rope(c["x"], c["frequencies"], c["positions"], c["x"].copy(), pairs="halves", device=emulator)


def test_many_heads(device: Any) -> None:
    """CTAs of several heads: right, and the bits of CTAs of one."""
    rng = np.random.default_rng(8)
    rows, heads, d = 520, 8, 160
    x, positions = real(rng, (rows, heads, d), "bf16"), rng.integers(-1, 5000, rows).astype(np.int32)

    def call(some: slice) -> Array:
        out = {"y": poisoned((len(x[some]), heads, d))}
        return run(device, "rope", out, x=x[some], frequencies=ops.rope_frequencies(64, 1e4),
                   positions=positions[some], norm=True)["y"]  # fmt: skip

    y, few = call(slice(None)), slice(300, 320)
    assert same_bits(np.ascontiguousarray(y[few]), call(few))
    f = ref.frequencies(64, 1e4)
    for t in (t for t in range(300, 320) if positions[t] >= 0):
        normed = ref.rms_norm(x[t].astype(np.float64), None, 1e-6)
        assert_close(y[t], ref.rotate(normed, int(positions[t]), f), 1e-4)
