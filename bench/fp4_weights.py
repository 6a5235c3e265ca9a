"""Random packed FP4 weights, and what they stand for, read as spec/fp4_weights.h and spec/nvfp4_weights.h say."""

from __future__ import annotations

from typing import Any

import torch

import deep_gemm

Tensor = Any

MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
SCALE_BYTES = {"mx_e4m3": 1, "nv_single": 3, "nv_exact": 3}  # of a thread
NV_LOWEST = 0x20  # code of e4m3 that a stored 0 stands for


def random_weights(experts: int, n: int, k: int, form: str) -> deep_gemm.Fp4Weights:
    """Blobs of random codes; scales in a window as wide as those of real rows."""
    runs, blobs = experts * n // 64, k // 128
    packed = torch.randint(
        0, 256, (runs, blobs, 4096 + 128 * SCALE_BYTES[form]), dtype=torch.uint8, device="cuda"
    )
    if form == "mx_e4m3":
        shape = (runs, blobs, 128)
        even, odd = (torch.randint(4, 11, shape, dtype=torch.uint8, device="cuda") for _ in range(2))
        packed[..., 4096:] = even | odd << 4
    else:
        packed[..., 4096:] &= 0xDF  # a thread's first three scales within four octaves, its fourth anywhere
    scales = torch.exp2(torch.randint(-9, -5, (runs, 64), device="cuda").float())
    return deep_gemm.Fp4Weights(packed.view(torch.int8), scales, None, experts, n, k, form)


def dequantised(weights: deep_gemm.Fp4Weights, expert: int) -> Tensor:
    """The matrix of one expert in float32."""
    n, k = weights.n, weights.k
    rows, blobs = n // 64, k // 128
    raw = weights.blobs.view(torch.uint8)[expert * rows : (expert + 1) * rows]
    # [rows of blobs, blob, odd row, warp, g, q, step, element]
    words = raw[..., :4096].contiguous().view(torch.int32).view(rows, blobs, 2, 4, 8, 4, 4, 1)
    index = torch.arange(8, device="cuda", dtype=torch.int32)
    half, e = index // 4, index % 4
    values = torch.tensor(MAGNITUDES, device="cuda")[((words >> (16 * half + 4 * e)) & 7).long()]
    values = values * (1 - 2 * ((words >> (8 * e + 7 - 4 * half)) & 1))
    if weights.form == "mx_e4m3":
        offsets = torch.stack([raw[..., 4096:] & 15, raw[..., 4096:] >> 4], 2).view(rows, blobs, 2, 4, 8, 4)
        values = values * torch.exp2(offsets.float() - 8)[..., None, None]
    else:
        pairs, third = raw[..., 4096:4352].reshape(rows, blobs, 128, 2), raw[..., 4352:, None]
        three = torch.cat([pairs, third], -1)
        fourth = sum((three[..., i] >> 6) << 2 * i for i in range(3))[..., None]
        codes = torch.cat([three & 0x3F, fourth], -1) + NV_LOWEST
        scales = codes.view(torch.float8_e4m3fn).float().view(rows, blobs, 4, 8, 4, 2, 2)
        values = values * scales.permute(0, 1, 5, 2, 3, 4, 6).repeat_interleave(2, -1)[..., None]
        if weights.form == "nv_single":
            values = (values / 1.5).to(torch.float8_e4m3fn).float()
    block = values.permute(0, 3, 4, 2, 1, 5, 6, 7).reshape(rows, 64, k)
    return (block * weights.row_scales[expert * rows : (expert + 1) * rows, :, None]).reshape(n, k)
