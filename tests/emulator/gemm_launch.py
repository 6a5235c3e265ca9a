"""Launches of the GEMM kernels as the emulator's tests make them: without the host's checks and plans, operands small and
exact, every block of threads with several blocks to compute.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np
from emulator.injection import Array, Launch

from deep_gemm import _C


def operand(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Small integers: exact in the short FP8 accumulator."""
    return rng.integers(-2, 3, shape).astype(np.float32).astype(ml_dtypes.float8_e4m3fn)


def matrix_map(
    device: Any, address: int, shape: tuple[int, ...], format: str, size: int, rows: int, swizzle: int
) -> bytes:
    """Rank 3, columns innermost; the box is `rows` by the swizzle span, or by 64 columns without one."""
    groups, height, width = shape
    box = [swizzle // size if swizzle else 64, rows, 1]
    return device.encode_tensor_map(address=address, format=format, dims=[width, height, groups],
                                    strides_bytes=[width * size, height * width * size], box=box, swizzle=swizzle)  # fmt: skip


KERNEL_SMEM_BYTES = 200 * 1024
FIELD_BYTES = {"TensorMap": 128, "u64": 8, "u32": 4, "i32": 4}


def pack_params(values: Mapping[str, bytes | int]) -> bytes:
    """GemmParams as the header declares it: fields in order, naturally aligned, absent ones zero."""
    header = _C.device_headers()["deep_gemm/spec/gemm.h"]
    body = re.search(r"struct GemmParams \{(.*?)\n\};", header, re.DOTALL)
    assert body is not None
    out, unused = b"", set(values)
    for declaration in re.findall(r"^ +([^;/]+);", body.group(1), re.MULTILINE):
        pointer = "*" in declaration
        kind, names = declaration.replace("const ", "").replace("*", " ").split(" ", 1)
        size = 8 if pointer else FIELD_BYTES[kind]
        for name in (n.strip() for n in names.split(",")):
            out += bytes(-len(out) % min(size, 64))
            value = values.get(name, 0)
            out += value if isinstance(value, bytes) else value.to_bytes(size, "little")
            unused.discard(name)
    assert not unused, f"GemmParams has no fields {unused}"
    return out + bytes(-len(out) % 64)


@dataclass(frozen=True)
class Gemm:
    """One spec of a shipped kernel and a problem that makes every CTA compute several blocks."""

    name: str
    kernel: str
    header: str
    spec: str  # designated initialisers of GemmSpec
    block_m: int = 64
    block_n: int = 64
    warpgroups: int = 1
    cluster_m: int = 1
    cluster_n: int = 1
    split_k: int = 1
    m: int = 128
    n: int = 128
    k: int = 768

    @property
    def fp8(self) -> bool:
        return "fp8" in self.kernel

    def source(self) -> str:
        return (f"#include <deep_gemm/kernel/{self.header}>\nusing namespace deep_gemm;\n"
                f"constexpr GemmSpec kSpec{{{self.spec}}};\n")  # fmt: skip

    def launch(self) -> Launch:
        rng = np.random.default_rng(11)
        m, n, k = self.m, self.n, self.k
        dtype, format, size = (
            (ml_dtypes.float8_e4m3fn, "fp8_e4m3", 1) if self.fp8 else (ml_dtypes.bfloat16, "bf16", 2)
        )
        a, b = operand(rng, (m, k)).astype(dtype), operand(rng, (n, k)).astype(dtype)
        blocks = -(-k // 128)
        scale_a = (2.0 ** rng.integers(-1, 2, (m, blocks))).astype(np.float32)
        scale_b = (2.0 ** rng.integers(-1, 2, (-(-n // 128), blocks))).astype(np.float32)
        d = np.full((m, n), np.nan, np.float32).astype(ml_dtypes.bfloat16)
        arrays = {"a": a, "b": b, "d": d}
        if self.fp8:
            arrays |= {"scale_a": scale_a, "scale_b": scale_b}
            wide_a = a.astype(np.float64) * scale_a.repeat(128, axis=1)
            wide_b = b.astype(np.float64) * scale_b.repeat(128, axis=1).repeat(128, axis=0)[:n]
        else:
            wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
        ctas = self.cluster_m * self.cluster_n * self.split_k

        def pack(device: Any, at: dict[str, int]) -> bytes:
            return pack_params({
                "a": matrix_map(device, at["a"], (1, m, k), format, size, self.block_m // self.cluster_n, 128),
                "b": matrix_map(device, at["b"], (1, n, k), format, size, self.block_n // self.cluster_m, 128),
                "d": matrix_map(device, at["d"], (1, m, n), "bf16", 2, 64, 128),
                "d_data": at["d"], "scale_a": at.get("scale_a", 0), "scale_b": at.get("scale_b", 0),
                "d_stride_group": m * n, "d_stride_m": n, "scale_a_stride_m": blocks, "scale_a_stride_k": 1,
                "scale_b_stride_n": blocks, "scale_b_stride_k": 1, "m": m, "n": n, "k": k, "num_groups": 1,
            })  # fmt: skip

        return Launch(f"deep_gemm::{self.kernel}<kSpec>", (ctas,), 128 * (self.warpgroups + 1), KERNEL_SMEM_BYTES, arrays,
                      pack, {"d": wide_a @ wide_b.T}, tolerance=2.0**-7, cluster=ctas)  # fmt: skip


FP8_DENSE = Gemm(
    "fp8", "sm90_fp8_gemm_nt", "sm90_gemm.cuh",
    ".block_m = 64, .block_n = 64, .stages = 3, .warpgroups = 1",
)  # fmt: skip
FP8_MULTICAST = Gemm(
    "fp8 multicast", "sm90_fp8_gemm_nt", "sm90_gemm.cuh",
    ".block_m = 64, .block_n = 64, .stages = 3, .warpgroups = 1, .cluster_n = 2", cluster_n=2, n=256,
)  # fmt: skip
FP8_JOINED = Gemm(
    "fp8 joined scales", "sm90_fp8_gemm_nt", "sm90_gemm.cuh",
    ".block_m = 192, .block_n = 64, .stages = 3, .warpgroups = 3", block_m=192, warpgroups=3, m=200, k=640,
)  # fmt: skip
BF16_DENSE = Gemm(
    "bf16", "sm90_bf16_gemm_nt", "sm90_gemm.cuh",
    ".ab = Format::bf16, .scale_b = ScaleB::none, .block_m = 64, .block_n = 64, .stages = 3, .warpgroups = 1",
)  # fmt: skip
FP8_SWAPPED = Gemm(
    "fp8 swapped", "sm90_fp8_gemm_swap_ab", "sm90_gemm_swap_ab.cuh",
    ".swap_ab = true, .block_m = 16, .block_n = 64, .stages = 4, .warpgroups = 2, .k_warpgroups = 2, .split_k = 2",
    block_m=16, warpgroups=2, split_k=2, m=32, k=2048,
)  # fmt: skip
BF16_SWAPPED = Gemm(
    "bf16 swapped", "sm90_bf16_gemm_swap_ab", "sm90_gemm_swap_ab.cuh",
    ".ab = Format::bf16, .scale_b = ScaleB::none, .swap_ab = true, .block_m = 16, .block_n = 64, .stages = 4, "
    ".warpgroups = 2, .k_warpgroups = 2",
    block_m=16, warpgroups=2, m=32,
)  # fmt: skip
# One block along K: the next tile is staged soon after the last.
FP8_SHALLOW = replace(FP8_DENSE, name="fp8 shallow", m=256, n=256, k=128)
BF16_SHALLOW = replace(BF16_DENSE, name="bf16 shallow", m=256, n=256, k=64)
# Three rounds of the ring: the second tile starts in the other phase.
BF16_NINE = replace(BF16_DENSE, name="bf16 nine", k=576)
# Shares of four blocks and one: rank 1 is soon far ahead.
FP8_UNEVEN = replace(FP8_SWAPPED, name="fp8 swapped uneven", m=128, k=640)
