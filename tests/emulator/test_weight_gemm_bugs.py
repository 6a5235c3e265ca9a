"""Bugs injected into the large-batch weight-only kernels, by the machinery of injection: each must end in a wrong
result, a fault or a deadlock report.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from emulator.gemm_launch import matrix_map
from emulator.injection import Bug, Launch, check_caught, check_clean, flatten
from reference import gemv, quant

import deep_gemm
from deep_gemm.quantized import QuantizedMatrix

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Case:
    """One spec and a problem with tails of rows, tokens and K; integers, so that every sum is exact."""

    name: str
    spec: str
    fields: dict[str, Any]
    w: QuantizedMatrix
    x: Array
    x_scale: Array | None = None
    kernel: str = "sm90_weight_gemm"
    up: QuantizedMatrix | None = None  # swiglu
    limit: float = 0.0

    def text(self) -> str:
        return flatten(
            f"#include <deep_gemm/kernel/{self.kernel}.cuh>\nusing namespace deep_gemm;\n"
            f"constexpr WeightGemmSpec kSpec{{{self.spec}}};\n"
        )

    def launch(self) -> Launch:
        spec = deep_gemm.WeightGemmSpec(w=self.w.format, **self.fields)
        cluster, rows = self.fields.get("cluster", 1), 64 * self.fields.get("warpgroups", 2)
        m, n, k = self.x.shape[0], self.w.n, self.w.k
        kind = np.float32 if self.fields["y"] == "fp32" else ml_dtypes.bfloat16
        arrays = {
            "w": self.w.data.view(np.uint8), "x": self.x, "y": np.full((m, n), np.nan, kind)
        }  # fmt: skip
        if self.w.scales is not None:
            arrays["w_scale"] = self.w.scales
        if self.up is not None:
            arrays["up"] = self.up.data.view(np.uint8)
            if self.up.scales is not None:
                arrays["up_scale"] = self.up.scales
        if self.x_scale is not None:
            arrays["x_scale"] = self.x_scale
        tokens = ("bf16", 2) if self.x_scale is None else ("int8", 1)

        def pack(device: Any, at: dict[str, int]) -> bytes:
            """WeightGemmParams, field by field."""
            both = ["w"] if self.up is None else ["w", "up"]
            box = rows // len(both)
            maps = [matrix_map(device, at[w], (1, *arrays[w].shape), "int8", 1, box, 128) for w in both]
            beside = [struct.pack("<2QfI", at.get(f"{w}_scale", 0), 0, self.w.global_scale, 0) for w in both]
            text = b"".join(maps).ljust(256, b"\0")
            text += matrix_map(device, at["x"], (1, m, k), *tokens, spec.block_m // cluster, 128)
            text += b"".join(beside).ljust(48, b"\0")
            text += struct.pack(
                "<7Q3IfI", at.get("x_scale", 0), at["y"], 0, 0, 1, n, 0, m, n, k, self.limit, n % 8 == 0
            )
            return text.ljust(512, b"\0")

        expected = self.x.astype(np.float64) @ quant.dequantize(self.w).T
        if self.x_scale is not None:
            expected *= self.x_scale
        if self.up is not None:
            up = self.x.astype(np.float64) @ quant.dequantize(self.up).T
            expected = gemv.silu(np.minimum(expected, self.limit)) * np.clip(up, -self.limit, self.limit)
        return Launch(
            f"deep_gemm::{self.kernel}<kSpec>", (2 * cluster,), spec.threads, spec.smem_bytes, arrays, pack,
            {"y": expected}, tolerance=2.0**-8 if kind != np.float32 else 2.0**-20 if self.up else 0.0, cluster=cluster,
        )  # fmt: skip


def small_integers(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    return rng.integers(-2, 3, shape).astype(ml_dtypes.bfloat16)


def fp8_case() -> Case:
    """Pairs of CTAs, five blocks of K whose scales differ by powers of two: a turn of four, and one; tokens in two parts;
    bf16 by way of the staging buffer.
    """
    rng = np.random.default_rng(0)
    n, k = 200, 592
    data = rng.integers(-2, 3, (n, k)).astype(ml_dtypes.float8_e4m3fn)
    scales = np.exp2(rng.integers(-2, 3, (2, 5))).astype(np.float32)
    fields = {
        "y": "bf16",
        "block_m": 128,
        "warpgroups": 1,
        "cluster": 2,
        "token_stages": 3,
        "weight_stages": 2,
    }
    spec = (".w = Quant::fp8_128x128, .block_m = 128, .warpgroups = 1, .cluster = 2, .token_stages = 3, "
            ".weight_stages = 2, .whole_scales = false")  # fmt: skip
    return Case(
        "fp8", spec, fields, QuantizedMatrix("fp8_128x128", n, k, data, scales), small_integers(rng, (140, k))
    )


def nvfp4_case() -> Case:
    rng = np.random.default_rng(1)
    n, k = 70, 1056
    data = rng.integers(-128, 128, (n, k // 2)).astype(np.int8)
    scales = rng.choice(np.array([0x30, 0x38, 0x40], np.int8), (n, k // 16))  # 0.5, 1, 2
    scales[:, 20:24] = rng.choice(
        np.array([0, 4], np.int8), (n, 4)
    )  # zero and subnormal, in the second of five stages
    fields = {"y": "fp32", "block_m": 16, "token_stages": 3, "weight_stages": 2}
    spec = (".w = Quant::nvfp4, .y = Format::fp32, .block_m = 16, .token_stages = 3, .weight_stages = 2, "
            ".whole_scales = false")  # fmt: skip
    return Case(
        "nvfp4", spec, fields, QuantizedMatrix("nvfp4", n, k, data, scales), small_integers(rng, (40, k))
    )


def int4_case() -> Case:
    rng = np.random.default_rng(2)
    n, k = 70, 1024
    packed = rng.integers(0, 256, (n, k // 2)).astype(np.uint8)
    scales = np.exp2(rng.integers(-2, 3, (n, k // 32))).astype(np.float16)
    fields = {"y": "fp32", "block_m": 16, "token_stages": 3, "weight_stages": 2}
    spec = ".w = Quant::int4_32, .y = Format::fp32, .block_m = 16, .token_stages = 3, .weight_stages = 2"
    return Case(
        "int4",
        spec,
        fields,
        QuantizedMatrix.from_parts("int4_32", packed, scales),
        small_integers(rng, (40, k)),
    )


def int8_case() -> Case:
    rng = np.random.default_rng(3)
    n, k = 200, 1168
    w, x = (rng.integers(-128, 128, (rows, k)).astype(np.int8) for rows in (n, 75))
    w_scale, x_scale = (np.exp2(rng.integers(-2, 3, (rows, 1))).astype(np.float32) for rows in (n, 75))
    fields = {
        "x": "int8_row",
        "y": "fp32",
        "block_m": 32,
        "cluster": 2,
        "token_stages": 3,
        "weight_stages": 3,
    }
    spec = (".w = Quant::int8_row, .x = Activation::int8_row, .y = Format::fp32, .block_m = 32, .cluster = 2, "
            ".token_stages = 3, .weight_stages = 3")  # fmt: skip
    return Case(
        "int8", spec, fields, QuantizedMatrix("int8_row", n, k, w, w_scale), x, x_scale, "sm90_stored_gemm"
    )


def bf16_case() -> Case:
    """K with half a stage."""
    rng = np.random.default_rng(4)
    n, k = 140, 352
    fields = {"y": "fp32", "block_m": 16, "token_stages": 3, "weight_stages": 3}
    spec = ".w = Quant::bf16, .y = Format::fp32, .block_m = 16, .token_stages = 3, .weight_stages = 3"
    matrix = QuantizedMatrix("bf16", n, k, small_integers(rng, (n, k)))
    return Case("bf16", spec, fields, matrix, small_integers(rng, (40, k)), kernel="sm90_stored_gemm")


def swiglu_case() -> Case:
    """Two blocks of rows with a tail, in pairs of CTAs; sums beyond the limit on both sides."""
    rng = np.random.default_rng(5)
    n, k = 84, 288
    data = [rng.integers(-2, 3, (n, k)).astype(ml_dtypes.float8_e4m3fn) for _ in range(2)]
    gate, up = (
        QuantizedMatrix("fp8_row", n, k, d, np.exp2(rng.integers(-5, -2, (n, 1))).astype(np.float32))
        for d in data
    )
    fields = {
        "y": "fp32",
        "epilogue": "swiglu",
        "block_m": 96,
        "cluster": 2,
        "token_stages": 3,
        "weight_stages": 2,
    }
    spec = (".w = Quant::fp8_row, .y = Format::fp32, .epilogue = GemvEpilogue::swiglu, .block_m = 96, .cluster = 2, "
            ".token_stages = 3, .weight_stages = 2, .whole_scales = false")  # fmt: skip
    return Case("swiglu", spec, fields, gate, small_integers(rng, (110, k)), up=up, limit=2.0)


CASES = {
    case.name: case
    for case in (fp8_case(), nvfp4_case(), int4_case(), int8_case(), bf16_case(), swiglu_case())
}

BUGS = {
    "fp8": [
        Bug("weights read before they landed", "        ptx::mbarrier_wait(smem_.weights_full(weights_.stage), weights_.phase);\n", "", 4),
        Bug("tokens read before they landed", "if (new_tile) ptx::mbarrier_wait(smem_.tokens_full(tokens_.stage), tokens_.phase);", "", 4),
        Bug("weights overwritten while they are read", "            ptx::mbarrier_wait(smem.weights_empty(cursor.stage), cursor.phase ^ 1);\n", "", 1),
        Bug("tokens overwritten while they are multiplied", "            ptx::mbarrier_wait(smem.tokens_empty(cursor.stage), cursor.phase ^ 1);\n", "", 1),
        Bug("the peer is not told that tokens were read", "if (lane < S.cluster) ptx::mbarrier_arrive_remote", "if (lane < 1) ptx::mbarrier_arrive_remote", 8),
        Bug("tokens given back while their last part is multiplied", "part == (run == 0 ? 0 : kParts - 1) && new_tile", "part == 0 && new_tile", 1),
        Bug("the sum changes its unit while it is computed", "if (run != 0) ptx::wgmma_wait<kParts - 1>();", "if (run != 0) ptx::wgmma_wait<kParts>();", 4),
        Bug("the first unit of a turn begins while the one before is computed", "if (run == 0 && part == 0) ptx::wgmma_wait<0>();", "", 4),
        Bug("the sum keeps its unit", "sum[part][i] = ptx::mul_rn(sum[part][i], ratio_[i / 2 % 2]);", "sum[part][i] = ptx::mul_rn(sum[part][i], 1.0f);", 8),
        Bug("a part multiplies the tokens of the first", "part * (S.block_m / kParts * kBlockKBytes / 32)", "0", 8),
        Bug("stages beyond the last turn are left out", "for (; stage < stages; ++stage) multiply_stage", "for (; stage + 1 < stages; ++stage) multiply_stage", 8),
        Bug("the last unit is forgotten", "if constexpr (changes_units(S.w)) value = ptx::mul_rn(value, unit_of_sum[r]);", "", 8),
        Bug("the second row keeps its unit", "            unit[1] = unit[0];\n", "", 8),
        Bug("scales of the stage before", "scales_ = next;", "", 8),
        Bug("both CTAs bring the same tokens", "block.token + rank * kShare,", "block.token,", 8),
        Bug("both CTAs have the same rows", "(in_panel / wide * S.cluster + rank_)", "(in_panel / wide * S.cluster)", 8),
        Bug("tokens past the end are written", "if (index < p.m && row < p.n) store_eight", "if (row < p.n) store_eight", 8),
        Bug("results go out before all warps have put theirs", "        meet();\n        const ptx::UInt4 v", "        const ptx::UInt4 v", 4),
        Bug("wgmma.fence before the first run only", "            ptx::wgmma_fence();\n#pragma unroll\n            for (u32 step = 0; step < kSteps",
            "            if (first) ptx::wgmma_fence();\n#pragma unroll\n            for (u32 step = 0; step < kSteps", 8),
        Bug("a CTA leaves while its peer signals it", "    // A peer may still signal this CTA's barriers.\n    if constexpr (S.cluster > 1) ptx::cluster_sync();", "", 1),
    ],
    "nvfp4": [
        Bug("fragment registers 1 and 2 swapped", "fragments[4 * step + row] = pair[0];\n            fragments[4 * step + 2 + row]", "fragments[4 * step + 2 * row] = pair[0];\n            fragments[4 * step + 1 + 2 * row]", 8),
        Bug("one scale for 32 elements", "? plain_scale_of_e4m3(word, block % 4)", "? plain_scale_of_e4m3(word, block % 4 / 2 * 2)", 8),
        Bug("one special scale for 32 elements", "second = ptx::cvt_bf16x2(y, y);", "second = first;", 8),
        Bug("subnormal scales taken for plain ones", "(word - 0x08080808u) | word", "word", 8),
        Bug("special scales are not looked for", "special_ = scales_.some_special();", "special_ = false;", 8),
        Bug("swizzle of W forgotten", "return (row + offset) ^ (c << 4);", "return row + offset + (c << 4);", 8),
        Bug("the other half's nibbles", "step % 2 * 2 + half, factor", "step % 2 * 2 + 1 - half, factor", 8),
        Bug("the run ahead fetched too early", "            decode(run + 1, odd);\n            if (kFetchesAhead && run + 2 < kRuns) fetch(run + 2);",
            "            if (kFetchesAhead && run + 2 < kRuns) fetch(run + 2);\n            decode(run + 1, odd);", 8),
        Bug("scales beyond the row", "            if ((first + i) * kRow.block_k >= k) continue;\n", "", 8),
        Bug("fragments decoded over while they are multiplied", "decode(run + 1, odd);\n            if (kFetchesAhead && run + 2 < kRuns) fetch(run + 2);\n            start(place * kRuns + run + 1, false, sum, odd);",
            "decode(run + 1, even);\n            if (kFetchesAhead && run + 2 < kRuns) fetch(run + 2);\n            start(place * kRuns + run + 1, false, sum, even);", 8),
        Bug("rows past the end are written", "if (place.row + 8 * r >= p.n) continue;\n        each_token<S>(reinterpret_cast<u64>(p.y)", "each_token<S>(reinterpret_cast<u64>(p.y)", 8),
    ],
    "int4": [
        Bug("a unit for every other block", "run % kRunsOfUnit == 0 : row_of", "run % 2 == 0 : row_of", 8),
        Bug("units of the two rows exchanged", "ratio_[row] = tile::quotient(before[row], unit_[row]);", "ratio_[1 - row] = tile::quotient(before[row], unit_[row]);", 8),
        Bug("nibbles in linear order", "chunk(0, first + c) + r * kSecondRow + group * 4", "chunk(0, first + group) + r * kSecondRow + c * 4", 8),
        Bug("the lower nibble's power of two for both", "kInt4Byte = 0x7d007f00u", "kInt4Byte = 0x7f007f00u", 8),
        Bug("what the sums are short of forgotten", "u = ptx::mul_rn(u, tile::kInt4Remainder)", "u = ptx::mul_rn(u, 1.0f)", 8),
        Bug("the byte of another lane", "factors.of(row, step), q * 0x1111u", "factors.of(row, step), (3 - q) * 0x1111u", 8),
        Bug("tokens given back at every unit", "kParts - 1) && new_tile && !first)", "kParts - 1) && !first)", 8),
    ],
    "int8": [
        Bug("weights multiplied before they landed", "            ptx::mbarrier_wait(smem_.weights_full(weights_.stage), weights_.phase);\n", "", 4),
        Bug("a stage given back while it is multiplied", "ptx::wgmma_wait<1>();  // the stage before", "// the stage before", 1),
        Bug("weights are not given back", "        if (ptx::lane_index() == 0) ptx::mbarrier_arrive(smem_.weights_empty(before));\n", "", 8),
        Bug("both warpgroups multiply the same rows", "warp_ / 4 * kMmaRows * kWeightTileBytes", "0", 8),
        Bug("steps of 16 bytes", "template mma4<2, 2>(sum, weights,", "template mma4<1, 1>(sum, weights,", 8),
        Bug("the sum of the block before is kept", "for (u32 i = 0; i < kCount; ++i) sum[i] = 0;", "if (weights_.phase == 0 && weights_.stage == 0)\n            for (u32 i = 0; i < kCount; ++i) sum[i] = 0;", 4),
        Bug("the scale of the next token", "+ ptx::lane_index() % 4 * 2 + b;\n            const float of_token", "+ ptx::lane_index() % 4 * 2 + 1 - b;\n            const float of_token", 8),
        Bug("bytes without sign", ".s32.s8.s8 ", ".s32.u8.u8 ", 8, 28),
    ],
    "bf16": [
        Bug("tokens multiplied before they landed", "            ptx::mbarrier_wait(smem_.tokens_full(tokens_.stage), tokens_.phase);\n", "", 4),
        Bug("a stage given back while it is multiplied", "ptx::wgmma_wait<1>();  // the stage before", "// the stage before", 1),
        Bug("sums by a scale that is not there", "if constexpr (kRow.scale != ScaleType::none && kRow.block_k == 0)\n        load_row", "if constexpr (kRow.block_k == 0)\n        load_row", 8),
        Bug("weights as fp16", "struct Product {\n    using Sum = float;\n    using Mma = ptx::Wgmma<Format::bf16, N>;", "struct Product {\n    using Sum = float;\n    using Mma = ptx::WgmmaF16<N>;", 8),
        Bug("rows of the other warpgroup", "warp_ / 4 * kMmaRows * kWeightTileBytes", "(1 - warp_ / 4) * kMmaRows * kWeightTileBytes", 8),
        Bug("rows past the end are written", "if (place.row + 8 * r >= p.n) continue;\n        each_token<S>(reinterpret_cast<u64>(p.y)", "each_token<S>(reinterpret_cast<u64>(p.y)", 8),
    ],
    "swiglu": [
        Bug("both matrices are the first", "p.w[matrix], full", "p.w[0], full", 8),
        Bug("scales of the first matrix for both", "static_cast<const float*>(p.matrix[matrix].scales)", "static_cast<const float*>(p.matrix[0].scales)", 8),
        Bug("gate and up exchanged", "return first;\n}", "return !first;\n}", 8),
        Bug("sums are read before they are there", "        ptx::named_barrier_sync(1 + pair, 64);\n        if (first)", "        if (first)", 1),
        Bug("sums are left where others are still read", "        ptx::named_barrier_sync(1 + pair, 64);  // what was", "        if (start == 0) ptx::named_barrier_sync(1 + pair, 64);  // what was", 1),
        Bug("rows of the other matrix below the first's", "warp * 16 % matrix_rows_of(S)", "warp * 16", 8),
        Bug("blocks of twice as many rows", "(in_panel / wide * S.cluster + rank_) * matrix_rows_of(S)", "(in_panel / wide * S.cluster + rank_) * block_rows_of(S)", 8),
        Bug("no limit", "swiglu(sum[start + i], ptx::ld_shared_f32(at(i)), p.swiglu_limit)", "swiglu(sum[start + i], ptx::ld_shared_f32(at(i)), 0)", 8),
    ],
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=lambda case: case.name)
def test_clean(case: Case) -> None:
    check_clean(case.launch(), case.text())


@pytest.mark.parametrize(
    ("name", "bug"), [(name, bug) for name, bugs in BUGS.items() for bug in bugs], ids=lambda value: getattr(value, "name", value)
)  # fmt: skip
def test_bug_is_caught(name: str, bug: Bug) -> None:
    case = CASES[name]
    check_caught(case.launch(), case.text(), bug)
