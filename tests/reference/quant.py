"""What the bytes of each layout of spec/quant.h mean, in float64, written for reading and from the definitions: byte by
byte, block by block, without the product's code. NaN codes are NaN.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def e4m3(codes: Array) -> Array:
    """Sign, four exponent bits with bias 7, three of mantissa; subnormals; 0x7f and 0xff are NaN, no infinity."""
    byte = codes.view(np.uint8).astype(np.int64)
    sign, exponent, mantissa = 1 - 2 * (byte >> 7), byte >> 3 & 15, byte & 7
    value = np.where(exponent == 0, mantissa * 2.0**-9, (1 + mantissa / 8) * 2.0 ** (exponent - 7.0))
    return np.where(byte & 127 == 127, np.nan, sign * value)


def ue8m0(codes: Array) -> Array:
    byte = codes.view(np.uint8).astype(np.float64)
    return np.where(byte == 255, np.nan, 2.0 ** (byte - 127))


def ue4m3(codes: Array) -> Array:
    """No sign, no subnormals, no NaN."""
    byte = codes.view(np.uint8).astype(np.int64) & 127
    return (1 + (byte & 7) / 8) * 2.0 ** ((byte >> 3) - 7.0)


def interleaved_nibbles(data: Array, k: int) -> Array:
    """Chunks of 64 bytes; word 4 c + g of a chunk holds elements 32 g + 8 c to + 7, the first in the lowest bits."""
    words = data.view(np.uint32)
    codes = np.empty((data.shape[0], k), np.uint8)
    for element in range(k):
        chunk, inside = divmod(element, 128)
        g, c, i = inside // 32, inside // 8 % 4, inside % 8
        codes[:, element] = words[:, chunk * 16 + 4 * c + g] >> (4 * i) & 15
    return codes


def fragments(data: Array, k: int) -> Array:
    """Groups of 16 bytes; word q of a group holds pairs of elements 8 i + 2 q, the bits of a pair's codes apart."""
    words = data.view(np.uint32).astype(np.int64)
    codes = np.empty((data.shape[0], k), np.uint8)
    # Of each i: places in the word of sign, two bits of exponent and one of mantissa, of the first of the pair; those of
    # the second are 16 places on, those beyond the word at its other end.
    places = [(15, 8, 7, 6), (18, 11, 10, 9), (21, 14, 13, 12), (1, 0, 4, 3)]
    for element in range(k):
        group, inside = divmod(element, 32)
        i, q, second = inside // 8, inside % 8 // 2, inside % 2
        word = words[:, 4 * group + q]
        code = np.zeros_like(word)
        for place in places[i]:
            code = code << 1 | word >> (place + 16 * second) % 32 & 1
        codes[:, element] = code
    return codes


def spread(scales: Array, rows: int, columns: int, n: int, k: int) -> Array:
    """[rows of blocks, blocks] -> [n, k]."""
    return scales.repeat(rows, axis=0)[:n].repeat(columns or k, axis=1)[:, :k]


def q8_0_blocks(data: Array) -> tuple[Array, Array]:
    """GGUF blocks: int8 [n, blocks, 32] and fp16 scales [n, blocks]."""
    blocks = data.view(np.uint8).reshape(data.shape[0], -1, 34)
    scales = np.ascontiguousarray(blocks[:, :, :2]).view(np.float16)[:, :, 0]
    return np.ascontiguousarray(blocks[:, :, 2:]).view(np.int8), scales


def dequantize(w: Any) -> Array:
    """A QuantizedMatrix of numpy arrays as float64 [n, k]."""
    n, k, name, data = w.n, w.k, w.format, w.data
    if name in ("bf16", "fp16"):
        return data.astype(np.float64)
    if name == "q8_0":
        codes, scales = q8_0_blocks(data)
        return (codes * scales.astype(np.float64)[:, :, None]).reshape(n, -1)[:, :k]
    scales = w.scales
    match name:
        case "fp8_128x128":
            return e4m3(data) * spread(scales.astype(np.float64), 128, 128, n, k)
        case "fp8_row":
            return e4m3(data) * scales.astype(np.float64)
        case "fp8_32":
            return e4m3(data) * spread(scales.astype(np.float64), 1, 32, n, k)
        case "int8_row":
            return data.astype(np.float64) * scales
        case "q8_0_split":
            return data * spread(scales.astype(np.float64), 1, 32, n, k)
        case "mxfp4":
            return E2M1[fragments(data, k)] * spread(ue8m0(scales), 1, 32, n, k)
        case "nvfp4":
            return E2M1[fragments(data, k)] * spread(e4m3(scales), 1, 16, n, k) * np.float32(w.global_scale)
        case "nvfp4_32":
            return E2M1[fragments(data, k)] * spread(ue4m3(scales), 1, 32, n, k) * np.float32(w.global_scale)
    group = int(name.rpartition("_")[2])
    zero = 8.0 if w.zeros is None else spread(w.zeros.view(np.uint8).astype(np.float64), 1, group, n, k)
    return (interleaved_nibbles(data, k) - zero) * spread(scales.astype(np.float64), 1, group, n, k)


def activations(x: Any) -> Array:
    """A tensor, or (values, scales) as quantize_activations makes them, as float64 [m, k or more]."""
    if not isinstance(x, tuple):
        return x.astype(np.float64)
    values, scales = x
    width = values.shape[1]
    elements = values.astype(np.float64) if values.dtype == np.int8 else e4m3(values.view(np.uint8))
    block = 128 if values.dtype == ml_dtypes.float8_e4m3fn and scales.shape[1] == -(-width // 128) else 32
    return elements * spread(scales.astype(np.float64), 1, block, values.shape[0], width)
