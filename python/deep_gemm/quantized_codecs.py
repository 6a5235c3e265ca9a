"""How each layout of spec/quant.h is written and read back, over numpy arrays and PyTorch tensors alike."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from deep_gemm.utils import arrays
from deep_gemm.utils.arrays import Array
from deep_gemm.utils.fp4 import FP4_VALUES
from deep_gemm.utils.math import align, ceil_div, padded, per_block_cast_to_fp8, per_token_cast_to_fp8

if TYPE_CHECKING:
    from deep_gemm.quantized import QuantizedMatrix

FP4_MAX = 6.0
E4M3_MAX = 448.0
UE4M3_MAX = 480.0  # without NaN
SMALLEST = 2.0**-126
FP16_MAX = 65504.0
UE8M0_NAN = 255
E2M1_LARGEST_SCALE = 252  # of a finite block
SQRT2_FRACTION = 0x3504F3  # of the last fp32 below the square root of 2
# A value is above code c where it passes the midpoint to it; ties go to the even code.
E2M1_MIDPOINTS = (
    (0.25, False),
    (0.75, True),
    (1.25, False),
    (1.75, True),
    (2.5, False),
    (3.5, True),
    (5.0, False),
)


# ---- What numpy and PyTorch spell differently


def rint(x: Array) -> Array:
    return x.round() if arrays.is_torch(x) else np.rint(x)


def signbit(x: Array) -> Array:
    return x.signbit() if arrays.is_torch(x) else np.signbit(x)


def where(condition: Array, x: Array, y: Array | float) -> Array:
    """x where the condition holds, else y, in x's type."""
    return x.where(condition, y) if arrays.is_torch(x) else np.where(condition, x, x.dtype.type(y))


def ldexp(exponent: Array) -> Array:
    """2^exponent in fp32, for integers from -127 to 127."""
    power = arrays.bits(arrays.contiguous(arrays.clamp(exponent + 127, 1, 254) << 23), "fp32")
    return power * arrays.cast(1 - (exponent < -126) * 0.5, "fp32")


def as_bytes(x: Array) -> Array:
    return arrays.bits(arrays.contiguous(x), "int8") if not arrays.has_type(x, "int8") else x


def as_fp16(x: Array, name: str, what: str = "scale") -> Array:
    """Rounded; a finite number that fp16 has none for is refused."""
    wide = arrays.cast(x, "fp32")
    largest = float(where(abs(wide) < float("inf"), abs(wide), 0.0).max()) if math.prod(x.shape) else 0.0
    if largest >= FP16_MAX + 16:  # what rounds to infinity
        raise ValueError(
            f"{name}: a {what} is {largest:.6g}, expected at most {FP16_MAX:.0f}, the largest of fp16; divide the "
            "weights, or take a layout with fp32 scales (fp8_*, int8_row, nvfp4)"
        )
    return arrays.contiguous(arrays.cast(x, "fp16"))


def as_scales(x: Array, kind: str) -> Array:
    """In the type that the layout keeps its scales in."""
    if kind in ("fp32", "fp16"):
        return arrays.contiguous(arrays.cast(x, kind))
    return as_bytes(x)


def blocks_of(x: Array, size: int) -> Array:
    """fp32 [n, blocks, size], zeros beyond k."""
    n, k = x.shape
    return padded(x, n, align(k, size)).reshape(n, ceil_div(k, size), size)


def by_element(scales: Array, size: int, k: int) -> Array:
    """[n, blocks] -> [n, k]."""
    repeated = scales.repeat_interleave(size, -1) if arrays.is_torch(scales) else scales.repeat(size, -1)
    return repeated[:, :k]


# ---- Four bits


def pack_nibbles(codes: Array) -> Array:
    """uint8 [n, k] -> int8 [n, k / 2 rounded up], the first element in the low nibble."""
    n, k = codes.shape
    if k % 2:
        wide = arrays.zeros(codes, (n, k + 1), "uint8")
        wide[:, :k] = codes
        codes = wide
    return arrays.bits(arrays.contiguous(codes[:, ::2] | (codes[:, 1::2] << 4)), "int8")


