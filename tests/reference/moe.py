"""A mixture of experts in numpy, token by token: grouping by counting, activations and sums in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from reference import quantize

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Groups:
    """What moe_group gives: spec/moe.h."""

    offsets: Array
    ends: Array
    entries: list[tuple[int, int, int]]  # (expert, first slot, count)
    slot_pairs: Array  # of the slots in use
    pair_slots: Array


def group(topk_ids: Array, experts: int, alignment: int = 1, first_expert: int = 0) -> Groups:
    """Slots by expert, then by pair; an expert's slots start at a multiple of `alignment`."""
    ids = topk_ids.reshape(-1).astype(np.int64) - first_expert
    pair_slots = np.full(len(ids), -1, np.int32)
    slot_pairs: list[int] = []
    offsets, ends, entries = [0], [], []
    for expert in range(experts):
        pairs = [pair for pair in range(len(ids)) if ids[pair] == expert]
        if pairs:
            entries.append((expert, len(slot_pairs), len(pairs)))
        for pair in pairs:
            pair_slots[pair] = len(slot_pairs)
            slot_pairs.append(pair)
        ends.append(len(slot_pairs))
        slot_pairs += [-1] * (-len(slot_pairs) % alignment)
        offsets.append(len(slot_pairs))
    return Groups(np.array(offsets), np.array(ends), entries, np.array(slot_pairs, np.int64), pair_slots)


def swiglu(gate: Array, up: Array, limit: float | None = None) -> Array:
    """silu(gate) * up in float64, clamped as DeepSeek-V4 clamps."""
    gate, up = gate.astype(np.float64), up.astype(np.float64)
    if limit is not None:
        gate, up = np.minimum(gate, limit), np.clip(up, -limit, limit)
    with np.errstate(over="ignore"):
        return gate / (1 + np.exp(-gate)) * up


def bf16(x: Array) -> Array:
    return x.astype(ml_dtypes.bfloat16).astype(np.float64)


def dequantise(codes: Array, scales: Array) -> Array:
    values = codes.view(ml_dtypes.float8_e4m3fn).astype(np.float64)
    return values * np.repeat(scales.astype(np.float64), 128, axis=-1)[..., : values.shape[-1]]


def fp8(x: Array) -> Array:
    """What is left of x after FP8 with a scale for 128."""
    return dequantise(*quantize.fp8_128(x.astype(np.float32)))


def fp8_row(x: Array) -> Array:
    """What is left of x after FP8 with a scale for a row."""
    codes, scales = quantize.fp8_row(x.astype(np.float32))
    return codes.view(ml_dtypes.float8_e4m3fn).astype(np.float64) * scales.astype(np.float64)[:, None]


def fused_magnitude(
    x: Array,
    topk_ids: Array,
    weights: Array,
    w13: Array,
    w2: Array,
    *,
    limit: float | None = None,
    first_expert: int = 0,
    weight_before_down: bool = True,
    quantise: Callable[[Array], Array] = fp8,
) -> Array:
    """What `fused` adds up, in magnitudes: the sum over experts and channels of |w2| |activation|."""
    out = np.zeros(x.shape)
    for token, row in enumerate(quantise(x.astype(np.float32))):
        for j, named in enumerate(topk_ids[token]):
            expert = int(named) - first_expert
            if 0 <= expert < len(w13):
                gate, up = np.split(bf16(w13[expert] @ row), 2)
                t = swiglu(gate, up, limit) * float(weights[token, j])
                out[token] += np.abs(w2[expert]) @ np.abs(t)
    return out


def fused(
    x: Array,
    topk_ids: Array,
    weights: Array,
    w13: Array,
    w2: Array,
    *,
    limit: float | None = None,
    shared: Array | None = None,
    first_expert: int = 0,
    weight_before_down: bool = True,
    quantise: Callable[[Array], Array] = fp8,
) -> Array:
    """The whole layer in float64 but for the roundings that are part of its definition: x and the activation to FP8
    (`quantise`), h, the activation and each expert's output to bf16. w13 [E, 2 I, K] (gate, then up), w2 [E, K, I]: float64.
    """
    tokens, k = x.shape
    out = np.zeros((tokens, k))
    for token in range(tokens):
        row = quantise(x[token : token + 1].astype(np.float32))[0]
        for j, named in enumerate(topk_ids[token]):
            expert = int(named) - first_expert
            if not 0 <= expert < len(w13):
                continue
            gate, up = np.split(bf16(w13[expert] @ row), 2)
            t = swiglu(gate, up, limit) * (float(weights[token, j]) if weight_before_down else 1.0)
            y = bf16(w2[expert] @ quantise(bf16(t)[None])[0])
            out[token] += y if weight_before_down else y * float(weights[token, j])
    return out if shared is None else out + shared.astype(np.float64)
