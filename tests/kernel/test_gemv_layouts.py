"""The small-batch kernels of every layout: what they decode is what the host does, no form changes a bit, memory around the
operands is not read, and other architectures have the same kernels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from kernel.test_gemv import (
    BF16,
    PLAIN,
    WITH_FP8,
    check,
    placed,
    random_weight,
    random_x,
    rows,
    run,
    same_bits,
)
from reference import quant

import deep_gemm
from deep_gemm import _C
from deep_gemm.demo.arrays import put, take
from deep_gemm.quantized import FORMATS, QuantizedMatrix

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


@pytest.mark.parametrize("form", [1, 2], ids=["memory", "resident"])
@pytest.mark.parametrize(
    "name", ["int4_32", "int4_128", "int4_zero_32", "int4_zero_128", "mxfp4", "nvfp4", "nvfp4_32"]
)
def test_every_nibble_at_every_place(device: Any, name: str, form: int) -> None:
    """All 16 codes at each place of a visit, of INT4 beside all 16 zero points: a token that is 1 there picks them out."""
    k, codes = 512, np.arange(16)
    zeros = codes.repeat(16) if "zero" in name else np.full(16, 8)
    placed_codes = ((np.arange(len(zeros))[:, None] + np.arange(k)) % 16).astype(np.uint8)
    packed = (placed_codes[:, ::2] | placed_codes[:, 1::2] << 4).view(np.int8)
    columns = k // FORMATS[name]["block_k"]
    one = {"mxfp4": 127, "nvfp4": 0x38, "nvfp4_32": 0x38}.get(name)
    scales = (
        np.full((len(zeros), columns), 0.75, np.float16)
        if one is None
        else np.full((len(zeros), columns), one, np.uint8)
    )
    table = zeros[:, None].repeat(columns, 1).astype(np.int8) if "zero" in name else None
    matrix = QuantizedMatrix.from_parts(name, packed, scales, table)
    x, y = (
        put(device, np.eye(256, k).astype(BF16)),
        put(device, np.full((256, len(zeros)), np.nan, np.float32)),
    )
    arguments = ([], [], False, 0.0, False, True, None, device, None, (0, 0, 0, 0, form))
    _C.linear(x, None, [placed(device, matrix).parts], [y], *arguments)
    expected = (
        (placed_codes.astype(np.float32) - zeros[:, None]) * 0.75 if one is None else quant.E2M1[placed_codes]
    )
    np.testing.assert_array_equal(take(y), expected[:, :256].T.astype(np.float32))


# Of each pair a k of several visits of some warps, with a tail where rows of scales let x lie in shared memory.
ALL_FP8 = [
    *WITH_FP8,
    *((name, "fp8_128") for name in FORMATS if name.startswith(("int4", "nvfp4_32")) and name != "int4_64"),
]
LONG = {"int4_zero_32": 2304, "int4_zero_64": 2304, "int4_zero_128": 2560, "q8_0": 2304, "fp8_32": 2368}


@pytest.mark.parametrize(("w", "x"), PLAIN + ALL_FP8, ids=lambda name: name)
def test_no_form_and_no_count_changes_a_bit(emulator: Any, w: str, x: str) -> None:
    """What a plan may choose by the number of tokens: the kernel of one row, x in memory or beside the ring, bulk copies,
    blocks of 8 or 16."""
    bits = FORMATS[w]["element_bits"]
    rng, n = np.random.default_rng(17), 21
    k = LONG.get(w, {16: 2344, 8: 2416, 4: 2432}[bits])
    assert ("resident=true" in deep_gemm.explain_linear(f"linear w={w} x={x} m=3 n={n} k={k}", emulator)) == (
        bits < 16
    )
    matrix = deep_gemm.quantize(random_weight(rng, n, k), w)
    tokens = random_x(rng, 17, k, x)
    alone = run(emulator, tokens, matrix, strict=True)
    check(alone, tokens, matrix)
    plain = [(0, m) for m in (1, 2, 3, 4, 5, 8, 9, 15, 16, 17)]
    forced = [(form, m) for form in ((1, 2, 3) if w == "q8_0" else (1, 2)) for m in (1, 2, 9)]
    for form, m in plain + forced:
        values, scales = rows(tokens, slice(0, m)) if isinstance(tokens, tuple) else (tokens[:m], None)
        y = np.full((m, n), np.nan, np.float32)
        arguments = ([], [], False, 0.0, False, True, None, emulator, None, (0, 0, 0, 0, form))
        _C.linear(values, scales, [matrix.parts], [y], *arguments)
        assert same_bits(y, alone[:m].copy()), f"{m} rows in form {form}"


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
@pytest.mark.parametrize(
    ("w", "x", "k"),
    [("q8_0", "q8", 416), ("q8_0", "q8", 512), ("nvfp4", "fp8_128", 416), ("int4_zero_32", "bf16", 512)],
    ids=str,
)
def test_other_architectures_have_the_same_kernels(emulator: Any, arch: str, w: str, x: str, k: int) -> None:
    """Emulated: the same text, compiled for another architecture (below sm_90 without dependent launch and bulk copies, below
    sm_89 without conversions of FP8), gives the same bits. At 512 x lies in shared memory."""
    rng = np.random.default_rng(11)
    matrix = deep_gemm.quantize(random_weight(rng, 18, k), w)
    tokens = random_x(rng, 3, k, x)
    got = run(_C.Device(f"emulator:sm_{arch},sms=4"), tokens, matrix)
    check(got, tokens, matrix)
    assert same_bits(got, run(emulator, tokens, matrix))