def unpack_nibbles(data: Array, k: int) -> Array:
    pairs = arrays.bits(arrays.contiguous(data), "uint8")
    codes = arrays.zeros(pairs, (pairs.shape[0], 2 * pairs.shape[1]), "uint8")
    codes[:, ::2], codes[:, 1::2] = pairs & 0xF, pairs >> 4
    return codes[:, :k]


def interleave(data: Array, k: int) -> Array:
    """Linear nibbles to chunks of 128 elements in which word 4 c + g holds elements 32 g + 8 c to + 7."""
    n = data.shape[0]
    wide = arrays.zeros(data, (n, ceil_div(k, 128) * 64), "int8")
    wide[:, : data.shape[1]] = as_bytes(data)
    order = (0, 1, 3, 2, 4)  # [n, chunk, g, c, 4 bytes]
    words = wide.reshape(n, wide.shape[1] // 64, 4, 4, 4)
    words = words.permute(order) if arrays.is_torch(words) else words.transpose(order)
    return arrays.contiguous(words.reshape(n, wide.shape[1]))


def deinterleave(data: Array) -> Array:
    return interleave(data, data.shape[1] * 2)  # the exchange of c and g undoes itself


# Packing::fragments, of the pair of elements 8 i + 2 q and the one after: where the sign of a code and its other bits,
# from the lowest, lie in a half of word q, and whether the sign is in the half of the pair's other code.
FRAGMENT_BITS = (
    (15, (6, 7, 8), False),
    (2, (9, 10, 11), True),
    (5, (12, 13, 14), True),
    (1, (3, 4, 0), False),
)


def to_fragments(data: Array, k: int) -> Array:
    """Linear nibbles to groups of 32 elements in the order and the bits of fragments."""
    n = data.shape[0]
    wide = arrays.zeros(data, (n, ceil_div(k, 32) * 16), "int8")
    wide[:, : data.shape[1]] = as_bytes(data)
    groups = wide.shape[1] // 16
    codes = arrays.cast(unpack_nibbles(wide, groups * 32), "int32").reshape(
        n, groups, 4, 4, 2
    )  # [.., i, q, half]
    halves = arrays.zeros(data, (n, codes.shape[1], 4, 2), "int32")
    for i, (sign, others, crossed) in enumerate(FRAGMENT_BITS):
        for half in range(2):
            code = codes[:, :, i, :, half]
            for bit, place in enumerate(others):
                halves[:, :, :, half] |= (code >> bit & 1) << place
            halves[:, :, :, half ^ crossed] |= (code >> 3) << sign
    packed = arrays.zeros(data, (n, codes.shape[1], 4, 2, 2), "uint8")
    packed[..., 0], packed[..., 1] = arrays.cast(halves & 0xFF, "uint8"), arrays.cast(halves >> 8, "uint8")
    return arrays.bits(packed.reshape(n, groups * 16), "int8")


def from_fragments(data: Array, k: int) -> Array:
    """The codes, uint8 [n, k]."""
    n = data.shape[0]
    bytes_of_halves = arrays.cast(arrays.bits(arrays.contiguous(data), "uint8"), "int32").reshape(
        n, -1, 4, 2, 2
    )
    halves = bytes_of_halves[..., 0] | bytes_of_halves[..., 1] << 8
    codes = arrays.zeros(data, (n, halves.shape[1], 4, 4, 2), "uint8")
    for i, (sign, others, crossed) in enumerate(FRAGMENT_BITS):
        for half in range(2):
            code = (halves[:, :, :, half ^ crossed] >> sign & 1) << 3
            for bit, place in enumerate(others):
                code = code | (halves[:, :, :, half] >> place & 1) << bit
            codes[:, :, i, :, half] = arrays.cast(code, "uint8")
    return codes.reshape(n, -1)[:, :k]


def integers(x: Array, low: float, high: float) -> Array:
    """Of whole numbers, clamped; 0 of a NaN, which has no integer (and whose scale is one)."""
    return where(x == x, arrays.clamp(x, low, high), 0.0)


def e2m1_codes(x: Array) -> Array:
    magnitude, code = abs(x), arrays.zeros(x, x.shape, "uint8")
    for midpoint, tie in E2M1_MIDPOINTS:
        code = code + arrays.cast((magnitude >= midpoint) if tie else (magnitude > midpoint), "uint8")
    return where(x == x, code | (arrays.cast(signbit(x), "uint8") << 3), 7)  # as codec.h has it of a NaN


def e2m1_values(codes: Array) -> Array:
    values = arrays.zeros(codes, codes.shape, "fp32")
    for code, value in enumerate(FP4_VALUES):
        values = values + arrays.cast((codes & 7) == code, "fp32") * value
    return values * (1.0 - 2.0 * arrays.cast(codes >> 3, "fp32"))


# ---- Scales of a byte


def ue8m0_code(x: Array, rounding: str) -> Array:
    """The byte of the power of two at or above (or nearest to, in the logarithm) x, which is 2^-126 or more, or NaN."""
    bits = arrays.bits(arrays.contiguous(x), "int32")
    exponent, fraction = bits >> 23, bits & 0x7FFFFF
    code = exponent + arrays.cast(fraction > (0 if rounding == "ceil" else SQRT2_FRACTION), "int32")
    return arrays.cast(where(x == x, arrays.clamp(code, 0, UE8M0_NAN - 1), UE8M0_NAN), "uint8")


def e2m1_scale_code(ratio: Array, rounding: str) -> Array:
    """The byte for E2M1 elements up to six times `ratio`: 2^125 at most for what is finite, as codec.h explains."""
    code = ue8m0_code(ratio, rounding)
    return where(code != E2M1_LARGEST_SCALE + 1, code, E2M1_LARGEST_SCALE)


def ue8m0_value(code: Array) -> Array:
    wide = arrays.cast(code, "int32")
    return where(wide != UE8M0_NAN, ldexp(wide - 127), float("nan"))


def ue4m3_code(x: Array) -> Array:
    """The byte nearest to x among (1 + m / 8) 2^(e - 7), 0 to 0x7f."""
    code = arrays.zeros(x, x.shape, "uint8")
    values = [(1 + m / 8) * 2.0 ** (e - 7) for e in range(16) for m in range(8)]
    for index in range(127):
        middle = (values[index] + values[index + 1]) / 2
        code = code + arrays.cast((x >= middle) if index % 2 else (x > middle), "uint8")
    return code


def ue4m3_value(code: Array) -> Array:
    wide = arrays.cast(code, "int32") & 0x7F
    return (1.0 + arrays.cast(wide & 7, "fp32") / 8.0) * ldexp((wide >> 3) - 7)


def e4m3_value(code: Array) -> Array:
    return arrays.cast(arrays.bits(arrays.contiguous(code), "fp8_e4m3"), "fp32")


# ---- All layouts

Parts = tuple[Array, "Array | None", "Array | None", float]


def quantize_float4(weight: Array, row: dict[str, Any], rounding: str) -> Parts:
    blocks = blocks_of(weight, row["block_k"])
    amax = arrays.amax(abs(blocks), (2,))
    global_scale = 1.0
    if row["scale"] == "ue8m0":
        scales = e2m1_scale_code(arrays.divided(arrays.clamp(amax, FP4_MAX * SMALLEST), FP4_MAX), rounding)
        small = ue8m0_value(scales)
    else:
        limit = E4M3_MAX if row["scale"] == "e4m3" else UE4M3_MAX
        largest = float(amax.max()) if math.prod(amax.shape) else 0.0
        global_scale = float(np.float32(largest / (limit * FP4_MAX))) or 1.0
        ratio = arrays.clamp(arrays.divided(amax, FP4_MAX * global_scale), 0.0, limit)
        if row["scale"] == "e4m3":
            scales = arrays.bits(arrays.cast(ratio, "fp8_e4m3"), "uint8")
            small = e4m3_value(scales)
        else:
            scales = ue4m3_code(ratio)
            small = ue4m3_value(scales)
    # The reciprocal is rounded, then the product: docs/formats.md. A scale of 0 leaves zeros with their signs.
    factor = where(small != 0, 1.0 / (where(small != 0, small, 1.0) * global_scale), 0.0)
    codes = e2m1_codes(blocks * factor[:, :, None])
    n, k = weight.shape
    packed = pack_nibbles(codes.reshape(n, -1)[:, :k])
    return to_fragments(packed, k), arrays.bits(scales, "int8"), None, global_scale


def quantize_int4(weight: Array, name: str, row: dict[str, Any]) -> Parts:
    blocks = blocks_of(weight, row["block_k"])
    n, k = weight.shape
    zeros = None
    if row["has_zero"]:
        low = arrays.clamp(-arrays.amax(-blocks, (2,)), -math.inf, 0.0)
        high = arrays.clamp(arrays.amax(blocks, (2,)), 0.0)
        wide = arrays.divided(high - low, 15.0)
        if bool(((wide == math.inf) & (high < math.inf) & (low > -math.inf)).any()):
            raise ValueError(
                f"{name}: weights of a group are further apart than the largest of fp32, expected a scale of at most "
                f"{FP16_MAX:.0f}, the largest of fp16; divide the weights, or take a layout with fp32 scales"
            )
        scales = as_fp16(wide, name)
        divisor = arrays.cast(scales, "fp32")
        divisor = divisor + arrays.cast(divisor == 0, "fp32")
        zero = integers(rint(-low / divisor), 0.0, 15.0)
        zeros = arrays.bits(arrays.cast(zero, "uint8"), "int8")
    else:  # the larger end takes -8: one more step than a symmetric range has
        high, low = arrays.amax(blocks, (2,)), -arrays.amax(-blocks, (2,))
        signed = high * arrays.cast(high > -low, "fp32") + low * arrays.cast(high <= -low, "fp32")
        scales = as_fp16(signed / -8.0, name)
        divisor = arrays.cast(scales, "fp32")
        divisor = divisor + arrays.cast(divisor == 0, "fp32")
        zero = arrays.zeros(divisor, tuple(divisor.shape), "fp32") + 8.0
    codes = integers(rint(blocks / divisor[:, :, None]) + zero[:, :, None], 0.0, 15.0)
    packed = pack_nibbles(arrays.cast(codes, "uint8").reshape(n, -1)[:, :k])
    return interleave(packed, k), scales, zeros, 1.0


def quantize_q8_0(weight: Array, name: str) -> Parts:
    blocks = blocks_of(weight, 32)
    d = arrays.divided(arrays.amax(abs(blocks), (2,)), 127.0)
    divisor = d + arrays.cast(d == 0, "fp32")
    inverse = arrays.cast(d != 0, "fp32") / divisor
    codes = arrays.cast(integers(rint(blocks * inverse[:, :, None]), -128.0, 127.0), "int8")
    scales = as_fp16(d, name)
    n, k = weight.shape
    if name == "q8_0_split":
        return arrays.contiguous(codes.reshape(n, -1)[:, :k]), scales, None, 1.0
    whole = arrays.zeros(codes, (n, codes.shape[1], 34), "int8")
    whole[:, :, :2] = arrays.bits(arrays.contiguous(scales), "int8").reshape(n, -1, 2)
    whole[:, :, 2:] = codes
    return whole.reshape(n, -1), None, None, 1.0


def quantize_rows(weight: Array, integer: bool) -> Parts:
    wide = arrays.cast(weight, "fp32")
    amax = arrays.amax(abs(wide), (1,), keepdims=True)
    scales = arrays.divided(amax, 127.0 if integer else E4M3_MAX)
    divisor = scales + arrays.cast(scales == 0, "fp32")
    quotient = wide / divisor
    if integer:
        return arrays.cast(integers(rint(quotient), -127.0, 127.0), "int8"), scales, None, 1.0
    # A subnormal scale is rounded by so much that a quotient passes 448, where a cast makes NaN.
    return arrays.cast(arrays.clamp(quotient, -E4M3_MAX, E4M3_MAX), "fp8_e4m3"), scales, None, 1.0


@np.errstate(invalid="ignore", over="ignore", divide="ignore")
def quantize(weight: Array, name: str, row: dict[str, Any], rounding: str) -> Parts:
    """data, scales, zeros, global scale. NaN and infinity go where the arithmetic takes them, without a word."""
    if weight.shape[0] == 0:  # the parts of a row, and none of them
        data, scales, zeros, _ = quantize(
            arrays.zeros(weight, (1, weight.shape[1]), "fp32"), name, row, rounding
        )
        return data[:0], None if scales is None else scales[:0], None if zeros is None else zeros[:0], 1.0
    if name == "fp16":
        return as_fp16(weight, name, "weight"), None, None, 1.0
    if row["element_bits"] == 16:
        return arrays.contiguous(arrays.cast(weight, name)), None, None, 1.0
    if row["element"] == "fp4_e2m1":
        return quantize_float4(weight, row, rounding)
    if row["element_bits"] == 4:
        return quantize_int4(weight, name, row)
    if name in ("q8_0", "q8_0_split"):
        return quantize_q8_0(weight, name)
    if row["block_k"] == 0:
        return quantize_rows(weight, name == "int8_row")
    if row["block_rows"] == 128:
        return *per_block_cast_to_fp8(weight), None, 1.0
    return *per_token_cast_to_fp8(weight, gran_k=32), None, 1.0


@np.errstate(invalid="ignore", over="ignore")
def dequantize(w: QuantizedMatrix) -> Array:
    from deep_gemm.quantized import FORMATS

    row, k = FORMATS[w.format], w.k
    if w.n == 0:
        return arrays.zeros(w.data, (0, k), "fp32")
    if row["element_bits"] == 16:
        return arrays.cast(w.data, "fp32")
    if row["packing"] == "blocks":
        whole = w.data.reshape(w.n, -1, 34)
        scales = arrays.bits(arrays.contiguous(whole[:, :, :2]), "fp16").reshape(w.n, -1)
        elements = arrays.cast(whole[:, :, 2:], "fp32").reshape(w.n, -1)[:, :k]
        return elements * by_element(arrays.cast(scales, "fp32"), 32, k)
    if row["element"] == "fp4_e2m1":
        elements = e2m1_values(from_fragments(w.data, k))
    elif row["element_bits"] == 4:
        elements = arrays.cast(unpack_nibbles(deinterleave(w.data), k), "fp32")
        elements = elements - (
            8.0 if w.zeros is None else by_element(arrays.cast(w.zeros, "fp32"), row["block_k"], k)
        )
    elif row["element"] == "fp8_e4m3":
        elements = e4m3_value(w.data)
    else:
        elements = arrays.cast(w.data, "fp32")
    assert w.scales is not None
    codes = arrays.bits(w.scales, "uint8") if row["scale"] in ("ue8m0", "e4m3", "ue4m3") else w.scales
    if row["scale"] == "ue8m0":
        scales = ue8m0_value(codes)
    elif row["scale"] == "e4m3":
        scales = e4m3_value(codes)
    elif row["scale"] == "ue4m3":
        scales = ue4m3_value(codes)
    else:
        scales = arrays.cast(codes, "fp32")
    if row["block_k"] == 0:
        return elements * scales
    full = by_element(scales, row["block_k"], k)
    if row["block_rows"] > 1:
        size = row["block_rows"]
        full = (full.repeat_interleave(size, 0) if arrays.is_torch(full) else full.repeat(size, 0))[: w.n]
    return elements * full * w.global_scale
