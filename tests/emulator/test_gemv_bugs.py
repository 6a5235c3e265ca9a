"""Bugs injected into the small-batch kernels, by the machinery of injection: each must end in other bits, a wrong
result or a fault. Among them the defects that kernels of this kind are known for: rows past the end that skip a common
barrier, tails of K that are dropped or read beyond, vector loads of unaligned rows, swapped fragment registers, NaN codes
that become numbers, and sums in an order that depends on the batch.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from emulator.injection import Bug, Launch, check_caught, check_clean, flatten
from reference import gemv as reference
from reference import quant

from deep_gemm.quantized import QuantizedMatrix, quantize

Array = np.ndarray[Any, np.dtype[Any]]

WARP_BYTES = 16 * 8 * 4
RING_BYTES = 8 * 2 * 16 * 128  # two stages of each warp, so that they are used again


@dataclass(frozen=True)
class Gemv:
    """One spec and a problem with tails of rows, tokens and K."""

    name: str
    kernel: str
    spec: str
    w: QuantizedMatrix
    x: tuple[Array, Array | None]
    smem_bytes: int
    rows_per_block: int
    expected: Array
    tolerance: float
    tokens_per_block: int = 8
    threads: int = 256
    grid: int = 1  # fewer than tiles of rows: the ring runs through several

    def text(self) -> str:
        return flatten(
            f"#include <deep_gemm/kernel/{self.kernel}.cuh>\nusing namespace deep_gemm;\n"
            f"constexpr GemvSpec kSpec{{{self.spec}}};\n"
        )

    def launch(self) -> Launch:
        values, scales = self.x
        m = values.shape[0]
        y = np.full((m, self.w.n), np.nan, np.float32)
        arrays = {"w": self.w.data, "x": values, "y": y}
        if self.w.scales is not None:
            arrays["w_scale"] = self.w.scales
        if self.w.zeros is not None:
            arrays["w_zero"] = self.w.zeros
        if scales is not None:
            arrays["x_scale"] = scales

        def pack(_: Any, at: dict[str, int]) -> bytes:
            """GemvParams, field by field."""
            matrix = struct.pack("<6Q3QIf", at["w"], at.get("w_scale", 0), at.get("w_zero", 0), at["y"], 0, 0, self.w.data.strides[0],
                                 self.w.n, 0, self.w.n, self.w.global_scale)  # fmt: skip
            rest = struct.pack("<4Q4If", at["x"], at.get("x_scale", 0), values.strides[0],
                               scales.shape[1] if scales is not None else 0, 1, m, self.w.k, self.tokens_per_block,
                               0.0)  # fmt: skip
            deal = struct.pack(
                "<2I", self.w.n // self.rows_per_block, 4
            )  # 16-bit weights: the last rows in short tiles
            return matrix + bytes(3 * len(matrix)) + rest + deal + bytes(4)

        grid = (self.grid or -(-self.w.n // self.rows_per_block), -(-m // self.tokens_per_block))
        return Launch(
            f"deep_gemm::{self.kernel}<kSpec>", grid, self.threads, self.smem_bytes, arrays, pack,
            {"y": self.expected.astype(np.float64)}, tolerance=self.tolerance,
        )  # fmt: skip


def align(value: int, unit: int) -> int:
    return -(-value // unit) * unit


def small_integers(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Exact in every sum."""
    return rng.integers(-2, 3, shape).astype(np.float32)


def bf16_case() -> Gemv:
    rng = np.random.default_rng(0)
    w, x = small_integers(rng, (37, 1096)), small_integers(rng, (3, 1096))
    matrix = quantize(w, "bf16")
    return Gemv(
        "bf16", "gemv", ".y = Format::fp32, .stages = 2, .groups = 1", matrix, (x.astype(ml_dtypes.bfloat16), None), RING_BYTES + 2 * 8 * WARP_BYTES + 32, 16,
        x.astype(np.float64) @ w.T, 0.0,
    )  # fmt: skip


