"""Injected bugs of the FP4 kernel, by the machinery of injection.py: each must show under enough schedules."""

from __future__ import annotations

import struct
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from emulator.injection import Bug, Launch, check_caught, check_clean, flatten
from reference import fp4

import deep_gemm
from deep_gemm import _C

N = 128
COUNTS = (3, 9, 20)  # tokens of each expert: 8, 16 and 16 + 8 columns
SPEC = deep_gemm.Fp4GemmSpec(groups="gathered", queue=True, block_m=16, k_blocks=1, stages=3, d="fp32")
# One stage an item and one CTA: the warp that finds items runs far ahead of those that serve them.
HASTY = SPEC.replace(k_blocks=2, stages=12, per_token=True)


def make_weights(form: str, rng: np.random.Generator, k: int) -> tuple[deep_gemm.Fp4Weights, np.ndarray]:
    """Packed, and what they multiply."""
    codes = rng.integers(0, 256, (len(COUNTS), N, k // 2), np.uint8)
    if form.startswith("mx"):
        scales = rng.integers(120, 130, (len(COUNTS), N, k // 32)).astype(np.uint8)
        return deep_gemm.pack_fp4_weights(codes, scales), fp4.dequantise(codes, scales)
    scales = rng.integers(0x30, 0x50, (len(COUNTS), N, k // 16)).astype(np.uint8)
    return deep_gemm.pack_fp4_weights(codes, scales, 1.0, form=form), fp4.nvfp4_of(form, codes, scales, 1.0)


def about_one(d: np.ndarray) -> float:
    """Makes the mean of |d| about one, by the power of two returned: Launch compares small numbers absolutely."""
    factor = float(np.exp2(-np.round(np.log2(np.abs(d).mean()))))
    d *= factor
    return factor


def make_launch(spec: deep_gemm.Fp4GemmSpec, k: int, grid: int) -> Launch:
    """Three experts, tokens gathered and results scattered, in reverse."""
    rng = np.random.default_rng(0)
    slots, fields = sum(COUNTS), spec.to_dict()
    weights, matrices = make_weights(str(fields["form"]), rng, k)
    bf16 = fields["a"] == "bf16"
    a = rng.standard_normal((slots, k)).astype(ml_dtypes.bfloat16 if bf16 else ml_dtypes.float8_e4m3fn)
    block = 32 if fields["by_32"] else 128
    a_scales = np.exp2(rng.uniform(-2, 2, (slots, k // block))).astype(np.float32)
    if bf16:
        a_scales[...] = 1  # bf16 tokens have none
    if fields["per_token"]:
        a_scales[...] = a_scales[:, :1]
    entries = np.zeros((len(COUNTS), 4), np.int32)
    entries[:, 0] = range(len(COUNTS))
    entries[:, 1] = np.cumsum([0, *COUNTS[:-1]])
    entries[:, 2] = COUNTS
    a_rows = np.arange(slots, dtype=np.int32)[::-1].copy()
    d_rows = rng.permutation(slots).astype(np.int32)
    dense = a.astype(np.float64) * np.repeat(a_scales.astype(np.float64), block, 1)
    expert = np.repeat(np.arange(len(COUNTS)), COUNTS)
    d = np.empty((slots, N))
    d[d_rows] = np.stack([dense[a_rows[i]] @ matrices[expert[i]].T for i in range(slots)])
    factor = about_one(d)
    a, a_scales = (a * a.dtype.type(factor), a_scales) if bf16 else (a, a_scales * np.float32(factor))
    if fields["token_terms"] == 2:
        high, low, scale = fp4.two_terms(dense)
        a = np.stack([high, low], 1).astype(ml_dtypes.float8_e4m3fn)
        a_scales = (scale * factor).astype(np.float32)
    arrays: dict[str, Any] = {
        "weights": np.asarray(weights.blobs),
        "row_scales": np.asarray(weights.row_scales),
        "a": a.view(np.uint8),
        "scale_a": a_scales,
        "entries": entries,
        "list": np.array([len(COUNTS), 0, 0, 0], np.int32),
        "a_rows": a_rows,
        "d_rows": d_rows,
        "d": np.full((slots, N), np.nan, np.float32),
    }

    def pack(device: Any, at: dict[str, int]) -> bytes:
        pointers = [
            at["weights"],
            at["row_scales"],
            0,
            at["a"],
            at["scale_a"],
            at["entries"],
            at["list"],
            at["a_rows"],
            at["d_rows"],
            0,
            at["d"],
        ]
        strides = [0, 0, 0]
        return struct.pack(
            "<14Q10I",
            *pointers,
            *strides,
            a[0].nbytes,
            a_scales.shape[1],
            1,
            N,
            slots,
            N,
            k,
            len(COUNTS),
            slots,
            slots,
        )

    return Launch(
        _C.fp4_kernel_source(spec).entry, (grid,), spec.threads, spec.smem_bytes, arrays, pack,
        {"d": d, "list": arrays["list"]}, tolerance=0.02,
    )  # fmt: skip


WAIT_EMPTY = "ptx::mbarrier_wait(smem.empty(cursor.stage), cursor.phase ^ 1);"
LOADER_WAIT = "ptx::mbarrier_wait(smem_.empty(cursor_.stage), cursor_.phase ^ 1);"
BUGS = [
    Bug("weights loaded before the stage is free", WAIT_EMPTY, ""),
    Bug("tokens loaded before the stage is free", LOADER_WAIT, ""),
    Bug("decoding does not wait for the stage", "ptx::mbarrier_wait(smem_.full(cursor_.stage), cursor_.phase);\n        ptx::fence_proxy_async();",
        "ptx::fence_proxy_async();", 4),
    Bug("no proxy fence after cp.async", "ptx::mbarrier_wait(smem_.full(cursor_.stage), cursor_.phase);\n        ptx::fence_proxy_async();",
        "ptx::mbarrier_wait(smem_.full(cursor_.stage), cursor_.phase);", 8),
    Bug("promotion overtakes wgmma", "ptx::wgmma_wait<0>();", "", 8),
    Bug("tokens do not count as arrivals", "ptx::mbarrier_init(smem.full(stage), 1 + 32 * S.load_warps);",
        "ptx::mbarrier_init(smem.full(stage), 33 - 32 * S.load_warps);", 8),
    Bug("half of a blob is expected", "S.warpgroups * kCopy);", "S.warpgroups * kCopy / 2);"),
    Bug("an item is read before it is there", "ptx::mbarrier_wait(smem.item_full(slot), phase);", ""),
    Bug("the counters stay", "ptx::st_global_u32(&params_.list->next_unit, 0);", "", 8),
    Bug("words in plain order", "return word % (8 * element_bytes);", "return word / (4 * element_bytes);", 8),
    Bug("scales in plain order", "return token % 8 / 2 * (columns / 4) + token / 8 * 2 + token % 2;", "return token;", 8),
    Bug("no swizzle", "(chunk ^ column) * 16", "chunk * 16", 8),
    Bug("signs of the second half forgotten", "((word << 4) & kSigns)", "0", 8),
    Bug("odd rows take the even rows' exponent", "odd_offset = offsets >> 4;", "odd_offset = offsets & 0xf;", 8),
]  # fmt: skip

SERVE = "dispatch<fp4_columns_of(S, 1)>(item);\n            kernel::release_item<S>(smem_, slot_.stage);"
HASTY_BUGS = [
    Bug("an item is overwritten before all have read it", "ptx::mbarrier_wait(smem.item_empty(slot), phase ^ 1);", ""),
    Bug("an item's tables are overwritten before they are read", SERVE,
        "kernel::release_item<S>(smem_, slot_.stage);\n            dispatch<fp4_columns_of(S, 1)>(item);"),
    Bug("no tables", "bring_tables(item, number);", "", 8),
    Bug("tables of the next item's slot", "bring_tables(item, number);", "bring_tables(item, slot.stage);", 8),
    Bug("results go to their slots", "if (this->params_.d_rows != nullptr) return", "if (false) return", 8),
    Bug("a token's scale is left out", "? ptx::mul_rn(scaled, token_scale) : scaled;", "? scaled : scaled;", 8),
]  # fmt: skip


BY_32_BUGS = [
    Bug("words of other groups are left as they were", "kernel::clear_tokens<S>(smem);", ""),
    Bug("half of them are", "chunk < kChunks;", "chunk < kChunks / 2;"),
    Bug("all words are of the first group", "index / (32 / fp4_groups_of(S))", "0", 8),
    Bug("all groups take the first one's scales", "load_scales<N>(stage, kb, group, scales);",
        "load_scales<N>(stage, kb, 0, scales);", 8),
    Bug("scales of a longer block", "blob * kGroups + group", "blob", 8),
    Bug("sums of other groups", "(i / 4 * kGroups + group) * 4", "(group * (N / 8) + i / 4) * 4", 8),
    Bug("a stage goes back before its scales are read", "if constexpr (kEarly && kGroups == 1) release(stage, kb);",
        "release(stage, kb);"),
]  # fmt: skip


@pytest.fixture(scope="module")
def launch() -> Launch:
    return make_launch(SPEC, 768, 4)


@pytest.fixture(scope="module")
def text() -> str:
    return flatten(_C.fp4_kernel_source(SPEC).code)


def test_the_kernel_is_clean(launch: Launch, text: str) -> None:
    check_clean(launch, text)


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_bugs(launch: Launch, text: str, bug: Bug) -> None:
    check_caught(launch, text, bug)


@pytest.fixture(scope="module")
def hasty() -> tuple[Launch, str]:
    return make_launch(HASTY, 256, 1), flatten(_C.fp4_kernel_source(HASTY).code)


def test_the_hasty_kernel_is_clean(hasty: tuple[Launch, str]) -> None:
    check_clean(*hasty)


@pytest.mark.parametrize("bug", HASTY_BUGS, ids=lambda bug: bug.name)
def test_bugs_of_items_and_their_tables(hasty: tuple[Launch, str], bug: Bug) -> None:
    check_caught(*hasty, bug)


@pytest.fixture(scope="module")
def by_32() -> tuple[Launch, str]:
    spec = SPEC.replace(by_32=True, queue=False)
    return make_launch(spec, 768, 4), flatten(_C.fp4_kernel_source(spec).code)


def test_the_kernel_of_scales_by_32_is_clean(by_32: tuple[Launch, str]) -> None:
    check_clean(*by_32)


@pytest.mark.parametrize("bug", BY_32_BUGS, ids=lambda bug: bug.name)
def test_bugs_of_scales_by_32(by_32: tuple[Launch, str], bug: Bug) -> None:
    check_caught(*by_32, bug)
