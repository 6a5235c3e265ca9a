"""One mixture-of-experts projection, in numpy: routing, quantisation, the two grouped layouts, the reference.

Notation: T tokens, each sent to `top_k` of G experts; K hidden size (the reduction), N outputs of an expert.
A "row" is one (token, expert) pair; rows are ordered by expert. Everything here runs on the host and is exact
about what the kernel is given, so that the reference multiplies the same FP8 numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np
import numpy.typing as npt

from deep_gemm.utils import get_mk_alignment_for_contiguous_layout, per_block_cast_to_fp8

SCALE_BLOCK = 128  # elements of K, and of N for weights, that share a scale

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int32 = npt.NDArray[np.int32]
Places = npt.NDArray[np.int64]
Fp8 = npt.NDArray[ml_dtypes.float8_e4m3fn]


@dataclass(frozen=True)
class Size:
    """The size of the layer and of the batch."""

    tokens: int
    hidden: int  # K
    outputs: int  # N
    experts: int  # G
    top_k: int


@dataclass(frozen=True)
class Routing:
    """Rows ordered by expert: row r is token `token[r]`, and expert g owns counts[g] consecutive rows."""

    token: Int32  # [rows]
    counts: Int32  # [G]

    @property
    def starts(self) -> Places:
        """First row of each expert, [G]."""
        return np.cumsum(self.counts, dtype=np.int64) - self.counts

    @property
    def expert(self) -> Int32:
        """Expert of each row, [rows]."""
        return np.repeat(np.arange(len(self.counts), dtype=np.int32), self.counts)


def route(x: Float32, size: Size, seed: int) -> Routing:
    """Sends each token of x [T, K] to the top_k experts of a seeded linear router."""
    router = np.random.default_rng(seed).standard_normal((size.hidden, size.experts), np.float32)
    scores = x @ router
    chosen = np.argpartition(-scores, size.top_k - 1, axis=1)[:, : size.top_k]  # [T, top_k]
    order = np.argsort(chosen.reshape(-1), kind="stable")
    counts = np.bincount(chosen.reshape(-1), minlength=size.experts).astype(np.int32)
    return Routing((order // size.top_k).astype(np.int32), counts)


def quantize_experts(w: Float32) -> tuple[Fp8, Float32]:
    """w [G, N, K] to E4M3 with one scale per 128 x 128 block: ([G, N, K], [G, N / 128, K / 128])."""
    groups, n, k = w.shape
    values, scale = per_block_cast_to_fp8(w.reshape(groups * n, k))
    return values.reshape(w.shape), scale.reshape(groups, n // SCALE_BLOCK, -1)


@dataclass(frozen=True)
class Grouped:
    """One grouped layout of the activations: what the kernel is given, and where each row went."""

    values: Fp8  # masked [G, max_rows, K]; contiguous [M, K]
    scale: Float32  # the same without the last axis, by K / 128
    layout: Int32  # masked: rows of each group [G]; contiguous: group of each row [M], -1 for padding
    place: Places  # [rows]: index of each row in the layout, leading axes flattened


def gather(values: Fp8, scale: Float32, slots: int, place: Places, token: Int32) -> tuple[Fp8, Float32]:
    """Copies each row's token into its slot; empty slots are zero."""
    out = np.zeros((slots, values.shape[1]), ml_dtypes.float8_e4m3fn)
    out_scale = np.zeros((slots, scale.shape[1]), np.float32)
    out[place] = values[token]
    out_scale[place] = scale[token]
    return out, out_scale


def masked(values: Fp8, scale: Float32, routing: Routing) -> Grouped:
    """Every group has room for the fullest group, rounded up to 64 rows."""
    groups = len(routing.counts)
    room = max(-(-int(routing.counts.max()) // 64) * 64, 64)
    within = np.arange(len(routing.token)) - routing.starts[routing.expert]
    place = routing.expert.astype(np.int64) * room + within
    a, a_scale = gather(values, scale, groups * room, place, routing.token)
    return Grouped(a.reshape(groups, room, -1), a_scale.reshape(groups, room, -1), routing.counts, place)


def contiguous(values: Fp8, scale: Float32, routing: Routing) -> Grouped:
    """Groups one after another, each starting at a multiple of the alignment that the kernel asks for."""
    alignment = get_mk_alignment_for_contiguous_layout()
    padded = -(-routing.counts.astype(np.int64) // alignment) * alignment
    starts = np.cumsum(padded) - padded
    within = np.arange(len(routing.token)) - routing.starts[routing.expert]
    place = starts[routing.expert] + within
    slots = int(padded.sum())
    layout = np.full(slots, -1, np.int32)
    layout[place] = routing.expert
    a, a_scale = gather(values, scale, slots, place, routing.token)
    return Grouped(a, a_scale, layout, place)


def dequantize(values: Fp8, scale: Float32, rows_per_scale: int) -> Float64:
    """What the FP8 numbers stand for: values [..., R, K], scale [..., R / rows_per_scale, K / 128]."""
    wide = np.repeat(np.repeat(scale.astype(np.float64), rows_per_scale, axis=-2), SCALE_BLOCK, axis=-1)
    return values.astype(np.float64) * wide
