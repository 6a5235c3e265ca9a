"""FP4 weights as checkpoints store them -> one form, codes and scales.

Codes are uint8 [..., n, k / 2], two E2M1 codes in a byte, the first in the low nibble. Nothing is rounded: the numbers
that come out are the numbers that were stored.

    checkpoint              codes                              scales
    DeepSeek-V4             I8 [n, k / 2]                      F8_E8M0 [n, k / 32], powers of two
    NVFP4 (ModelOpt)        U8 [n, k / 2]                      F8_E4M3 [n, k / 16] and one fp32 `weight_scale_2`
    GGUF MXFP4              blocks of 17 bytes for 32: the scale byte, then byte i with element i (low) and i + 16
    DeepGEMM                int8 [n, k / 2] or int32 [n, k / 8] int32, four UE8M0 bytes each, in any strides

Each takes numpy arrays or PyTorch tensors and gives the same kind. Errors are ValueError with shapes, or TypeError.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from deep_gemm.utils import arrays
from deep_gemm.utils.arrays import Array
from deep_gemm.utils.fp4 import pack_nibbles, unpack_nibbles

MX_BLOCK = 32  # elements that share a UE8M0 scale
NV_BLOCK = 16  # elements that share an E4M3 scale
GGUF_BLOCK_BYTES = 17


def as_bytes(x: Array, what: str) -> Array:
    """The bytes of a tensor of one-byte elements, uint8."""
    if x.dtype.itemsize != 1:
        raise TypeError(
            f"{what}: got {x.dtype}, expected a type of one byte (uint8, int8, float8); view it as one"
        )
    return arrays.bits(arrays.contiguous(x), "uint8")


def check_scales(codes: Array, scales: Array, block: int, what: str) -> None:
    k = int(codes.shape[-1]) * 2
    expected = (*codes.shape[:-1], k // block)
    if len(codes.shape) < 2 or k % block != 0 or tuple(scales.shape) != tuple(expected):
        raise ValueError(
            f"{what}: got codes {tuple(codes.shape)} and scales {tuple(scales.shape)}, expected [..., n, k / 2] and "
            f"[..., n, k / {block}] with k a multiple of {block}; "
            "pass the two of one matrix"
        )


def from_deepseek(weight: Array, scale: Array) -> tuple[Array, Array]:
    """DeepSeek-V4 `w1.weight`, `w1.scale` -> (codes, UE8M0 bytes [..., n, k / 32])."""
    codes, scales = as_bytes(weight, "from_deepseek"), as_bytes(scale, "from_deepseek")
    check_scales(codes, scales, MX_BLOCK, "from_deepseek")
    return codes, scales


def from_nvfp4(
    weight: Array, weight_scale: Array, weight_scale_2: Any, *, reciprocal: bool = False
) -> tuple[Array, Array, Array]:
    """`weight`, `weight_scale`, `weight_scale_2` -> (codes, E4M3 bytes [..., n, k / 16], fp32 global scale).

    weight = e2m1 * e4m3 * global. The global scale may be a number or one for each matrix. `reciprocal`: it is stored
    the other way up (448 * 6 / amax, as `weight_global_scale` of compressed-tensors); its reciprocal is
    the nearest fp32, at most 6e-8 off.
    """
    codes, scales = as_bytes(weight, "from_nvfp4"), as_bytes(weight_scale, "from_nvfp4")
    check_scales(codes, scales, NV_BLOCK, "from_nvfp4")
    shared = (
        arrays.cast(weight_scale_2, "fp32")
        if hasattr(weight_scale_2, "dtype")
        else np.float32(weight_scale_2)
    )
    groups = tuple(codes.shape[:-2])
    if tuple(shared.shape) not in {(), (1,), groups}:
        raise ValueError(
            f"from_nvfp4: got weight_scale_2 {tuple(shared.shape)} for weights {tuple(codes.shape)}, expected a number "
            "or one for each matrix; "
            "reshape it"
        )
    shared = shared.reshape(()) if tuple(shared.shape) == (1,) and groups != (1,) else shared
    return codes, scales, (1.0 / shared if reciprocal else shared)


def from_gguf_mxfp4(blocks: Array) -> tuple[Array, Array]:
    """GGUF blocks as bytes [..., n, k / 32 * 17] -> (codes, UE8M0 bytes [..., n, k / 32])."""
    raw = as_bytes(blocks, "from_gguf_mxfp4")
    if raw.shape[-1] % GGUF_BLOCK_BYTES != 0:
        raise ValueError(
            f"from_gguf_mxfp4: got rows of {raw.shape[-1]} bytes, expected a multiple of {GGUF_BLOCK_BYTES}; "
            "pass the blocks of whole rows"
        )
    raw = raw.reshape(*raw.shape[:-1], -1, GGUF_BLOCK_BYTES)
    halves = raw[..., 1:]
    codes = arrays.zeros(raw, (*raw.shape[:-1], MX_BLOCK), "uint8")
    codes[..., : MX_BLOCK // 2] = halves & 0xF
    codes[..., MX_BLOCK // 2 :] = halves >> 4
    packed = pack_nibbles(codes)
    return packed.reshape(*packed.shape[:-2], -1), arrays.contiguous(raw[..., 0])


def from_deepgemm(packed: Array, sf: Array) -> tuple[Array, Array]:
    """DeepGEMM's FP4 operand: int8 or int32 codes, int32-packed UE8M0 scales in any strides.

    -> (codes, UE8M0 bytes [..., n, k / 32]); scale bytes that fill up the last int32 are dropped.
    """
    if packed.dtype.itemsize not in (1, 4) or sf.dtype.itemsize != 4:
        raise TypeError(
            f"from_deepgemm: got codes of {packed.dtype} and scales of {sf.dtype}, expected int8 or int32, and int32; "
            "for scales of another type pack_fp4_weights() takes them as they are"
        )
    codes = arrays.bits(arrays.contiguous(packed), "uint8")
    scales = arrays.bits(arrays.contiguous(sf), "uint8")
    groups = int(codes.shape[-1]) * 2 // MX_BLOCK
    if int(scales.shape[-1]) != -(-groups // 4) * 4:
        raise ValueError(
            f"from_deepgemm: got codes {tuple(packed.shape)} and scales {tuple(sf.shape)}, expected one int32 for each "
            "128 elements of k; "
            "pass the two of one matrix"
        )
    scales = arrays.contiguous(scales[..., :groups])
    check_scales(codes, scales, MX_BLOCK, "from_deepgemm")
    return codes, scales


def swizzle_scales(scales: Array) -> Array:
    """Scale bytes [m, k] -> the 128 x 4 order of Blackwell's tensor cores, padded with zeros.

    Byte (m, k) goes to [m / 128, k / 4, m % 32, m / 32 % 4, k % 4].
    """
    raw = as_bytes(scales, "swizzle_scales")
    rows, columns = raw.shape
    tall, wide = -(-rows // 128) * 128, -(-columns // 4) * 4
    full = arrays.zeros(raw, (tall, wide), "uint8")
    full[:rows, :columns] = raw
    tiles = full.reshape(tall // 128, 4, 32, wide // 4, 4)
    order = (0, 3, 2, 1, 4)
    moved = tiles.permute(*order) if arrays.is_torch(tiles) else tiles.transpose(order)
    return arrays.contiguous(moved)


def unswizzle_scales(swizzled: Array, rows: int, columns: int) -> Array:
    """The inverse of swizzle_scales, for scales of `rows` x `columns`."""
    raw = as_bytes(swizzled, "unswizzle_scales")
    tall, wide = -(-rows // 128), -(-columns // 4)
    if int(np.prod(tuple(raw.shape))) != tall * wide * 512:
        raise ValueError(
            f"unswizzle_scales: got {tuple(raw.shape)}, expected {tall * wide * 512} bytes for {rows} x {columns}; "
            "pass the scales of that matrix, padded as they are stored"
        )
    tiles = raw.reshape(tall, wide, 32, 4, 4)
    order = (0, 3, 2, 1, 4)
    moved = tiles.permute(*order) if arrays.is_torch(tiles) else tiles.transpose(order)
    return arrays.contiguous(arrays.contiguous(moved).reshape(tall * 128, wide * 4)[:rows, :columns])


__all__ = [
    "from_deepgemm",
    "from_deepseek",
    "from_gguf_mxfp4",
    "from_nvfp4",
    "swizzle_scales",
    "unpack_nibbles",
    "unswizzle_scales",
]
