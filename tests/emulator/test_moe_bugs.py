"""Bugs injected into the quantisation and mixture-of-experts kernels: the machinery of injection.py, results
compared bit for bit.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from emulator.injection import Bug, Launch, check_caught, check_clean, flatten
from reference import fp4
from reference import moe as reference
from reference import quantize as reference_quantize

from deep_gemm import _C

Array = np.ndarray[Any, np.dtype[Any]]
BF16 = ml_dtypes.bfloat16
POISON = -77


def source(header: str, spec: str) -> str:
    return f"#include <deep_gemm/kernel/{header}.cuh>\nusing namespace deep_gemm;\nconstexpr {spec};\n"


def packer(layout: str, *fields: str | int | float) -> Callable[[Any, dict[str, int]], bytes]:
    """Parameters in order; a name is the address of an array."""

    def pack(_: Any, at: dict[str, int]) -> bytes:
        values = [at.get(field, 0) if isinstance(field, str) else field for field in fields]
        data = struct.pack("<" + layout, *values)
        return data + bytes(-len(data) % 8)

    return pack


def activations(rows: int, k: int) -> Array:
    x = np.random.default_rng(4).standard_normal((rows, k))
    x[1] = 0
    x[2] = np.random.default_rng(5).integers(-28, 29, k) * 0.25
    x[2, :16] = [6, 0.75, 1.75, 3.5, 0.25, 2.5, 5, 1.25, -0.75, -1.75, -3.5, 6, 6, 6, 6, 6]
    return x.astype(BF16)


def nvfp4() -> tuple[Launch, str]:
    rows, k = 4, 2064  # the last warps of the second pass have nothing to do
    x = activations(rows, k)
    codes, scales, shared = reference_quantize.nvfp4(x.astype(np.float32))
    arrays = {
        "x": x, "codes": np.full((rows, k // 2), 0xA5, np.uint8), "scales": np.full((rows, k // 16), 0xA5, np.uint8),
        "shared": np.full(rows, POISON, np.float32),
    }  # fmt: skip
    pack = packer("6Q4Q3I", "x", "codes", "scales", "shared", 0, 0, k, k // 2, k // 16, 1, rows, k, 1)
    launch = Launch("deep_gemm::quantize<kSpec>", (rows,), 256, 32, arrays, pack,
                    {"codes": codes, "scales": scales, "shared": shared})  # fmt: skip
    return launch, source("quantize", "QuantizeSpec kSpec{.recipe = Recipe::nvfp4, .row_amax = true}")


def gathered_fp8() -> tuple[Launch, str]:
    rows, k = 6, 272
    x = activations(4, k)
    source_rows = np.array([5, -1, 2, 0, 7, 4], np.int32)
    used = 5
    values, scale = reference_quantize.fp8_128(x.astype(np.float32))
    codes, scales = np.full((rows, k), 0xA5, np.uint8), np.full((rows, 3), POISON, np.float32)
    arrays = {
        "x": x,
        "codes": codes.copy(),
        "scales": scales.copy(),
        "rows": source_rows,
        "used": np.array([used], np.int32),
    }
    for row in range(used):
        if source_rows[row] >= 0:
            codes[row], scales[row] = values[source_rows[row] // 2], scale[source_rows[row] // 2]
    pack = packer("6Q4Q3I", "x", "codes", "scales", 0, "rows", "used", k, k, 3, 1, rows, k, 2)
    launch = Launch(
        "deep_gemm::quantize<kSpec>", (2,), 256, 0, arrays, pack, {"codes": codes, "scales": scales}
    )
    return launch, source("quantize", "QuantizeSpec kSpec{.gather = true}")


def group() -> tuple[Launch, str]:
    tokens, top_k, experts, alignment = 60, 5, 9, 8
    ids = np.random.default_rng(6).integers(-1, experts + 1, (tokens, top_k)).astype(np.int32)
    ids[ids == 4] = 3  # an expert without tokens
    slots = _C.moe_slots(ids.size, experts, alignment)
    groups = reference.group(ids, experts, alignment)
    shapes = {"offsets": experts + 1, "ends": experts, "entries": experts * 4, "head": 4, "pairs": slots, "tokens": slots,
              "slots": ids.size}  # fmt: skip
    arrays = {"ids": ids} | {name: np.full(size, POISON, np.int32) for name, size in shapes.items()}
    expected = {name: arrays[name].copy() for name in shapes}
    used = len(groups.slot_pairs)
    expected["offsets"][:], expected["ends"][:], expected["slots"][:] = (
        groups.offsets,
        groups.ends,
        groups.pair_slots,
    )
    expected["entries"][: 4 * len(groups.entries)] = np.array(
        [(*entry, 0) for entry in groups.entries]
    ).reshape(-1)
    expected["head"][:] = [len(groups.entries), 0, 0, 0]
    expected["pairs"][:used] = groups.slot_pairs
    expected["tokens"][:used] = np.where(groups.slot_pairs < 0, -1, groups.slot_pairs // top_k)
    names = ("ids", "offsets", "ends", "entries", "head", "pairs", "tokens", "slots")
    pack = packer("8Q5I", *names, ids.size, top_k, experts, 0, alignment)
    launch = Launch("deep_gemm::moe_group<kSpec>", (experts,), 256, 256 * 4 + 96, arrays, pack, expected)
    return launch, source("moe_group", "MoeGroupSpec kSpec{}")


def swiglu() -> tuple[Launch, str]:
    slots, n, limit = 5, 144, 1.5
    h = (np.random.default_rng(7).standard_normal((slots, 2 * n)) * 3).astype(BF16)
    slot_pairs = np.array([3, 1, -1, 0, 2], np.int32)
    weights = np.float32([0.25, 0.75, 1.5, 0.125])
    t = reference.bf16(
        reference.swiglu(h[:, :n], h[:, n:], limit) * weights[slot_pairs].astype(np.float64)[:, None]
    )
    codes, scales = reference_quantize.fp8_128(t.astype(np.float32))
    left_alone = [2, 4]  # no pair; beyond the slots in use
    codes[left_alone], scales[left_alone] = 0xA5, POISON
    arrays = {
        "h": h, "codes": np.full((slots, n), 0xA5, np.uint8), "scales": np.full((slots, 2), POISON, np.float32),
        "weights": weights, "pairs": slot_pairs, "used": np.array([4], np.int32),
    }  # fmt: skip
    pack = packer("6Q2If", "h", "codes", "scales", "weights", "pairs", "used", slots, n, limit)
    launch = Launch(
        "deep_gemm::moe_swiglu<kSpec>", (1,), 256, 0, arrays, pack, {"codes": codes, "scales": scales}
    )
    return launch, source("moe_swiglu", "MoeSwigluSpec kSpec{.limited = true, .weighted = true}")


def swiglu_bf16() -> tuple[Launch, str]:
    """The same left as bf16, whose bits are compared."""
    launch, _ = swiglu()
    h, weights, pairs = (launch.arrays[name] for name in ("h", "weights", "pairs"))
    n = h.shape[1] // 2
    t = reference.swiglu(h[:, :n], h[:, n:], 1.5) * weights[pairs].astype(np.float64)[:, None]
    rows = np.full((len(h), n), 0xA5A5, np.uint16)
    used = [0, 1, 3]
    rows[used] = t.astype(BF16).view(np.uint16)[used]
    launch.arrays = launch.arrays | {"codes": np.full((len(h), n), 0xA5A5, np.uint16)}
    launch.expected = {"codes": rows}
    return launch, source(
        "moe_swiglu", "MoeSwigluSpec kSpec{.d = Format::bf16, .limited = true, .weighted = true}"
    )


def combine() -> tuple[Launch, str]:
    tokens, top_k, n = 5, 3, 40
    rng = np.random.default_rng(8)
    y = rng.standard_normal((tokens * top_k, n)).astype(BF16)
    slots = rng.permutation(tokens * top_k).astype(np.int32).reshape(tokens, top_k)
    slots[1, 1] = slots[3] = -1
    weights, shared = (
        rng.random((tokens, top_k)).astype(np.float32),
        rng.standard_normal((tokens, n)).astype(BF16),
    )
    expected = np.zeros((tokens, n), np.float32)
    for j in range(top_k):
        term = y[np.maximum(slots[:, j], 0)].astype(np.float32) * weights[:, j : j + 1]
        expected = np.where(slots[:, j : j + 1] >= 0, expected + term, expected)
    expected = expected + shared.astype(np.float32)
    arrays = {
        "y": y,
        "slots": slots,
        "weights": weights,
        "shared": shared,
        "d": np.full((tokens, n), POISON, np.float32),
    }
    pack = packer("5Q2Q2I", "y", "slots", "weights", "shared", "d", n, n, tokens, n)
    launch = Launch("deep_gemm::moe_combine<kSpec>", (1,), 256, 0, arrays, pack, {"d": expected})
    spec = "MoeCombineSpec kSpec{.d = Format::fp32, .top_k = 3, .combine_weighted = true, .shared = true}"
    return launch, source("moe_combine", spec)


def fp8_row() -> tuple[Launch, str]:
    rows, k = 4, 2064
    x = activations(rows, k)
    x[3, 2050] = 40  # the largest is one of those that are read twice
    codes, scales = reference_quantize.fp8_row(x.astype(np.float32))
    arrays = {
        "x": x,
        "codes": np.full((rows, k), 0xA5, np.uint8),
        "scales": np.full(rows, POISON, np.float32),
    }
    pack = packer("6Q4Q3I", "x", "codes", "scales", 0, 0, 0, k, k, 1, 0, rows, k, 1)
    launch = Launch(
        "deep_gemm::quantize<kSpec>", (rows,), 256, 32, arrays, pack, {"codes": codes, "scales": scales}
    )
    return launch, source("quantize", "QuantizeSpec kSpec{.recipe = Recipe::fp8_row, .row_amax = true}")


def swiglu_by_slot() -> tuple[Launch, str]:
    """One scale for a slot, of more channels than the threads have at once."""
    slots, n = 5, 2080
    h = (np.random.default_rng(9).standard_normal((slots, 2 * n)) * 3).astype(BF16)
    h[0, 2070], h[0, n + 2070] = 30, 4
    slot_pairs = np.array([3, 1, -1, 0, 2], np.int32)
    weights = np.float32([0.25, 0.75, 1.5, 0.125])
    t = reference.bf16(
        reference.swiglu(h[:, :n], h[:, n:], None) * weights[slot_pairs].astype(np.float64)[:, None]
    )
    codes, scales = reference_quantize.fp8_row(t.astype(np.float32))
    left_alone = [2, 4]
    codes[left_alone], scales[left_alone] = 0xA5, POISON
    arrays = {
        "h": h, "codes": np.full((slots, n), 0xA5, np.uint8), "scales": np.full(slots, POISON, np.float32),
        "weights": weights, "pairs": slot_pairs, "used": np.array([4], np.int32),
    }  # fmt: skip
    pack = packer("6Q2If", "h", "codes", "scales", "weights", "pairs", "used", slots, n, 0.0)
    launch = Launch(
        "deep_gemm::moe_swiglu<kSpec>", (slots,), 256, 32, arrays, pack, {"codes": codes, "scales": scales}
    )
    return launch, source("moe_swiglu", "MoeSwigluSpec kSpec{.weighted = true, .per_token = true}")


def swiglu_terms() -> tuple[Launch, str]:
    """The same as two terms, of more channels than the threads have at once and with padding."""
    launch, _ = swiglu_by_slot()
    h, weights, pairs = (launch.arrays[name] for name in ("h", "weights", "pairs"))
    slots, n, padded = len(h), h.shape[1] // 2, 2304
    t = reference.swiglu(h[:, :n], h[:, n:], None) * weights[pairs].astype(np.float64)[:, None]
    high, low, scale = fp4.two_terms(t.astype(BF16))
    codes, scales = np.full((slots, 2, padded), 0xA5, np.uint8), np.full(slots, POISON, np.float32)
    launch.arrays = launch.arrays | {"codes": codes.copy(), "scales": scales.copy()}
    used = [0, 1, 3]
    codes[used] = 0
    codes[used, :, :n] = np.stack([high, low], 1)[used].astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
    scales[used] = scale[used, 0]
    launch.expected = {"codes": codes, "scales": scales}
    return launch, source(
        "moe_swiglu", "MoeSwigluSpec kSpec{.weighted = true, .per_token = true, .token_terms = 2}"
    )


KERNELS = {
    "nvfp4": nvfp4,
    "swiglu terms": swiglu_terms,
    "fp8_row": fp8_row,
    "swiglu by slot": swiglu_by_slot,
    "gathered fp8": gathered_fp8,
    "group": group,
    "swiglu": swiglu,
    "swiglu bf16": swiglu_bf16,
    "combine": combine,
}
BUGS: list[tuple[str, Bug]] = [
    ("nvfp4", Bug("no barrier before the partial maxima are read", "ptx::sync_threads();\n    float all = 0;", "float all = 0;")),
    ("nvfp4", Bug("maximum of half a warp", "amax_over<ptx::kWarpThreads>(amax)", "amax_over<16>(amax)", 8)),
    ("nvfp4", Bug("scale of twice the block", "amax_over<2>(amax_of(v))", "amax_over<4>(amax_of(v))", 8)),
    ("nvfp4", Bug("global scale forgotten", "ptx::mul_rn_f32(value, global)", "value", 8)),
    ("nvfp4", Bug("division by a scale of zero", "value == 0 ? 0.0f : ", "", 8)),
    ("nvfp4", Bug("writes beyond the row", "const bool writes = present && column < p.k", "const bool writes = present", 8)),
    ("nvfp4", Bug("global scale of zeros", "amax == 0 ? 1.0f : ", "", 8)),
    ("gathered fp8", Bug("rows beyond the count", "static_cast<i32>(row) >= ptx::ld_global_s32(p.num_rows)", "false", 8)),
    ("gathered fp8", Bug("rows of nothing", "if (index < 0) return false;", "", 8)),
    ("gathered fp8", Bug("pair taken for a token", "static_cast<u32>(index) / p.divisor", "static_cast<u32>(index)", 8)),
    ("gathered fp8", Bug("no smallest amax", "kFp8SmallestAmax = 1e-4f", "kFp8SmallestAmax = 0", 8)),
    ("gathered fp8", Bug("a row's lanes run into the next", "align_up(p.k, kQuantizeRow) / kQuantizeChunk", "p.k / kQuantizeChunk", 8)),
    ("group", Bug("counted before the counters are zero", "ptx::sync_threads();\n    ptx::grid_dependency_wait();",
                  "ptx::grid_dependency_wait();")),
    ("group", Bug("counts read before they are complete", "ptx::sync_threads();\n    const moe_group_detail::Before before",
                  "const moe_group_detail::Before before")),
    ("group", Bug("segments read before they are counted", "ptx::sync_threads();\n    u32 slot = start;", "u32 slot = start;")),
    ("group", Bug("lost counts", "ptx::red_shared_add_u32(smem + kPlan.counts + of_pair * 4, 1);",
                  "ptx::st_shared_b32(smem + kPlan.counts + of_pair * 4, ptx::ld_shared_b32(smem + kPlan.counts + of_pair * 4) + 1);", 8)),
    ("group", Bug("rank counts itself", "(1u << lane) - 1", "(2u << lane) - 1", 8)),
    ("group", Bug("gaps left as they were", "ptx::st_global_s32(p.slot_pairs + slot, -1);", "", 8)),
    ("group", Bug("alignment forgotten", "slots += align_up(count, p.alignment);", "slots += count;", 8)),
    ("group", Bug("experts without tokens are listed", "entries += count > 0;", "entries += 1;", 8)),
    ("group", Bug("skipped pairs keep an old slot", "ptx::st_global_s32(p.pair_slots + pair, -1);", ";", 8)),
    ("swiglu", Bug("up has no lower limit", "ptx::max_nan_f32(up[i], -p.limit)", "up[i]", 8)),
    ("swiglu", Bug("weight of the slot", "ptx::ld_global_f32(p.weights + pair) : 0;\n        moe_swiglu_detail::activate",
                   "ptx::ld_global_f32(p.weights + slot) : 0;\n        moe_swiglu_detail::activate", 8)),
    ("swiglu", Bug("gate taken for up", "row + p.n + column, up", "row + column, up", 8)),
    ("swiglu", Bug("not rounded to bf16", "v[i] = ptx::bf16_low(rounded);", "", 8)),
    ("swiglu", Bug("slots beyond the count", "static_cast<i32>(slot) >= ptx::ld_global_s32(p.num_slots)", "false", 8)),
    ("fp8_row", Bug("the largest of one warp", "ptx::ld_shared_f32(smem + warp * 4)", "ptx::ld_shared_f32(smem)", 8)),
    ("fp8_row", Bug("writes beyond the row", "if (column >= p.k) return;", "", 8)),
    ("fp8_row", Bug("no smallest amax", "kFp8SmallestAmax = 1e-4f", "kFp8SmallestAmax = 0", 8)),
    ("swiglu by slot", Bug("the largest of one warp", "ptx::ld_shared_f32(smem + warp * 4)", "ptx::ld_shared_f32(smem)", 8)),
    ("swiglu by slot", Bug("warps do not meet", "* 4, amax);\n    ptx::sync_threads();", "* 4, amax);")),
    ("swiglu by slot", Bug("the largest of a thread's first channels", "amax = ptx::max_nan_f32(amax, tile::amax_of(v));", ";", 8)),
    ("swiglu by slot", Bug("each chunk has a scale", "tile::to_fp8<S.rule>(v, amax)", "tile::to_fp8<S.rule>(v, tile::amax_of(v))", 8)),
    ("swiglu by slot", Bug("weight of the slot", "ptx::ld_global_f32(p.weights + pair) : 0;\n    const u32 first",
                           "ptx::ld_global_f32(p.weights + slot) : 0;\n    const u32 first", 8)),
    ("swiglu terms", Bug("the padding is left", "column < align_up(p.n, kFp4PadK); column += kStep", "column < p.n; column += kStep", 8)),
    ("swiglu terms", Bug("terms side by side", "to + padded_n, a.low", "to + p.n, a.low", 8)),
    ("swiglu terms", Bug("rows without padding", "padded_n = align_up(p.n, kFp4PadK)", "padded_n = p.n", 8)),
    ("swiglu terms", Bug("the second four are the first", "tile::terms_of(v[4], v[5]", "tile::terms_of(v[0], v[1]", 8)),
    ("swiglu terms", Bug("the scale of FP8", "S.token_terms == 2 ? tile::term_scale_of(amax).value", "false ? 0.0f", 8)),
    ("swiglu bf16", Bug("rows as far apart as codes", "p.n + column) * 2;", "p.n + column);", 8)),
    ("swiglu bf16", Bug("pairs the wrong way round", "ptx::cvt_bf16x2(v[2 * i], v[2 * i + 1])", "ptx::cvt_bf16x2(v[2 * i + 1], v[2 * i])", 8)),
    ("combine", Bug("one slot for all", "static_cast<u64>(slots[j]) * p.n", "static_cast<u64>(slots[0]) * p.n", 8)),
    ("combine", Bug("skipped pairs are read", "if (slots[j] < 0) continue;", "", 8)),
    ("combine", Bug("last expert first", "slots[j] = ptx::ld_global_s32(p.pair_slots + token * S.top_k + j)",
                    "slots[j] = ptx::ld_global_s32(p.pair_slots + token * S.top_k + S.top_k - 1 - j)", 8)),
    ("combine", Bug("weight of the first", "p.weights + token * S.top_k + j", "p.weights + token * S.top_k", 8)),
    ("combine", Bug("threads beyond the tokens", "if (token >= p.tokens) return;", "", 8)),
]  # fmt: skip


@pytest.fixture(scope="module")
def made() -> dict[str, tuple[Launch, str]]:
    return {name: make() for name, make in KERNELS.items()}


@pytest.mark.parametrize("kernel", KERNELS)
def test_clean(made: dict[str, tuple[Launch, str]], kernel: str) -> None:
    launch, text = made[kernel]
    check_clean(launch, flatten(text))


@pytest.mark.parametrize(
    ("kernel", "bug"), BUGS, ids=lambda value: value if isinstance(value, str) else value.name
)
def test_bugs(made: dict[str, tuple[Launch, str]], kernel: str, bug: Bug) -> None:
    launch, text = made[kernel]
    check_caught(launch, flatten(text), bug)
