"""Bugs injected into the mixture of experts for few tokens: the machinery of injection.py. Inputs are small
integers, whose sums are exact in any order; what is rounded is compared with float64.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from emulator.injection import Bug, Launch, check_caught, check_clean, flatten
from emulator.op_bugs import pack
from emulator.test_joined_bugs import NO_MATRIX, matrix
from emulator.test_moe_bugs import source
from ops_cases import real
from reference import fp4
from reference import moe as reference

from deep_gemm import pack_fp4_weights

Array = np.ndarray[Any, np.dtype[Any]]
BF16 = ml_dtypes.bfloat16
FP8 = ml_dtypes.float8_e4m3fn
TOKENS, TOP_K, EXPERTS, FIRST = 2, 3, 3, 1
IDS = np.array([[3, 1, 2], [2, 7, 1]], np.int32)  # 7: not one of this device's
CHUNKS = 9  # two atoms, and the last chunk alone in a round


def rows(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Integers with a 7 in every chunk: their scale is 1 / 64, and FP8 holds them exactly."""
    x = rng.integers(-7, 8, shape).astype(np.float32)
    x[..., ::128] = 7
    return x.astype(BF16)


def weights(rng: np.random.Generator, n: int, k: int) -> tuple[Array, Array, Array]:
    """Codes, scales, and what they stand for."""
    codes = rng.integers(-2, 3, (EXPERTS, n, k)).astype(np.float32).astype(FP8)
    scales = np.exp2(rng.integers(-7, -3, (EXPERTS, n // 128, k // 128))).astype(np.float32)
    wide = np.repeat(np.repeat(scales.astype(np.float64), 128, 1), 128, 2)
    return codes, scales, codes.astype(np.float64) * wide


def packer(layout: str, fields: tuple[Any, ...], n: int, k: int) -> Callable[[Any, dict[str, int]], bytes]:
    """Parameters in order; "w" is all of MoeFewWeights."""

    def pack(_: Any, at: dict[str, int]) -> bytes:
        strides = (n * k, k, n // 128 * (k // 128), k // 128, 1)
        values: list[Any] = []
        for field in fields:
            if field == "w":
                values += [at["w"], at["scales"], *strides]
            else:
                values.append(at.get(field, 0) if isinstance(field, str) else field)
        data = struct.pack("<" + layout, *values)
        return data + bytes(-len(data) % 8)

    return pack


def up() -> tuple[Launch, str]:
    rng = np.random.default_rng(31)
    n, k, limit = 128, CHUNKS * 128, 3.0
    x = rows(rng, (TOKENS, k))
    codes, scales, wide = weights(rng, 2 * n, k)
    routing = (rng.random(IDS.size) + 0.5).astype(np.float32)
    mid = np.full((IDS.size, n), -77, np.float32).astype(BF16)
    expected = mid.astype(np.float64)
    for pair, e in enumerate(IDS.reshape(-1) - FIRST):
        if e < EXPERTS:
            h = reference.bf16(wide[e] @ x[pair // TOP_K].astype(np.float64))
            expected[pair] = reference.swiglu(h[:n], h[n:], limit) * np.float64(routing[pair])
    arrays = {"x": x, "w": codes, "scales": scales, "ids": IDS, "routing": routing, "mid": mid}
    fields = ("x", 0, "w", "ids", "routing", "mid", k, 0, TOP_K, FIRST, EXPERTS, n, limit)
    launch = Launch("deep_gemm::sm90_moe_few_up<kSpec>", (IDS.size * n // 16,), 256, 2048 + CHUNKS * (12 + 128), arrays,
                    packer("9Q3Q2Q4If", fields, 2 * n, k), {"mid": expected}, 2.0**-8)  # fmt: skip
    return launch, source(
        "sm90_moe_few", f"MoeFewUpSpec kSpec{{.chunks = {CHUNKS}, .limited = true, .weighted = true}}"
    )


def up_fp4() -> tuple[Launch, str]:
    """Packed weights, and activations that are E4M3 already."""
    rng = np.random.default_rng(33)
    n, k, chunks = 128, 1152, 9  # an odd number: blobs come in pairs
    codes = rng.integers(0, 256, (EXPERTS, 2 * n, k // 2), np.uint8)
    rows = rng.integers(115, 121, (EXPERTS, 2 * n, 1))
    exponents = (rows + rng.integers(0, 3, (EXPERTS, 2 * n, k // 32))).astype(np.uint8)
    packed = pack_fp4_weights(codes, exponents)
    x = rng.integers(-7, 8, (TOKENS, k)).astype(np.float32).astype(FP8)
    x_scales = np.exp2(rng.integers(-2, 1, (TOKENS, chunks))).astype(np.float32)
    mid = np.full((IDS.size, n), -77, np.float32).astype(BF16)
    expected = mid.astype(np.float64)
    for pair, e in enumerate(IDS.reshape(-1) - FIRST):
        if e < EXPERTS:
            wide = np.repeat(x_scales[pair // TOP_K].astype(np.float64), 128)
            h = reference.bf16(
                fp4.dequantise(codes[e], exponents[e]) @ (x[pair // TOP_K].astype(np.float64) * wide)
            )
            expected[pair] = reference.swiglu(h[:n], h[n:], None)
    block = 10 * 4224
    arrays = {
        "x": x,
        "x_scales": x_scales,
        "w": packed.blobs,
        "scales": packed.row_scales,
        "ids": IDS,
        "mid": mid,
    }

    def pack(_: Any, at: dict[str, int]) -> bytes:
        weights = (at["w"], at["scales"], 2 * n // 64 * block, block, 2 * n, 0, 0)
        return struct.pack("<9Q3Q2Q4IfI", at["x"], at["x_scales"], *weights, at["ids"], 0, at["mid"], k, chunks,
                           TOP_K, FIRST, EXPERTS, n, 0.0, 0)  # fmt: skip

    launch = Launch("deep_gemm::sm90_moe_few_up<kSpec>", (IDS.size * n // 16,), 256, 2048 + 16 * 8 + chunks * (4 + 128),
                    arrays, pack, {"mid": expected}, 2.0**-7)  # fmt: skip
    return launch, source(
        "sm90_moe_few",
        f"MoeFewUpSpec kSpec{{.w = {{.fp4 = true}}, .x = Format::fp8_e4m3, .chunks = {chunks}}}",
    )


def down() -> tuple[Launch, str]:
    rng = np.random.default_rng(32)
    n, k, chunks = 128, CHUNKS * 128, CHUNKS * TOP_K
    mid = rows(rng, (TOKENS, TOP_K, k))
    codes, scales, wide = weights(rng, n, k)
    routing = (rng.random((TOKENS, TOP_K)) + 0.5).astype(np.float32)
    shared = rng.standard_normal((TOKENS, n)).astype(BF16)
    expected = shared.astype(np.float64)
    for t, slot in np.ndindex(TOKENS, TOP_K):
        e = IDS[t, slot] - FIRST
        if e < EXPERTS:
            expected[t] += reference.bf16(wide[e] @ mid[t, slot].astype(np.float64)) * np.float64(
                routing[t, slot]
            )
        else:
            mid[t, slot] = np.nan
    arrays = {"mid": mid, "w": codes, "scales": scales, "ids": IDS, "routing": routing, "shared": shared,
              "d": np.full((TOKENS, n), -77, np.float32)}  # fmt: skip
    fields = ("mid", "w", "ids", "routing", "shared", "d", n, n, FIRST, EXPERTS, n)
    smem = 4096 + chunks * (8 + 64) + TOP_K * 64
    launch = Launch("deep_gemm::sm90_moe_few_down<kSpec>", (TOKENS * n // 16,), 256, smem, arrays,
                    packer("8Q4Q2Q3I", fields, n, k), {"d": expected}, 1e-5)  # fmt: skip
    combine = f".d = Format::fp32, .top_k = {TOP_K}, .combine_weighted = true, .shared = true"
    return launch, source(
        "sm90_moe_few", f"MoeFewDownSpec kSpec{{.chunks = {CHUNKS}, .combine = {{{combine}}}}}"
    )


def project_up() -> tuple[Launch, str]:
    """A projection beside the first product: blocks 0 and 1 are the projection's."""
    beside, _ = up()
    rng = np.random.default_rng(34)
    n, k = 128, CHUNKS * 128
    tokens, out, inner = 5, 20, 256
    y, w = real(rng, (tokens, inner), "bf16"), real(rng, (out, inner), "bf16", inner**-0.5)
    few = ["x", None, ["w", "scales", (2 * n * k,), (k,), (2 * n // 128 * (k // 128),), (k // 128,), (1,)], "ids",
           "routing", "mid", (k,), (0,), TOP_K, FIRST, EXPERTS, n, 3.0]  # fmt: skip
    project = [
        "y",
        None,
        (inner,),
        (0,),
        tokens,
        inner,
        1,
        1,
        matrix("v", "z", out, inner, 2),
        *[NO_MATRIX] * 15,
    ]
    arrays = {**beside.arrays, "y": y, "v": w, "z": np.full((tokens, out), np.nan, np.float32)}
    expected = {**beside.expected, "z": y.astype(np.float64) @ w.astype(np.float64).T}
    launch = Launch("deep_gemm::project_few_up<kSpec>", (2 + IDS.size * n // 16,), 256, 4096, arrays,
                    pack(project, few, 2), expected, 2.0**-8)  # fmt: skip
    fields = f".few = {{.chunks = {CHUNKS}, .limited = true, .weighted = true}}"
    return launch, source("moe_joined", f"ProjectFewUpSpec kSpec{{{fields}}}")


KERNELS = {"up": up, "up fp4": up_fp4, "down": down, "project and up": project_up}
BUGS: list[tuple[str, Bug]] = [
    ("up", Bug("codes not visible to wgmma", "ptx::fence_proxy_async();\n}\n/// What write_chunks()", "}\n/// What write_chunks()")),
    ("up", Bug("another chunk's column", "ptx::lane_index() % 4 != column / 2", "ptx::lane_index() % 4 != (column / 2 ^ 1)", 8)),
    ("up", Bug("neighbouring column", "column % 2 ? sums[1] : sums[0]", "sums[0]", 8)),
    ("up", Bug("codes in no swizzle", "((column / 16) ^ row) * 16", "column / 16 * 16", 8)),
    ("up", Bug("words stay with their lane", "transpose_words(word[0][half]);", "", 8)),
    ("up", Bug("gate rows twice", "row + p.n * p.w.stride_row", "row", 8)),
    ("up", Bug("first atom for all", "group_chunk < Chunks ? group_chunk / kFewColumns : 0", "0", 8)),
    ("up", Bug("scale of the first rows", "row / kFewChunk * w.scale_stride_row", "0 * w.scale_stride_row", 8)),
    ("up", Bug("results read before they are there", "ptx::sync_threads();\n    if (thread >= kFewUpChannels", "if (thread >= kFewUpChannels")),
    ("up", Bug("an expert that is not here", "if (expert >= p.experts) return;", "", 8)),
    ("up", Bug("no lower limit", "ptx::max_nan_f32(up, -p.limit)", "up", 8)),
    ("up", Bug("results before wgmma is done", "ptx::wgmma_wait<0>();", "")),
    ("up fp4", Bug("words in plain order", "ptx::st_shared_b32(to + (activation_chunk(word) ^ row) * 16 + activation_word(word) * 4, low);",
                   "ptx::st_shared_b32(to + ((column / 16) ^ row) * 16 + column % 16, low);", 8)),
    ("up fp4", Bug("table not there yet", "ptx::sync_threads();\n    };\n    multiply_units<S.w, S.chunks, kWarps>",
                   "};\n    multiply_units<S.w, S.chunks, kWarps>")),
    ("up fp4", Bug("even rows' exponents for odd ones", "(offsets >> kBits) * 8", "(offsets & 15) * 8", 8)),
    ("up fp4", Bug("first quarter of the block", "return row % kFp4BlockRows / kFewRows;", "return 0;", 8)),
    ("up fp4", Bug("up rows' scale is the gate rows'", "i * p.n + channel + thread", "channel + thread", 8)),
    ("up fp4", Bug("token of the first pair", "const u32 token = pair / p.top_k;", "const u32 token = 0;", 8)),
    ("down", Bug("an expert that is not here", "if ((present >> slot & 1) == 0) continue;", "", 8)),
    ("down", Bug("scales of the first expert", "block_scale(p.w, e, first,", "block_scale(p.w, 0, first,", 8)),
    ("down", Bug("sums read before they are there", "ptx::sync_threads();\n    if (my_slot < kTopK", "if (my_slot < kTopK")),
    ("down", Bug("parts read before they are there", "ptx::sync_threads();\n    if (thread >= kFewRows) return;",
                 "if (thread >= kFewRows) return;")),
    ("down", Bug("weight of the first", "p.weights + token * kTopK + my_slot", "p.weights + token * kTopK", 8)),
    ("down", Bug("rows of the first block", "(first + lane / 4) * p.w.stride_row", "(lane / 4) * p.w.stride_row", 8)),
    ("project and up", Bug("products from the wrong block on", "(p.few, block - p.project_blocks)", "(p.few, block)", 8)),
    ("project and up", Bug("a block of the projection less", "if (block >= p.project_blocks)", "if (block + 1 >= p.project_blocks)", 8)),
    ("project and up", Bug("a block of the projection more", "if (block >= p.project_blocks)", "if (block > p.project_blocks)", 8)),
    ("project and up", Bug("results read before they are there", "ptx::sync_threads();\n    if (thread >= kFewUpChannels", "if (thread >= kFewUpChannels")),
    ("down", Bug("chunks of a later round dropped", "if (chunk < Chunks) store_column", "if (i == 0 && turn == 0) store_column", 8)),
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