def fp8_case() -> Gemv:
    rng = np.random.default_rng(1)
    n, k = 37, 1104
    data = small_integers(rng, (n, k)).astype(ml_dtypes.float8_e4m3fn)
    w_scale = np.exp2(rng.integers(-2, 3, (1, 9))).astype(np.float32)
    values = small_integers(rng, (3, k)).astype(ml_dtypes.float8_e4m3fn)
    x_scale = np.exp2(rng.integers(-2, 3, (3, 9))).astype(np.float32)
    matrix = QuantizedMatrix("fp8_128x128", n, k, data, w_scale)
    expected = quant.activations((values, x_scale)) @ quant.dequantize(matrix).T
    return Gemv(
        "fp8", "gemv", ".w = Quant::fp8_128x128, .x = Activation::fp8_128, .y = Format::fp32, .stages = 2, .groups = 1", matrix,
        (values, x_scale), RING_BYTES + 2 * 8 * WARP_BYTES + 32, 16, expected, 0.0,
    )  # fmt: skip


def nvfp4_case() -> Gemv:
    rng = np.random.default_rng(2)
    n, k = 37, 1120
    data = rng.integers(-128, 128, (n, k // 2)).astype(np.int8)
    scales = rng.integers(48, 64, (n, k // 16)).astype(np.int8)  # 0.5 to 1.875
    x = small_integers(rng, (3, k))
    matrix = QuantizedMatrix("nvfp4", n, k, data, scales)
    return Gemv(
        "nvfp4", "gemv", ".w = Quant::nvfp4, .y = Format::fp32, .stages = 2, .groups = 1", matrix, (x.astype(ml_dtypes.bfloat16), None),
        RING_BYTES + 2 * 8 * WARP_BYTES + 32, 16, x.astype(np.float64) @ quant.dequantize(matrix).T, 0.0,
    )  # fmt: skip


def resident_case() -> Gemv:
    """Tokens in shared memory; the last visit is half a visit, the last tile has five rows."""
    rng = np.random.default_rng(4)
    n, k, tokens = 37, 2176, 3
    data = rng.integers(-128, 128, (n, k // 2)).astype(np.int8)
    w_scale = rng.integers(48, 64, (n, k // 16)).astype(np.int8)
    values = small_integers(rng, (tokens, k)).astype(ml_dtypes.float8_e4m3fn)
    x_scale = np.exp2(rng.integers(-2, 3, (tokens, k // 128))).astype(np.float32)
    matrix = QuantizedMatrix("nvfp4", n, k, data, w_scale)
    expected = quant.activations((values, x_scale)) @ quant.dequantize(matrix).T
    ring, x = 8 * 2 * 16 * (128 + 16), tokens * (2304 * 2 + 64) + 2304 // 128 * 8 * 4
    return Gemv(
        "resident", "gemv_resident", ".w = Quant::nvfp4, .x = Activation::fp8_128, .y = Format::fp32, .stages = 2, .groups = 1, .resident = true",
        matrix, (values, x_scale), ring + 2 * 8 * WARP_BYTES + 32 + x, 16, expected, 0.0,
    )  # fmt: skip


def zero_case() -> Gemv:
    """Zero points, four bytes of which are those of two visits."""
    rng = np.random.default_rng(6)
    n, k, tokens = 37, 2560, 2
    codes = rng.integers(0, 256, (n, k // 2)).astype(np.uint8)
    scales = np.exp2(rng.integers(-2, 3, (n, k // 128))).astype(np.float16)
    zeros = rng.integers(0, 16, (n, k // 128)).astype(np.int8)
    x = small_integers(rng, (tokens, k)).astype(ml_dtypes.bfloat16)
    matrix = QuantizedMatrix.from_parts("int4_zero_128", codes, scales, zeros)
    ring = 8 * 2 * align(16 * (128 + 4 + 4), 128)
    return Gemv(
        "zero points", "gemv_resident", ".w = Quant::int4_zero_128, .y = Format::fp32, .stages = 2, .groups = 1, .resident = true",
        matrix, (x, None), ring + 2 * 8 * WARP_BYTES + 32 + tokens * (2 * k + 64), 16,
        x.astype(np.float64) @ quant.dequantize(matrix).T, 0.0,
    )  # fmt: skip


def shifted_case() -> Gemv:
    """Nineteen scales in a row: every other row of them starts between words, the last of all at its end."""
    rng = np.random.default_rng(8)
    n, k, tokens = 37, 19 * 128, 2
    codes = rng.integers(0, 256, (n, k // 2)).astype(np.uint8)
    scales = np.exp2(rng.integers(-2, 3, (n, k // 128))).astype(np.float16)
    x = small_integers(rng, (tokens, k)).astype(ml_dtypes.bfloat16)
    matrix = QuantizedMatrix.from_parts("int4_128", codes, scales)
    ring = 8 * 2 * align(16 * (128 + 8), 128)
    return Gemv(
        "shifted scales", "gemv_resident", ".w = Quant::int4_128, .y = Format::fp32, .stages = 2, .groups = 1, .row_alignment = 2, .resident = true",
        matrix, (x, None), ring + 2 * 8 * WARP_BYTES + 32 + tokens * (2 * align(k, 256) + 64), 16,
        x.astype(np.float64) @ quant.dequantize(matrix).T, 0.0,
    )  # fmt: skip


def q8_case(name: str = "q8_0", n: int = 37) -> Gemv:
    rng = np.random.default_rng(3)
    k = 32 * 70
    matrix = quantize(rng.standard_normal((n, k)).astype(np.float32), "q8_0")
    values, scales = reference.q8_activations(rng.standard_normal((3, k)).astype(np.float32))
    codes, w_scale = quant.q8_0_blocks(matrix.data)
    expected = reference.q8_rows(codes, w_scale, values, scales)
    return Gemv(
        name, "gemv_q8", ".w = Quant::q8_0, .x = Activation::q8, .y = Format::fp32, .stages = 2, .groups = 1, .row_alignment = 4", matrix,
        (values.reshape(3, -1), scales), 8 * (2 * 16 * 176 + 2 * 4 * WARP_BYTES) + 32, 16, expected, 0.0,
    )  # fmt: skip


def q8_bulk_case(name: str = "q8_0 bulk", n: int = 37, blocks: int = 72, options: str = "") -> Gemv:
    """Three visits, the last of them a quarter or less."""
    rng = np.random.default_rng(7)
    k = 32 * blocks
    matrix = quantize(rng.standard_normal((n, k)).astype(np.float32), "q8_0")
    values, scales = reference.q8_activations(rng.standard_normal((3, k)).astype(np.float32))
    codes, w_scale = quant.q8_0_blocks(matrix.data)
    expected = reference.q8_rows(codes, w_scale, values, scales)
    ring, x = 2 * 16 * (32 * 34 + 16), 3 * (align(k, 128) + 16) + blocks * 8 * 4
    return Gemv(
        name, "gemv_q8", f".w = Quant::q8_0, .x = Activation::q8, .y = Format::fp32, .stages = 2, .groups = 1{options}, .resident = true, .bulk = true",
        matrix, (values.reshape(3, -1), scales), ring + 8 * 2 * 4 * WARP_BYTES + 64 + x, 16, expected, 0.0, threads=320,
    )  # fmt: skip


def q8_rows_case() -> Gemv:
    """Two tokens: a warp for each row."""
    whole = q8_case()
    values, scales = whole.x
    assert scales is not None
    return Gemv(
        "q8_0 rows", "gemv_q8_rows", ".w = Quant::q8_0, .x = Activation::q8, .y = Format::fp32, .tokens = 2, .stages = 3, .groups = 1",
        whole.w, (values[:2], scales[:2]), 8 * 3 * (32 * 34 + 16), 8, whole.expected[:2], 0.0, tokens_per_block=2, grid=0,
    )  # fmt: skip


CASES = {
    case.name: case
    for case in (
        bf16_case(),
        fp8_case(),
        nvfp4_case(),
        resident_case(),
        zero_case(),
        shifted_case(),
        q8_case(),
        q8_case("q8_0 whole", 32),
        q8_bulk_case(),
        q8_bulk_case("q8_0 around", 40, 70, ", .row_alignment = 4"),
        q8_rows_case(),
    )
}

Q8_UPDATE = """ptx::fma_rn(ptx::mul_rn(block.scale[r][i / 2], x.scale[t][i % 2]),
                                ptx::float_of_bits(dot[i]) - kFloatOffset, sums.value[r][t][i])"""

BUGS = {
    "bf16": [
        Bug("fragment registers 1 and 2 swapped",
            "{low[2 * half], high[2 * half], low[2 * half + 1], high[2 * half + 1]}",
            "{low[2 * half], low[2 * half + 1], high[2 * half], high[2 * half + 1]}", 8),
        Bug("the tail of K is dropped", "for (; visit < visits; visit += kGemvWarps)",
            "for (; visit < visits && p.k % visit_k_of(S) == 0; visit += kGemvWarps)", 8),
        Bug("the tail is read as whole vectors", "multiply_visit<false, S>(sums, ring, p, kernel::find_block<S>(p, tile), beside, tokens, visit);",
            "multiply_visit<true, S>(sums, ring, p, {}, beside, tokens, visit);", 8),
        Bug("warps of rows past the end leave before the barrier", "        clear<S>(sums);\n        u32 visit",
            "        if (kernel::find_block<S>(p, tile).first_row + 2 * ptx::warp_index() >= p.w[0].n) return;\n"
            "        clear<S>(sums);\n        u32 visit", 8),
        Bug("sums are added before all warps have left theirs", "if constexpr (kLater) ptx::mbarrier_wait(full(count - 1), (count - 1) / kPlaces % 2);", "", 1),
        Bug("sums are left where others are still added", "if constexpr (kLater) ptx::mbarrier_wait(empty(count), count / kPlaces % 2 ^ 1);", "", 1),
        Bug("a warp's sums are announced before all lanes have left them", "            ptx::sync_warp();\n            if (lane == 0) ptx::mbarrier_arrive(full(count));", "            if (lane == 0) ptx::mbarrier_arrive(full(count));", 1),
        Bug("the last tile is not added", "    if constexpr (kLater) partials.finish(p, kernel", "    if constexpr (false) partials.finish(p, kernel", 8),
        Bug("rows past the end are written", "if (row >= block.end_row || token >= tokens) continue;",
            "if (token >= tokens) continue;", 8),
        Bug("tokens past the end are written", "if (row >= block.end_row || token >= tokens) continue;",
            "if (row >= w.n) continue;", 8),
        Bug("tokens past the end are read", "tokens.row[t] = mine < count ?", "tokens.row[t] = true ?", 8),
        Bug("one warp's sum forgotten", "for (u32 warp = 1; warp < kGemvWarps; ++warp)",
            "for (u32 warp = 1; warp < kGemvWarps - 1; ++warp)", 8),
        Bug("visits overlap", "source[i] += kGemvWarps * kGemvVisitBytes;", "source[i] += kGemvVisitBytes;", 8),
        Bug("a visit is read before it has landed", "ptx::cp_async_wait<S.stages - 2>();", "ptx::cp_async_wait<S.stages - 1>();"),
        Bug("a stage is written while other lanes read it", "ptx::sync_warp();  // every lane's part has landed, and", "//"),
        Bug("copies of the next tile go on in the rows of the last", "                    enter(p);\n", "", 8),
        Bug("rows past the end are read", "copy <= last[i] ? 16 : 0", "16", 8),
        Bug("short tiles begin where whole ones would", "(block - whole) * deal.rest_rows", "(block - whole) * block_rows_of(S)", 8),
        Bug("the ring ends with the first tile", "tile += stride;\n                if (tile < tiles) {\n                    prefetch_scales<S>(p, find_block<S>(p, tile), group_thread());\n                    enter(p);", "tile = tiles;\n                if (tile < tiles) {\n                    enter(p);", 8),
        Bug("fragments of the other half of the line", "place ^ step * 4", "place + step * 4", 8),
    ],
    "fp8": [
        Bug("a scale of the block before", "tokens.scale[t][i] + element / block_k_of(S.x))",
            "tokens.scale[t][i] + (element >= 128 ? element - 128 : 0) / block_k_of(S.x))", 8),
        Bug("scales of x by row of the fragment", "[inside / block_k_of(S.x)][t][i % 2]", "[inside / block_k_of(S.x)][t][i / 2]", 8),
        Bug("partial sums cleared too often", "if (piece * 32 % promote_k_of(S) == 0) clear<S>(partial);",
            "if (piece * 32 % 64 == 0) clear<S>(partial);", 8),
        Bug("upper bytes decoded from the lower ones", '"cvt.rn.f16x2.e4m3x2 %1, h;', '"cvt.rn.f16x2.e4m3x2 %1, l;', 8),
    ],
    "nvfp4": [
        Bug("one scale for 32 elements", "i < 2 ? first : second", "first", 8),
        Bug("pairs of x in the order of the row", "x.x[i % kPieces][t][piece % kPieces]", "x.x[piece % kPieces][t][i]", 8),
        Bug("a bit of every fourth code lost", "word & 0x001b001bu", "word & 0x0013001bu", 8),
        Bug("sign of a nibble lost", "kKept = 0x81c081c0u", "kKept = 0x01c001c0u", 8),
        Bug("a nibble's bits beside its own kept", "kKept = 0x81c081c0u", "kKept = 0x83c083c0u", 8),
        Bug("every other piece is not added", "    add_other_chain<S>(sums, partial);\n", "", 8),
        Bug("every other piece is added twice", "    if (!kTwoChains<S> || piece % 2 == 0) return sums;\n    if (piece == 1)", "    if (!kTwoChains<S> || piece % 2 == 0) return sums;\n    if (false)", 8),
        Bug("scale bytes beyond the row", "                        if (Whole || element + block * kBlockK < p.k)\n", "", 8),
    ],
    "resident": [
        Bug("a visit is read before it has landed", "ptx::cp_async_wait<S.stages - 2>();", "ptx::cp_async_wait<S.stages - 1>();", occurrences=2),
        Bug("a stage is written while other lanes read it", "ptx::sync_warp();  // every lane's part has landed, and", "//", occurrences=2),
        Bug("tokens are read before all of them are there", "        ptx::sync_threads();\n#pragma unroll", "#pragma unroll"),
        Bug("pairs of x in the order of the row", "i % 16 / 4 * 16 + i % 4 * 4", "i % 4 * 16 + i % 16 / 4 * 4", 8),
        Bug("tokens past the end are read", "(mine < count ? mine : 0) * pitch", "mine * pitch", 8),
        Bug("x is not zero beyond its end", "fetch_tokens<false, S>(words, p.x + (first + token)", "fetch_tokens<true, S>(words, p.x + (first + token)", 8),
        Bug("a vector of the first batch is left out", "        visit(2), visit(3);\n", "        visit(3);\n", 8),
        Bug("the end of the rows is not cut", "Whole ? 16 : present(", "true ? 16 : present(", 8),
        Bug("the end of the scales is not cut", "Whole ? kPieceBytes : present(", "true ? kPieceBytes : present(", 8),
        Bug("visits of a tile go on in the next", " - turns * (kGemvWarps * kGemvVisitBytes)", "", 8),
        Bug("both pieces of scales are the first", "                        lane % kPieces * kPieceBytes +\n", "", 8),
        Bug("scales of the tokens for the first block of a visit", "(visit * TokenScales<S>::kBlocks + block) * S.tokens", "visit * TokenScales<S>::kBlocks * S.tokens", 8),
        Bug("rows past the end are read", "(tile + 1) * block_rows_of(S) > p.w[0].n", "tile * block_rows_of(S) > p.w[0].n", 8),
        Bug("scales of rows eight below", "stage + kScales + stage_row * kStageScaleBytes", "stage + kScales + lane / 4 * kStageScaleBytes", 8),
    ],
    "zero points": [
        Bug("those of the other visit in the piece", "group_warp() % 2 * 8 * kVisitZeros", "(1 - group_warp() % 2) * 8 * kVisitZeros", 8),
        Bug("those of the first block for all", "word[block / 4] >> block % 4 * 8 & 0xff", "word[0] & 0xff", 8),
        Bug("those of rows eight below", "kZeros + stage_row * kZeroBytes", "kZeros + lane / 4 * kZeroBytes", 8),
        Bug("those of the visit before", "zeros += kGemvWarps * kVisitZeros;", "zeros += 0;", 8),
        Bug("visits of a tile go on in the next", " - turns * (kGemvWarps * kVisitZeros)", "", 8),
        Bug("a token's last vector is the next one's first", "const u32 token = vectors > 1 ? ptx::multiply_high(at, inverse) : at;", "const u32 token = vectors > 1 ? ptx::multiply_high(at + 1, inverse) : at;", 8),
        Bug("a vector too many", "if (index < total) store(", "if (index <= total) store(", 1),
        Bug("upper nibbles for lower ones", "const u32 upper = word >> 8;", "const u32 upper = word >> 4;", 8),
        Bug("what the sums are short of forgotten", "kInt4Remainder = 64.0f", "kInt4Remainder = 32.0f", 8),
        Bug("zero points added", "pair_of(0xff00)", "pair_of(0x7f00)", 8),
        Bug("pieces where another warp's begin", "visit * kVisitZeros / kZeroBytes * kZeroBytes", "visit * kVisitZeros / kZeroBytes * kVisitZeros", 8),
    ],
    "shifted scales": [
        Bug("copied from between words", "static_cast<u32>(reinterpret_cast<u64>(scales[i]) % kPieceBytes)", "0", 8),
        Bug("the end of a shifted row comes too early", "present(place, scale_bytes + shift, kPieceBytes)", "present(place, scale_bytes, kPieceBytes)", 8),
        Bug("the end of the rows is not cut", "present(place, scale_bytes + shift, kPieceBytes)", "kPieceBytes", 8),
        Bug("rows that start between words are read as others", "stage_row % 2 ? before >> 16", "false ? before >> 16", 8),
        Bug("the second word is the first", "behind = ptx::ld_shared_u32(mine + 4)", "behind = ptx::ld_shared_u32(mine)", 8),
    ],
    "q8_0": [
        Bug("another order of the places", "sum_of_places<2 * Step>(first + Step * kPartElements * 4)", "sum_of_places<2 * Step>(first + (Step == 2 ? 16 : Step == 16 ? 2 : Step) * kPartElements * 4)", 8),
        Bug("scales applied one after the other", Q8_UPDATE,
            "ptx::fma_rn(block.scale[r][i / 2], ptx::mul_rn(x.scale[t][i % 2], ptx::float_of_bits(dot[i]) - kFloatOffset), sums.value[r][t][i])", 8),
        Bug("no fma", Q8_UPDATE,
            "ptx::add_rn(ptx::mul_rn(ptx::mul_rn(block.scale[r][i / 2], x.scale[t][i % 2]), ptx::float_of_bits(dot[i]) - kFloatOffset), sums.value[r][t][i])", 8),
        Bug("halves of words in the order of the others", "(place + 1) * 2 % 4", "place * 2 % 4", 8),
        Bug("misalignment of the row ignored where it is read", "static_cast<u32>(visit % 16)", "0u", 8),
        Bug("misalignment of the first row for all", "if constexpr (S.row_alignment != 16) before", "if constexpr (false) before", 8),
        Bug("the vector around the end of four blocks is missing", "vector() * 16 < before + Layout::kVisitBytes", "vector() * 16 + 16 < before + Layout::kVisitBytes", 8),
        Bug("rows past the end are copied", "inside && row_bytes - offset >= reach", "row_bytes - offset >= reach", 8),
        Bug("visits of a tile go on in the next", " - (offset - begin)", "", 8),
        Bug("a visit is read before it has landed", "ptx::cp_async_wait<S.stages - 2>();  // of Q8_0", "ptx::cp_async_wait<S.stages - 1>();"),
        Bug("sums are added before all warps have left theirs", "if constexpr (kLater) ptx::mbarrier_wait(full(count - 1), (count - 1) / kPlaces % 2);", "", 1),
        Bug("sums are left where others are still added", "if constexpr (kLater) ptx::mbarrier_wait(empty(count), count / kPlaces % 2 ^ 1);", "", 1),
        Bug("the last tile is not added", "    if (kLater && partials.count != 0)\n        partials.finish(p, kernel::find_block<S>(p, tile - stride), first_token, count);\n}", "}", 8),
        Bug("blocks past the end of the row are added", "if (index < num_blocks) multiply_visit<false, S>", "if (index < num_blocks) multiply_visit<true, S>", 8),
        Bug("fragments of rows 8 and more for those before", "{block.word[r][0][0], block.word[r][1][0], block.word[r][0][1], block.word[r][1][1]}",
            "{block.word[r][0][0], block.word[r][0][1], block.word[r][1][0], block.word[r][1][1]}", 8),
    ],
    "q8_0 whole": [
        Bug("bytes beyond the last row are copied", "inside && row_bytes - offset >= reach", "inside", 8),
    ],
    "q8_0 bulk": [
        Bug("a visit is read before it has landed", "        ptx::mbarrier_wait(this->full(stage), this->cursor.phase);\n", "", 1),
        Bug("a stage is filled while it is read", "        ptx::mbarrier_wait(this->empty(stage), this->cursor.phase ^ 1);\n", "", 1),
        Bug("a stage is given back before it is read", "if (holds && ptx::lane_index() == 0) ptx::mbarrier_arrive(this->empty(held));", "if (ptx::lane_index() == 0) ptx::mbarrier_arrive(this->empty(stage));", 1),
        Bug("bytes beyond the row are copied", "left < Layout::kRowBytes ? left : Layout::kRowBytes", "Layout::kRowBytes", 8),
        Bug("the last tile is not brought", "bool more() const { return tile < tiles; }", "bool more() const { return tile + 1 < tiles; }", 8),
        Bug("rows past the end are copied", "u32 row = of_tiles % kMmaTileRows;\n            const GemvMatrix& w = row_of_block<S>(p, find_block<S>(p, tile), of_tiles / kMmaTileRows, row);", "const u32 row = tile * 16 + of_tiles;\n            const GemvMatrix& w = p.w[0];", 8),
        Bug("one writer's rows alone are waited for", "kAligned ? kQ8Writers : Ring::kRows", "1", 1),
        Bug("both writers bring the same rows", "first_row(writer * kShare)", "first_row(0)", 8),
        Bug("a writer begins before its barriers are there", "        ptx::named_barrier_sync(1 + S.groups + group, kQ8Writers * 32);\n", "", 1),
        Bug("scales of a thread's second turn are the first's", "asked[i] = load(mine + i * kThreads);", "asked[i] = load(mine);", 8),
        Bug("blocks of the next warp", "S.bulk ? group_warp() * Layout::kVisitBytes", "S.bulk ? (group_warp() + 1) % 8 * Layout::kVisitBytes", 8),
        Bug("warps without blocks do not give back", "for (u32 first = 0; first < num_blocks; first += kQ8BulkBlocks) {", "for (u32 first = 0; first + group_warp() * kQ8VisitBlocks < num_blocks; first += kQ8BulkBlocks) {", 8),
    ],
    "q8_0 around": [
        Bug("a row begins where its vector does", "(S.row_alignment == 16 ? 0 : static_cast<u32>(reinterpret_cast<u64>(data) % 16))", "0", 8),
        Bug("the vector around the end is missing", "align_up(before + bytes, 16u)", "align_up(bytes, 16u)", 8),
        Bug("copied from between vectors", "ptx::bulk_load(to, from - before,", "ptx::bulk_load(to, from,", 8),
        Bug("bytes beyond the row are copied", "left < Layout::kRowBytes ? left : Layout::kRowBytes", "Layout::kRowBytes", 8),
        Bug("the vector around the end is not waited for", "arrive_expect_tx(this->full(stage), around)", "arrive_expect_tx(this->full(stage), around - before)", 1),
        Bug("one row alone is waited for", "kAligned ? kQ8Writers : Ring::kRows", "1", 1),
    ],
    "q8_0 rows": [
        Bug("tree instead of butterfly order", "for (u32 distance = 16; distance > 0; distance /= 2)\n        value = ptx::add_rn",
            "for (u32 distance = 1; distance < 32; distance *= 2)\n        value = ptx::add_rn", 8),
        Bug("no fma", "ptx::fma_rn(ptx::mul_rn(blocks[r].scale, scale_x), static_cast<float>(dot), sum[r][t])",
            "ptx::add_rn(ptx::mul_rn(ptx::mul_rn(blocks[r].scale, scale_x), static_cast<float>(dot)), sum[r][t])", 8),
        Bug("blocks at odd halves read from the even one", "odd ? 0x7654 : 0x5432", "0x5432", 8),
        Bug("one stage too few waited for", "ptx::cp_async_wait<S.stages - 2>();", "ptx::cp_async_wait<S.stages - 1>();", 1),
        Bug("misalignment of the row ignored", "static_cast<u32>(start % 16)", "0u", 8),
    ],
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=lambda case: case.name)
def test_clean(case: Gemv) -> None:
    check_clean(case.launch(), case.text())


@pytest.mark.parametrize(
    ("name", "bug"), [(name, bug) for name, bugs in BUGS.items() for bug in bugs], ids=lambda value: getattr(value, "name", value)
)  # fmt: skip
def test_bug_is_caught(name: str, bug: Bug) -> None:
    case = CASES[name]
    check_caught(case.launch(), case.text(), bug)


def test_a_nan_code_that_becomes_a_number_is_caught() -> None:
    """E4M3 0x7f read as 480, as tables without a NaN have it."""
    case = fp8_case()
    case = replace(case, spec=case.spec + ", .native_fp8 = false")
    case.w.data.view(np.uint8)[5, 77] = 0x7F
    launch = case.launch()
    outcomes = launch.outcomes(case.text())
    assert set(outcomes.values()) == {"wrong"} and np.isnan(launch.outputs["y"][:, 5]).all()
    bug = Bug("NaN is 480", "    if (has_e4m3_nan(word)) [[unlikely]] {\n", "    if (false) {\n")
    launch.outcomes(bug.inject(case.text()))
    assert np.isfinite(launch.outputs["y"]).all(), "the bug should hide the NaN"
