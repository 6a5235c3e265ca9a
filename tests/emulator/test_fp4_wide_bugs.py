"""Injected bugs of the FP4 kernel for many tokens and of the one that arranges its activations, by the machinery of
injection.py.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from emulator.gemm_launch import matrix_map
from emulator.injection import Array, Bug, Launch, check_caught, check_clean, flatten
from emulator.test_fp4_bugs import about_one, make_weights

import deep_gemm
from deep_gemm import _C

K, BLOBS = 640, 6
COUNTS = (3, 40, 9)  # tokens of each expert, from slot GAP on: 16, 32 + 16 and 16 columns
GAP, SLOTS, STRIDE = 2, 60, 64
UNWRITTEN = 0x77
SPEC = deep_gemm.Fp4GemmSpec(
    groups="gathered", wide=True, block_m=32, warpgroups=2, k_blocks=1, stages=3, cluster=2, d="fp32"
)


@dataclass
class Tokens:
    """Slots read rows of A in reverse; K has half a blob less than whole pairs of them."""

    a: Array
    scales: Array
    entries: Array
    a_rows: Array
    arranged: Array  # as spec/arrange.h has it, UNWRITTEN where nothing is
    arranged_scales: Array

    @staticmethod
    def make(bf16: bool = False) -> Tokens:
        rng = np.random.default_rng(0)
        a = rng.standard_normal((SLOTS, K)).astype(ml_dtypes.bfloat16 if bf16 else ml_dtypes.float8_e4m3fn)
        scales = np.exp2(rng.uniform(-2, 2, (SLOTS, K // 128))).astype(np.float32)
        entries = np.zeros((len(COUNTS), 4), np.int32)
        entries[:, 0] = range(len(COUNTS))
        entries[:, 1] = GAP + np.cumsum([0, *COUNTS[:-1]])
        entries[:, 2] = COUNTS
        a_rows = np.arange(SLOTS, dtype=np.int32)[::-1].copy()
        used = slice(GAP, GAP + sum(COUNTS))
        words = np.zeros((SLOTS, BLOBS, 4, 8 * a.itemsize), np.uint32)
        words[:, : K // 128] = a[a_rows].view(np.uint32).reshape(SLOTS, K // 128, 4, 8 * a.itemsize)
        arranged = np.full((SLOTS, BLOBS * 128 * a.itemsize), UNWRITTEN, np.uint8)
        arranged[used] = words.transpose(0, 1, 3, 2).copy().view(np.uint8).reshape(SLOTS, -1)[used]
        arranged_scales = np.full((BLOBS, STRIDE), UNWRITTEN, np.float32)
        if bf16:
            return Tokens(a, np.ones_like(scales), entries, a_rows, arranged, arranged_scales)
        arranged_scales[:, used] = 0
        arranged_scales[: K // 128, used] = scales[a_rows].T[:, used]
        return Tokens(a, scales, entries, a_rows, arranged, arranged_scales)


def head() -> Array:
    return np.array([len(COUNTS), 0, 0, 0], np.int32)


def product(spec: deep_gemm.Fp4GemmSpec) -> Launch:
    fields = spec.to_dict()
    bf16, form = fields["a"] == "bf16", str(fields["form"])
    tokens = Tokens.make(bf16)
    if fields["per_token"]:
        tokens.scales[:] = tokens.scales[:, :1]
        tokens.arranged_scales[1:] = UNWRITTEN  # the first row is all that there is
    weights, matrices = make_weights(form, np.random.default_rng(1), K)
    dense = tokens.a.astype(np.float64) * np.repeat(tokens.scales.astype(np.float64), 128, 1)
    expert, used = np.repeat(np.arange(len(COUNTS)), COUNTS), range(GAP, GAP + sum(COUNTS))
    d = np.full((SLOTS, matrices.shape[1]), UNWRITTEN, np.float64)
    for slot, e in zip(used, expert, strict=True):
        d[slot] = dense[tokens.a_rows[slot]] @ matrices[e].T
    factor = about_one(d[GAP : GAP + sum(COUNTS)])
    tokens.arranged_scales[tokens.arranged_scales != UNWRITTEN] *= factor
    row_scales = np.asarray(weights.row_scales) * np.float32(factor if bf16 else 1)
    arrays = {
        "weights": np.asarray(weights.blobs),
        "row_scales": row_scales,
        "entries": tokens.entries,
        "list": head(),
        "tokens": tokens.arranged,
        "scales": tokens.arranged_scales,
        "d": np.full(d.shape, UNWRITTEN, np.float32),
    }
    n = d.shape[1]

    def pack(device: Any, at: dict[str, int]) -> bytes:
        pointers = [at["weights"], at["row_scales"], 0, 0, 0, at["entries"], at["list"], 0, 0, 0, at["d"]]
        gemm = struct.pack(
            "<14Q10I", *pointers, 0, 0, 0, K, K // 128, 1, n, SLOTS, n, K, len(COUNTS), SLOTS, SLOTS
        )
        tensor_map = matrix_map(
            device, at["tokens"], (1, SLOTS, BLOBS * 128), str(fields["a"]), tokens.a.itemsize, 16, 128
        )
        whole = gemm + bytes(-len(gemm) % 64) + tensor_map + struct.pack("<QI", at["scales"], STRIDE)
        return whole + bytes(-len(whole) % 64)

    return Launch(
        _C.fp4_kernel_source(spec).entry, (4,), spec.threads, spec.smem_bytes, arrays, pack, {"d": d},
        tolerance=0.02, cluster=2,
    )  # fmt: skip


def arrangement(bf16: bool = False) -> Launch:
    tokens = Tokens.make(bf16)
    arrays = {
        "a": tokens.a.view(np.uint8),
        "scale_a": tokens.scales,
        "entries": tokens.entries,
        "list": head(),
        "a_rows": tokens.a_rows,
        "out": np.full_like(tokens.arranged, UNWRITTEN),
        "scales": np.full_like(tokens.arranged_scales, UNWRITTEN),
    }

    def pack(device: Any, at: dict[str, int]) -> bytes:
        del device
        stride, scale_rows = K * tokens.a.itemsize, 0 if bf16 else BLOBS
        numbers = [0, 0, stride, K // 128, 1, STRIDE, scale_rows, SLOTS, K, BLOBS * 128, len(COUNTS), SLOTS]
        return struct.pack("<9Q10I", *at.values(), *numbers)

    expected = {"out": tokens.arranged, "scales": tokens.arranged_scales}
    return Launch("deep_gemm::arrange<kSpec>", (4 if bf16 else 2,), 256, 0, arrays, pack, expected)


WAIT_EMPTY = "ptx::mbarrier_wait(smem.empty(stage), cursor.phase ^ 1);\n                if (!ptx::elect_one()) continue;"
ELECT = "if (!ptx::elect_one()) continue;"
TOKENS = "\n                ptx::mbarrier_arrive_expect_tx(smem.full(stage), columns"
WEIGHTS = "\n                const ptx::SharedAddress full = smem.full(stage);"
SCALES = "ptx::mbarrier_wait(smem.empty(cursor.stage), cursor.phase ^ 1);"
BUGS = [
    Bug("tokens before the stage is free", WAIT_EMPTY + TOKENS, ELECT + TOKENS),
    Bug("weights before the stage is free", WAIT_EMPTY + WEIGHTS, ELECT + WEIGHTS),
    Bug("every lane brings tokens", ELECT + TOKENS, TOKENS, 8),
    Bug("scales before the stage is free", f"{SCALES}\n#pragma unroll\n                for (u32 turn",
        "\n#pragma unroll\n                for (u32 turn"),
    Bug("multiplying does not wait for the stage", "ptx::mbarrier_wait(smem_.full(cursor_.stage), cursor_.phase);", "", 4),
    Bug("promotion overtakes wgmma", "ptx::wgmma_wait<0>();\n        promote<count", "promote<count", 4),
    Bug("scales do not count as arrivals", "scales_in_loop(S) ? 2 + ptx::kWarpThreads : 2", "2", 4),
    Bug("a stage waits for its own CTA alone", "4 * S.warpgroups * S.cluster);", "4 * S.warpgroups);"),
    Bug("a stage goes back to one CTA alone", "if (lane < S.cluster) ptx::mbarrier_arrive_remote", "if (lane < 1) ptx::mbarrier_arrive_remote", 8),
    Bug("tokens are sent to one CTA alone", "kAllCtas = (1u << S.cluster) - 1;", "kAllCtas = 1;", 8),
    Bug("columns beyond the item are stored", "bool zero = token >= item.count;", "bool zero = false;", 8),
]  # fmt: skip

PER_TOKEN_BUGS = [
    Bug("scales of the first slots", "static_cast<u64>(group) * p.scale_stride + item.first;", "static_cast<u64>(group) * p.scale_stride;", 8),
    Bug("an item is told before its tables are whole", "ptx::sync_warp();\n        }\n        if (ptx::lane_index() == 0) publish_item",
        "}\n        if (ptx::lane_index() == 0) publish_item", 4),
    Bug("a stage waits for scales", "scales_in_loop(S) ? 2 + ptx::kWarpThreads : 2", "2 + ptx::kWarpThreads", 8),
    Bug("scales are left out", "? ptx::mul_rn(scaled, token_scale) : scaled;", "? scaled : scaled;", 8),
]  # fmt: skip

DONE_BEFORE = "ptx::wgmma_wait<1>();  // the blob before is done: `next` was its fragments\n"
FAST_BUGS = [
    Bug("fragments change under the tensor core", DONE_BEFORE, "", 4),
    Bug("the last stage is given back while it multiplies", "ptx::wgmma_wait<0>();\n        ptx::wgmma_keep(sum);\n        release", "release", 4),
    Bug("each blob starts a sum of its own", "ptx::wgmma_step(tokens, step), 1);", "ptx::wgmma_step(tokens, step), step > 0);", 8),
    Bug("the next blob is not waited for", "wait_full();\n        const tile::BlobCodes", "const tile::BlobCodes", 4),
    Bug("the wrong stage is given back", "release((stage == 0 ? S.stages : stage) - 1);", "release(stage);", 4),
    Bug("a step of the next blob is not decoded", "tile::decode_step(codes, step, next);", "tile::decode_step(codes, step / 2, next);", 8),
]  # fmt: skip
ROLLING_BUGS = [
    Bug("the first chunk is promoted while it multiplies", "ptx::wgmma_wait<1>();\n        promote_chunk<N, 0>", "promote_chunk<N, 0>", 4),
    Bug("the last chunk is promoted while it multiplies", "ptx::wgmma_wait<same_pair>();", "", 4),
    Bug("the next blob has the fragments of this one", "(cursor_.stage, even, next)", "(cursor_.stage, even, fragments)", 8),
    Bug("the next blob has the tokens of this one", "(cursor_.stage, even, next)", "(stage, even, next)", 8),
    Bug("all chunks multiply the first tokens", "first * kFp4BlockK", "0", 8),
    Bug("all chunks take the first one's scales", "(column + thread_ % 4 * 2) * 4", "(thread_ % 4 * 2) * 4", 8),
    Bug("the next blob is not waited for", "wait_full();\n            decode(next);\n        });", "decode(next);\n        });", 4),
]  # fmt: skip
PARTS_BUGS = [
    Bug("both parts are the first", "decode<1>(second);", "decode(second);", 8),
    Bug("the second part of the second half is left out", "start<N, 1>(stage, 1, partial, second);", "", 8),
    Bug("the second part forgets the first", "step > 0 || part > 0;", "step > 0;", 8),
    Bug("halves take the part that is left", "start<N>(stage, 1, partial, first);", "start<N>(stage, 1, partial, second);", 8),
]  # fmt: skip
BF16_BUGS = [
    Bug("both tiles are the first", "kb * kFp4BlockK + tile * kTileK;", "kb * kFp4BlockK;", 8),
    Bug("tiles lie side by side", "(tile * kColumns + box * kFp4BoxRows) * kFp4BlockK", "(tile + box * 2) * kFp4BoxRows * kFp4BlockK", 8),
    Bug("both parts multiply the first tile", "part * (S.block_m * kFp4BlockK)", "0", 8),
    Bug("half of the tokens' bytes are expected", "columns * kFp4BlockK * bytes_of(S.a)", "columns * kFp4BlockK"),
]  # fmt: skip
BF16_ARRANGE_BUGS = [
    Bug("chunks of eight", "kChunks = 8 * kElementBytes;", "kChunks = 8;", 8),
    Bug("half of K is there", "p_.k * kElementBytes > at ? p_.k * kElementBytes - at : 0", "p_.k > at ? p_.k - at : 0", 8),
    Bug("blocks of K are those of bytes", "kBlobs = kArrangeBytesK / (kFp4BlockK * bytes_of(S.a));", "kBlobs = kArrangeBytesK / kFp4BlockK;", 8),
    Bug("rows of bytes", "p_.padded_k * kElementBytes;", "p_.padded_k;", 8),
]  # fmt: skip

ARRANGE_BUGS = [
    Bug("words in plain order", "arranged_word(0, q, kElementBytes) * 4;", "q * 4;", 8),
    Bug("K is not padded with zeros", "further < present ?", "used ?", 8),
    Bug("the list's rows are forgotten", "ptx::ld_global_s32(p_.a_rows + source_)", "source_", 8),
    Bug("scales of other rows", "static_cast<u64>(source_) * p_.scale_a_stride_m", "static_cast<u64>(first_ + lane_) * p_.scale_a_stride_m", 8),
    Bug("slots of no entry are written", "return used & rows_listed<S>(p, first);", "return used;", 8),
    Bug("an entry starts with its block", "~below(start > first ? start - first : 0)", "~below(0)", 8),
    Bug("an entry has one row more", "below(end - first)", "below(end - first + 1)", 8),
]  # fmt: skip


@pytest.fixture(scope="module")
def wide() -> tuple[Launch, str]:
    return product(SPEC), flatten(_C.fp4_kernel_source(SPEC).code)


@pytest.fixture(scope="module")
def per_token() -> tuple[Launch, str]:
    spec = SPEC.replace(per_token=True)
    return product(spec), flatten(_C.fp4_kernel_source(spec).code)


def arrange_code(fields: str) -> str:
    spec = f"constexpr ArrangeSpec kSpec{{.groups = GroupMode::gathered{fields}}};\n"
    return flatten(f"#include <deep_gemm/kernel/arrange.cuh>\nusing namespace deep_gemm;\n{spec}")


@pytest.fixture(scope="module")
def fast() -> tuple[Launch, str]:
    spec = SPEC.replace(per_token=True, fragment_sets=2, fast_accumulation=True)
    return product(spec), flatten(_C.fp4_kernel_source(spec).code)


@pytest.fixture(scope="module")
def rolling() -> tuple[Launch, str]:
    spec = SPEC.replace(fragment_sets=2)
    return product(spec), flatten(_C.fp4_kernel_source(spec).code)


@pytest.fixture(scope="module")
def arrange() -> tuple[Launch, str]:
    return arrangement(), arrange_code("")


@pytest.fixture(scope="module")
def arrange_bf16() -> tuple[Launch, str]:
    return arrangement(bf16=True), arrange_code(", .a = Format::bf16")


@pytest.fixture(scope="module")
def two_terms() -> tuple[Launch, str]:
    spec = SPEC.replace(form="nv_exact", block_m=80)
    return product(spec), flatten(_C.fp4_kernel_source(spec).code)


@pytest.fixture(scope="module")
def bf16() -> tuple[Launch, str]:
    spec = SPEC.replace(a="bf16", block_m=80)
    return product(spec), flatten(_C.fp4_kernel_source(spec).code)


def test_the_wide_kernel_is_clean(wide: tuple[Launch, str]) -> None:
    check_clean(*wide)


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_wide_bugs(wide: tuple[Launch, str], bug: Bug) -> None:
    check_caught(*wide, bug)


def test_the_kernel_of_one_scale_for_each_token_is_clean(per_token: tuple[Launch, str]) -> None:
    check_clean(*per_token)


@pytest.mark.parametrize("bug", PER_TOKEN_BUGS, ids=lambda bug: bug.name)
def test_per_token_bugs(per_token: tuple[Launch, str], bug: Bug) -> None:
    check_caught(*per_token, bug)


def test_the_kernel_of_fast_accumulation_is_clean(fast: tuple[Launch, str]) -> None:
    check_clean(*fast)


@pytest.mark.parametrize("bug", FAST_BUGS, ids=lambda bug: bug.name)
def test_fast_bugs(fast: tuple[Launch, str], bug: Bug) -> None:
    check_caught(*fast, bug)


def test_rolling_chunks_are_clean(rolling: tuple[Launch, str]) -> None:
    check_clean(*rolling)


@pytest.mark.parametrize("bug", ROLLING_BUGS, ids=lambda bug: bug.name)
def test_bugs_of_rolling_chunks(rolling: tuple[Launch, str], bug: Bug) -> None:
    check_caught(*rolling, bug)


def test_arrange_is_clean(arrange: tuple[Launch, str]) -> None:
    check_clean(*arrange)


@pytest.mark.parametrize("bug", ARRANGE_BUGS, ids=lambda bug: bug.name)
def test_arrange_bugs(arrange: tuple[Launch, str], bug: Bug) -> None:
    check_caught(*arrange, bug)


def test_two_terms_are_clean(two_terms: tuple[Launch, str]) -> None:
    check_clean(*two_terms)


@pytest.mark.parametrize("bug", PARTS_BUGS, ids=lambda bug: bug.name)
def test_bugs_of_parts(two_terms: tuple[Launch, str], bug: Bug) -> None:
    check_caught(*two_terms, bug)


def test_bf16_tokens_are_clean(bf16: tuple[Launch, str], arrange_bf16: tuple[Launch, str]) -> None:
    check_clean(*bf16)
    check_clean(*arrange_bf16)


@pytest.mark.parametrize("bug", BF16_BUGS, ids=lambda bug: bug.name)
def test_bugs_of_bf16_tokens(bf16: tuple[Launch, str], bug: Bug) -> None:
    check_caught(*bf16, bug)


@pytest.mark.parametrize("bug", BF16_ARRANGE_BUGS, ids=lambda bug: bug.name)
def test_bugs_of_arranging_bf16_tokens(arrange_bf16: tuple[Launch, str], bug: Bug) -> None:
    check_caught(*arrange_bf16, bug)
