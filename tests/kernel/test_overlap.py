"""Model operations refuse outputs that share bytes with an input: rows are written while others are still read. Where
an operation may work in place, on the very rows, it still does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from ops_cases import DTYPES, Array, real, same_bits

from deep_gemm import _C, ops

T, N = 4, 64
FREQUENCIES = ops.rope_frequencies(64, 1e4)
POSITIONS = np.arange(T, dtype=np.int32)


def memory(elements: int = 1 << 16, dtype: Any = np.float32) -> Array:
    """Zeroes that start at a multiple of 16 bytes."""
    storage = np.zeros(elements + 16, dtype)
    start = -storage.ctypes.data % 16 // storage.itemsize
    return storage[start : start + elements]


def two(
    shape: tuple[int, ...], other: tuple[int, ...], shift: int, dtype: Any = np.float32
) -> tuple[Array, Array]:
    """Two tensors of one memory, `shift` elements apart."""
    pool = memory(dtype=dtype)
    count, others = int(np.prod(shape)), int(np.prod(other))
    return pool[:count].reshape(shape), pool[shift : shift + others].reshape(other)


def zeros(*shape: int, dtype: Any = np.float32) -> Array:
    return np.zeros(shape, dtype)


def project(x: Array, y: Array, **more: Any) -> None:
    ops.project(x, zeros(N, N), y, **more)


def hyper(x: Array, y: Array, **more: Any) -> None:
    ops.hc_pre(x, zeros(24, 4 * N), zeros(24), zeros(3), y, zeros(T, 4), zeros(T, 4, 4), **more)


def grouped(q: Array, out: Array, **more: Any) -> None:
    keys = real(np.random.default_rng(4), (1, 8, 2, N))
    ops.gqa_attention(q, keys, keys, POSITIONS, zeros(*ops.gqa_records_shape(T, 2, 8, N)), out, **more)


# name -> (the call, shapes of the two tensors, their names in the message)
SHARED: dict[str, tuple[Callable[..., None], tuple[int, ...], tuple[int, ...], str, str]] = {
    "project": (project, (T, N), (T, N), "y", "x"),
    "add in part": (lambda add, y, **k: project(zeros(T, N), y, add=add, **k), (T, N), (T, N), "y", "add"),
    "rms_norm": (ops.rms_norm, (T, N), (T, N), "y", "x"),
    "rope": (lambda x, y, **k: ops.rope(x, FREQUENCIES, POSITIONS, y, **k), (T, 2, N), (T, 2, N), "y", "x"),
    "hc_pre": (hyper, (T, 4, N), (T, N), "y", "x"),
    "hc_post": (
        lambda x, out, **k: ops.hc_post(x, zeros(T, N), zeros(T, 4), zeros(T, 4, 4), out, **k),
        (T, 4, N), (T, 4, N), "out", "x",
    ),
    "expand_streams": (ops.expand_streams, (T, N), (T, 4, N), "x", "value"),
    "cache_write": (lambda x, rows, **k: ops.cache_write(x, POSITIONS, rows, **k), (T, 2, N), (1, 8, 2, N), "rows", "x"),
    "sample_distribution": (
        lambda x, p, **k: ops.sample_distribution(
            x, np.ones(T, np.float32), np.zeros(T, np.int32), np.ones(T, np.float32), zeros(T), p, **k
        ),
        (T, N), (T, N), "probabilities", "logits",
    ),
    "route": (lambda x, w, **k: ops.route(x, np.zeros((T, 2), np.int32), w, **k), (T, N), (T, 2), "weights", "logits"),
    "latent_attention": (
        lambda q, out, **k: ops.latent_attention(q, zeros(1, 8, N), POSITIONS, out, window=4, **k),
        (T, 2, N), (T, 2, N), "out", "q",
    ),
    "index_scores": (
        lambda q, s, **k: ops.index_scores(q, zeros(T, 2), zeros(1, 8, N), POSITIONS, s, **k),
        (T, 2, N), (T, 8), "scores", "query",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SHARED)
@pytest.mark.parametrize("shift", [4, N])
def test_shared_bytes_are_refused(emulator: _C.Device, name: str, shift: int) -> None:
    call, shape, other, written, read = SHARED[name]
    x, y = two(shape, other, shift)
    y[...] = 7
    before = (x.copy(), y.copy())
    with pytest.raises(
        ValueError, match=rf": {written} is the \d+ bytes from 0x\w+, which overlap {read}, the \d+ bytes"
    ):
        call(x, y, device=emulator)
    assert same_bits(x, before[0]) and same_bits(y, before[1])


def test_integers_are_apart(emulator: _C.Device) -> None:
    logits = real(np.random.default_rng(0), (T, N))
    with pytest.raises(ValueError, match=r"argmax: tokens is the 16 bytes from .* overlap logits"):
        ops.argmax(logits, logits[1, :T].view(np.int32), device=emulator)
    positions, picks = two((T,), (T, 2), 2, np.int32)
    with pytest.raises(ValueError, match=r"top_k: picks is the 32 bytes from .* overlap positions"):
        ops.top_k(logits, positions, picks, device=emulator)
    base, filled = two((1,), (T,), 0, np.int32)
    with pytest.raises(ValueError, match=r"fill_positions: positions is the 16 bytes from .* overlap base"):
        ops.fill_positions(base, filled, device=emulator)


def test_outputs_are_apart_from_each_other(emulator: _C.Device) -> None:
    pool = memory(dtype=np.uint8)
    y = pool[: T * 128 * 2].view(DTYPES["bf16"]).reshape(T, 128)
    codes = pool[128:][: T * 128].view(DTYPES["fp8_e4m3"]).reshape(T, 128)
    with pytest.raises(
        ValueError, match=r"rms_norm: y is the 1024 bytes from .* overlap codes, the 512 bytes"
    ):
        ops.rms_norm(np.zeros_like(y), y, codes=codes, scales=zeros(T, 1), device=emulator)


@pytest.mark.parametrize(
    ("call", "shape"),
    [
        (lambda x, y, d: ops.rms_norm(x, y, device=d), (T, N)),
        (lambda x, y, d: ops.rope(x, FREQUENCIES, POSITIONS, y, device=d), (T, 2, N)),
        (lambda x, y, d: ops.hc_post(x, zeros(T, N), zeros(T, 4), np.ones((T, 4, 4), np.float32), y, device=d), (T, 4, N)),
        (lambda x, y, d: ops.project(np.ones((T, N), np.float32), np.ones((N, N), np.float32), y, add=x, device=d), (T, N)),
        (lambda x, y, d: ops.latent_attention(x, np.ones((1, 8, N), np.float32), POSITIONS, y, window=4, device=d), (T, 2, N)),
        (lambda x, y, d: grouped(x, y, device=d), (T, 2, N)),
    ],
    ids=["rms_norm", "rope", "hc_post", "project", "latent_attention", "gqa_attention"],
)  # fmt: skip
def test_in_place_where_it_is_said(
    emulator: _C.Device, call: Callable[..., None], shape: tuple[int, ...]
) -> None:
    x = real(np.random.default_rng(1), shape)
    apart = zeros(*shape)
    call(x.copy(), apart, emulator)
    call(x, x, emulator)
    assert same_bits(x, apart)


def test_columns_side_by_side_are_apart(emulator: _C.Device) -> None:
    """x and y as columns of one wide tensor, heads of one buffer among them."""
    wide = real(np.random.default_rng(2), (T, 2 * N))
    expected = zeros(T, N)
    ops.rms_norm(wide[:, :N].copy(), expected, device=emulator)
    ops.rms_norm(wide[:, :N], wide[:, N:], device=emulator)
    assert same_bits(np.ascontiguousarray(wide[:, N:]), expected)
    heads = real(np.random.default_rng(3), (T, 4, N))
    turned = zeros(T, 2, N)
    ops.rope(heads[:, :2].copy(), FREQUENCIES, POSITIONS, turned, device=emulator)
    ops.rope(heads[:, :2], FREQUENCIES, POSITIONS, heads[:, 2:], device=emulator)
    assert same_bits(np.ascontiguousarray(heads[:, 2:]), turned)
    with pytest.raises(ValueError, match="rope: y is"):
        ops.rope(heads[:, :2], FREQUENCIES, POSITIONS, heads[:, 1:3], device=emulator)
