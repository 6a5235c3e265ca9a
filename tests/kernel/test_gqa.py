"""Grouped-query attention against float64: every width and format, lengths around the pieces that its rows are cut into."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from certificate import assert_batch_invariant
from ops_cases import DTYPES, Array, assert_close, poisoned, real, run
from reference import deepseek_v4 as ref
from reference.quantize import fp8_128

from deep_gemm import ops


def attend(
    device: Any, q: Array, keys: Array, values: Array, positions: Array, **more: Any
) -> dict[str, Array]:
    tokens, heads, d = q.shape
    records = poisoned(ops.gqa_records_shape(tokens, heads, keys.shape[1], d))
    outputs = {"out": poisoned(q.shape, "bf16" if q.dtype.itemsize == 2 else "fp32"), "records": records}
    return run(
        device,
        "gqa_attention",
        outputs,
        q=q,
        keys=keys,
        values=values,
        positions=positions.astype(np.int32),
        **more,
    )


def expect(q: Array, keys: Array, values: Array) -> Array:
    """One query over all of keys and values [rows, kv heads, d]."""
    group = q.shape[0] // keys.shape[1]
    heads = [
        ref.attention(q[h : h + 1], keys[:, h // group], values[:, h // group], q.shape[1] ** -0.5, None)[0]
        for h in range(q.shape[0])
    ]
    return np.stack(heads)


@pytest.mark.parametrize(("heads", "kv_heads", "d"), [(8, 1, 128), (6, 2, 128), (4, 4, 64), (20, 2, 32)])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_against_float64(device: Any, heads: int, kv_heads: int, d: int, dtype: str) -> None:
    rng = np.random.default_rng(12)
    q = real(rng, (4, heads, d), dtype, scale=3)
    keys, values = real(rng, (2, 140, kv_heads, d), dtype), real(rng, (2, 140, kv_heads, d), dtype)
    positions, sequences = np.array([0, 139, -1, 17]), np.array([1, 0, 0, 1], np.int32)
    keys[1, 18:], values[1, 18:] = np.nan, np.nan  # later rows are not looked at
    out = attend(device, q, keys, values, positions, sequences=sequences)["out"]
    for t, position in enumerate(positions):
        rows = np.s_[sequences[t], : position + 1]
        if position < 0:
            assert not out[t].any()
        else:
            assert_close(out[t], expect(q[t], keys[rows], values[rows]), 2e-5)


def test_fp8_copy_is_what_quantize_makes(device: Any) -> None:
    rng = np.random.default_rng(15)
    q = real(rng, (3, 4, 128), "bf16", scale=3)
    keys, values = (real(rng, (1, 130, 2, 128), "bf16") for _ in range(2))
    records = poisoned(ops.gqa_records_shape(3, 4, 130, 128))
    outputs = {"out": poisoned(q.shape, "bf16"), "records": records, "codes": np.zeros(q.shape, DTYPES["fp8_e4m3"]),
               "scales": poisoned((3, 4))}  # fmt: skip
    got = run(
        device,
        "gqa_attention",
        outputs,
        q=q,
        keys=keys,
        values=values,
        positions=np.array([0, -1, 129], np.int32),
    )
    codes, scales = fp8_128(got["out"].astype(np.float32).reshape(12, 128))
    assert got["codes"].tobytes() == codes.tobytes()
    assert (got["scales"].reshape(-1) == scales[:, 0]).all()


@pytest.mark.parametrize("length", [1, 7, 8, 9, 31, 32, 33, 127, 128, 129, 256, 257])
def test_lengths(device: Any, length: int) -> None:
    """Around a warp's step, a warp's share and a piece; the whole cache, and a position beyond it."""
    rng = np.random.default_rng(length)
    q = real(rng, (2, 2, 64), scale=3)
    keys, values = real(rng, (1, length, 1, 64)), real(rng, (1, length, 1, 64))
    out = attend(device, q, keys, values, np.array([length - 1, length + 300]))["out"]
    for t in range(2):
        assert_close(out[t], expect(q[t], keys[0], values[0]), 2e-5)


def test_extreme_scores(device: Any) -> None:
    """Scores far apart and infinite keys: no overflow; NaN where the formula has it, in that head alone."""
    rng = np.random.default_rng(3)
    q, keys, values = real(rng, (1, 2, 32)), real(rng, (1, 200, 2, 32)), real(rng, (1, 200, 2, 32))
    q[0, 0], keys[0, :, 0] = 60, keys[0, :, 0] * 60
    keys[0, 150, 1] = np.nan
    out = attend(device, q, keys, values, np.array([199]))["out"]
    assert_close(out[:, :1], expect(q[0, :1], keys[0, :, :1], values[0, :, :1])[None], 2e-5)
    assert np.isnan(out[0, 1]).all()


def test_strides(device: Any) -> None:
    """Keys and values side by side in one buffer, queries with rows apart."""
    rng = np.random.default_rng(4)
    both, wide = real(rng, (2, 30, 2, 2, 32)), real(rng, (3, 5, 32))
    keys, values, q = both[:, :, 0], both[:, :, 1], wide[:, :4]
    positions, sequences = np.array([29, 4, 11]), np.array([0, 1, 1], np.int32)
    out = attend(device, q, keys, values, positions, sequences=sequences)["out"]
    for t in range(3):
        rows = np.s_[sequences[t], : positions[t] + 1]
        assert_close(out[t], expect(q[t], keys[rows], values[rows]), 2e-5)


def test_rows_are_independent(device: Any) -> None:
    """The certificate, neighbours with caches of NaN too; a longer cache changes nothing either."""
    rng = np.random.default_rng(13)
    q, keys, values = real(rng, (4, 4, 32)), real(rng, (2, 300, 2, 32)), real(rng, (2, 300, 2, 32))
    keys[1], values[1] = np.nan, np.inf
    positions = np.array([3, 299, 130, 127])

    def call(rows: dict[str, Array]) -> dict[str, Array]:
        got = attend(device, rows["q"], keys, values, rows["positions"], sequences=rows["sequences"])
        return {"out": got["out"]}

    rows = {"q": q, "positions": positions, "sequences": np.zeros(4, np.int32)}
    sick = {"sequences": np.array([1, 0, 1]), "positions": np.array([40, 20, 30])}
    assert_batch_invariant(call, rows, sick)
    cut = {name: value[2:] for name, value in rows.items()}
    short = attend(device, q[2:], keys[:1, :131], values[:1, :131], positions[2:])["out"]
    assert np.array_equal(short, call(cut)["out"])


def test_bad_input(emulator: Any) -> None:
    q, rows, positions = (
        np.zeros((1, 4, 64), np.float32),
        np.zeros((1, 4, 2, 64), np.float32),
        np.zeros(1, np.int32),
    )
    records = np.zeros(ops.gqa_records_shape(1, 4, 4, 64), np.float32)
    assert records.shape == (1, 4, 1, 68)
    good = {"q": q, "keys": rows, "values": rows, "positions": positions, "records": records, "out": q.copy()}
    for change, error, message in (
        ({"q": np.zeros((1, 5, 64), np.float32), "out": np.zeros((1, 5, 64), np.float32)}, ValueError, "5 heads over 2 kv heads"),
        ({"q": np.zeros((1, 4, 48), np.float32)}, ValueError, "q has 48 channels, expected 32, 64 or 128"),
        ({"records": np.zeros((1, 4, 2, 68), np.float32)}, ValueError, r"records has shape \(1, 4, 2, 68\)|records has shape"),
        ({"values": rows.astype(np.float16)}, TypeError, "values is fp16"),
        ({"keys": rows[:, :0], "values": rows[:, :0]}, ValueError, "and rows"),
        ({"positions": np.zeros(2, np.int32)}, ValueError, "positions has shape"),
    ):  # fmt: skip
        with pytest.raises(error, match=message):
            ops.gqa_attention(**{**good, **change}, device=emulator)
