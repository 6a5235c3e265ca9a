"""The small-batch kernels of every layout: what they decode is what the host does, memory around the operands is not read,
and other architectures have the same kernels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from kernel.test_gemv import (
    BF16,
    PLAIN,
    check,
    random_weight,
    random_x,
    run,
    same_bits,
)

import deep_gemm
from deep_gemm import _C
from deep_gemm.quantized import QuantizedMatrix

Array = np.ndarray[Any, np.dtype[Any]]


@pytest.mark.parametrize(("w", "x"), PLAIN, ids=lambda name: name)
def test_kernels_decode_as_the_host_does(device: Any, w: str, x: str) -> None:
    """A token that is 1 in one place gives that column of W, to the bit: what Python and C++ decode, the kernel does."""
    rng = np.random.default_rng(16)
    n, k = 37, 2208
    weight = random_weight(rng, n, k) * np.exp2(rng.integers(-12, 8, (n, 1))).astype(np.float32)
    matrix = deep_gemm.quantize(weight, w)
    host = matrix.dequantize()
    parts = [np.zeros(0, np.uint8) if part is None else part.view(np.uint8).reshape(-1)
             for part in (matrix.data, matrix.scales, matrix.zeros)]  # fmt: skip
    assert same_bits(_C.dequantize_weights(w, n, k, *parts, matrix.global_scale), host)
    places = np.append(rng.integers(0, k, 7), k - 1)
    one = np.zeros((8, k), np.float32)
    one[np.arange(8), places] = 1
    tokens: Any = one.astype(np.float16 if x == "fp16" else BF16)
    if x == "q8":
        tokens = one.astype(np.int8), np.ones((8, -(-k // 32)), np.float32)
    np.testing.assert_array_equal(run(device, tokens, matrix), host[:, places].T)


def surrounded(a: Array, shift: int, fill: int) -> Array:
    """A view of `a` inside memory of `fill`: rows between, columns beside, `shift` elements off a multiple of 64 bytes."""
    rows, columns = a.shape
    wide = np.full(((rows + 2) * (columns + 7 * shift + 64) + 64, a.itemsize), fill, np.uint8).view(a.dtype)[
        :, 0
    ]
    first = -wide.ctypes.data % 64 // a.itemsize
    pitch = (
        columns + 7 * shift if shift else -(-columns * a.itemsize // 16) * 16 // a.itemsize + 16 // a.itemsize
    )
    view = wide[first + pitch : first + (rows + 1) * pitch].reshape(rows, pitch)[:, shift : shift + columns]
    view[...] = a
    return view


@pytest.mark.parametrize(("w", "x"), PLAIN, ids=lambda name: name)
def test_memory_around_is_not_read(emulator: Any, w: str, x: str) -> None:
    """NaN, or the largest codes, around every row of x and W and before and behind the scales; canaries around y."""
    rng = np.random.default_rng(15)
    for n, k, shift in ((17, 129, 2), (33, 160, 0)):
        matrix = deep_gemm.quantize(random_weight(rng, n, k), w)
        tokens = random_x(rng, 3, k, x)
        values, scales = tokens if isinstance(tokens, tuple) else (tokens, None)
        around = (surrounded(values, 0 if x == "q8" else shift, 0x81 if x == "q8" else 0xFF), scales)
        if scales is not None:
            around = around[0], surrounded(scales, 1, 0xFF)
        parts = [
            None if part is None else surrounded(part.reshape(1, -1), shift, 0x7F).reshape(part.shape)
            for part in (matrix.scales, matrix.zeros)
        ]
        moved = QuantizedMatrix(w, n, k, surrounded(matrix.data, shift, 0x7F), *parts, matrix.global_scale)
        wide = np.full((5, n + 2), -7, np.float32)
        deep_gemm.linear(around if scales is not None else around[0], moved, wide[1:4, 1:-1], device=emulator)
        assert (wide[[0, -1]] == -7).all() and (wide[:, [0, -1]] == -7).all()
        got = np.ascontiguousarray(wide[1:4, 1:-1])
        check(got, tokens, matrix)
        assert same_bits(got, run(emulator, tokens, matrix))


@pytest.mark.parametrize("arch", ["80", "89", "100a", "120a", "121a"])
@pytest.mark.parametrize(("w", "x"), [("q8_0", "q8"), ("nvfp4", "fp8_128")], ids=str)
def test_other_architectures_have_the_same_kernels(emulator: Any, arch: str, w: str, x: str) -> None:
    """Emulated: the same text, compiled for another architecture (below sm_90 without dependent launch, below sm_89
    without conversions of FP8), gives the same bits.
    """
    rng = np.random.default_rng(11)
    matrix = deep_gemm.quantize(random_weight(rng, 18, 416), w)
    tokens = random_x(rng, 3, 416, x)
    got = run(_C.Device(f"emulator:sm_{arch},sms=4"), tokens, matrix)
    check(got, tokens, matrix)
    assert same_bits(got, run(emulator, tokens, matrix))
