"""Bugs injected into the packer of FP4 weights: results compared bit for bit with the packer of the host."""

from __future__ import annotations

import numpy as np
import pytest
from emulator.injection import Bug, Launch, check_caught, check_clean, flatten
from emulator.test_moe_bugs import packer, source

import deep_gemm

THREADS, SMEM = 256, 8 * 24 + 4 * 24 + 2 * 64 * (8 + 32)
N, K = 70, 800  # the last of 64 rows, and of 256 along K, are not there
EXPERTS, BLOCKS = 2, 4


def record(nvfp4: bool, *block: np.ndarray) -> list[int]:
    """What the kernel says of one block, from the reports of the host's packer."""
    forms = ("nv_exact",) if nvfp4 else ("mx_e4m3", "mx_e5m2")
    reports = [deep_gemm.pack_fp4_weights(*block, form=form).report for form in forms]
    runs = [report["extra_runs"] + 1 for report in reports]
    names = ("rows_beyond_window",) if nvfp4 else ("rows_beyond_e4m3", "rows_beyond_e5m2")
    beyond = [reports[0][name] for name in names]
    none = 0xFFFFFFFF
    return [*[*runs, 1][:2], *[*beyond, 0][:2], reports[0]["widest"], none, none, 0, 0, 0, 0, 0]


def make_launch(form: str) -> tuple[Launch, str]:
    rng = np.random.default_rng(0)
    nvfp4 = form.startswith("nv")
    group, span = (16, (0, 0x7F)) if nvfp4 else (32, (80, 126))
    codes = rng.integers(0, 256, (EXPERTS, N, K // 2), np.uint8)
    codes.reshape(-1, group // 2)[::7] = 0x80
    scales = rng.integers(*span, (EXPERTS, N, K // group)).astype(np.uint8)
    if not nvfp4:  # rows of one window, whose ends are in blobs of different warpgroups
        scales[:, ::4] = 112 + np.arange(K // group) // 4 % 2 * 10
    shared = np.exp2(rng.uniform(-9, 9, (EXPERTS, N))).astype(np.float32)
    weights = deep_gemm.pack_fp4_weights(codes, scales, shared if nvfp4 else None, form=form)
    assert weights.split
    blobs, row_scales, runs = (np.asarray(x) for x in (weights.blobs, weights.row_scales, weights.runs))
    arrays = {
        "codes": codes, "scales": scales, "globals": shared, "runs": runs,
        "blobs": np.full_like(blobs, 0x5A), "row_scales": np.full_like(row_scales, -77),
        "records": np.full((BLOCKS, 12), 0xA5A5A5A5, np.uint32),
    }  # fmt: skip
    parts = (codes, scales, shared) if nvfp4 else (codes, scales)
    records = [
        record(nvfp4, *(part[expert, first : first + 64] for part in parts))
        for expert in range(EXPERTS)
        for first in (0, 64)
    ]
    expected = {"blobs": blobs, "row_scales": row_scales, "records": np.array(records, np.uint32)}
    names = ("codes", "scales", "globals" if nvfp4 else "nothing", "runs", "blobs", "row_scales", "records")
    pack = packer("9Q3I", *names, N, 1, EXPERTS, N, K)
    launch = Launch("deep_gemm::fp4_pack<kSpec>", (BLOCKS,), THREADS, SMEM, arrays, pack, expected)
    return launch, flatten(source("fp4_pack", f"Fp4PackSpec kSpec{{.form = Fp4Form::{form}}}"))


@pytest.fixture(scope="module")
def kernels() -> dict[str, tuple[Launch, str]]:
    return {form: make_launch(form) for form in ("mx_e4m3", "mx_e5m2", "nv_exact")}


BUGS = [
    Bug("keys of two of a row's quarters", "word |= ptx::shfl_bfly_u32(word, 2);", "", 8),
    Bug("keys of one warpgroup", "keys_at(group, row_ + odd())", "keys_at(0, row_ + odd())", 8),
    Bug("ranges read before they are there", "publish();\n        ptx::sync_threads();", "publish();", 1),
    Bug("keys read before they are there", "publish_keys();\n        ptx::sync_threads();", "publish_keys();", 1),
    Bug("a range of one warpgroup", "range_at(group, row_ + odd())", "range_at(0, row_ + odd())", 8),
    Bug("no row is wide", "if (ptx::ballot(wide) != 0) publish_keys();", "", 8),
    Bug("the record is made before its parts", "write(keys);\n        ptx::sync_threads();", "write(keys);", 1),
    Bug("a row's windows are not counted", "warp_max(first > 1 ? first : 1)", "first > 1 ? first : 1", 8),
    Bug("the odd row's window for the even row", "~3u) + i;", "~3u) + 1 - i;", 8),
    Bug("both rows in one place", "blob + odd * kFp4OddRows", "blob", 8),
    Bug("the last blob is left out", "blob < blobs)", "blob + 1 < blobs)", 8),
    Bug("a window stays in the set", "keys.keep_below(bound);", "keys.keep_below(bound + 1);", 8),
    Bug("a window ends at its bound", "keys.lowest_from(bound), high", "bound, high", 8),
    Bug("negative zeros are weights", "(any & kMagnitudes) == 0", "any == 0", 8),
    Bug("signs stay in the nibbles", "inside ? fp4_word(", "inside ? (", 8),
    Bug("rows beyond the last are read", "row_ + odd < p_.n", "row_ + odd < p_.n + 1", 8),
]  # fmt: skip
NV_BUGS = [
    Bug("the second group's scale for the first", "ptx::ld_cached_u8(scales + group)", "ptx::ld_cached_u8(scales)", 8),
    Bug("the third byte is the second", "bytes >> 16);", "bytes >> 8);", 8),
    Bug("the global scale is left out", "mine.low, mine.high, global)", "mine.low, mine.high, 1.0f)", 8),
]  # fmt: skip


@pytest.mark.parametrize("form", ["mx_e4m3", "mx_e5m2", "nv_exact"])
def test_the_kernel_is_clean(kernels: dict[str, tuple[Launch, str]], form: str) -> None:
    check_clean(*kernels[form])


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_bugs_of_mxfp4(kernels: dict[str, tuple[Launch, str]], bug: Bug) -> None:
    check_caught(*kernels["mx_e4m3"], bug)


@pytest.mark.parametrize("bug", NV_BUGS, ids=lambda bug: bug.name)
def test_bugs_of_nvfp4(kernels: dict[str, tuple[Launch, str]], bug: Bug) -> None:
    check_caught(*kernels["nv_exact"], bug)
