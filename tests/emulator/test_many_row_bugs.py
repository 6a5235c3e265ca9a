"""Bugs injected into kernels that serve many rows (and few) of a model must be caught: streams in bf16, projections by
way of 16-bit operands, the choice by way of peaks."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from emulator.gemm_launch import matrix_map
from emulator.op_bugs import BF16, Bug, bug_tests, bugs, check_caught, pack, text
from kernel.test_norm import fp4_copies
from ops_cases import Array, poisoned, real, run
from reference import deepseek_v4 as ref

from deep_gemm import _C

NO_MATRIX = [None, None, (0,), (0,), (0,), (0,), None, None, (0,), (0,), 0, 0]
NO_VIEW = [None, (0,), (0,)]
D = 256


@lru_cache
def streams() -> dict[str, Array]:
    """17 tokens: of the second round of sixteen one is there."""
    rng = np.random.default_rng(12)
    rows = 17
    x, add = real(rng, (rows, 4, D), "bf16"), real(rng, (rows, D), "bf16")
    fn, base = real(rng, (24, 4 * D), scale=0.05), real(rng, (24,))
    post, comb = real(rng, (rows, 4)), real(rng, (rows, 4, 4))
    wide = [v.astype(np.float64) for v in (x, add, post, comb)]
    taken = wide[2][:, :, None] * wide[1][:, None] + np.einsum("tab,tad->tbd", wide[3], wide[0])
    after = taken.astype(BF16).astype(np.float64).reshape(rows, 4, 2, 128)
    records = np.zeros((rows, 2, 25))
    records[:, :, :24] = np.einsum("tbsc,mbsc->tsm", after, fn.reshape(24, 4, 2, 128).astype(np.float64))
    records[:, :, 24] = (after**2).sum((1, 3))
    return {"x": x, "add": add, "fn": fn, "base": base, "scale": np.array([0.7, 1.3, 1.9], np.float32),
            "weight": real(rng, (D,)), "post": post, "comb": comb, "after": after.reshape(rows, 4, D).astype(BF16),
            "records": records}  # fmt: skip


def hc_params(rows: int, d: int, copies: bool = False, **names: str | None) -> list[Any]:
    def at(name: str) -> str | None:
        return names.get(name, name)

    add = [at("add"), (d,), (0,)] if at("add") else NO_VIEW
    y = ["y", (d,), (0,)] if at("y") else NO_VIEW
    narrow = ["codes", "scales", "global_scale"] if copies else [None] * 3
    return [["x", (4 * d,), (d,)], at("fn"), at("base"), at("scale"), at("weight"), y, add, *narrow,
            "post", "comb", rows, d, 20, 1, 1e-6, 1e-6]  # fmt: skip


def params_of(rows: int, **names: str | None) -> Any:
    return pack(hc_params(rows, D, **names), "records", 2, 1)


def hc_sums() -> tuple[Any, str]:
    s = streams()
    arrays = {name: s[name] for name in ("x", "add", "fn", "post", "comb")}
    # What a record has beyond its sums is never written.
    arrays["records"] = np.full((17, 2, 32), 7, np.float32)
    records = arrays["records"].astype(np.float64)
    records[:, :, :25] = s["records"]
    params = params_of(17, y=None, base=None, scale=None, weight=None)
    launch = bugs.Launch("deep_gemm::hc_sums<kSpec>", (2,), 256, 29184, arrays, params,
                         {"x": s["after"], "records": records}, 1e-4)  # fmt: skip
    return launch, text("hc_sums", "HcSumsSpec", ".add = Format::bf16")


def hc_apply() -> tuple[Any, str]:
    s, rows = streams(), 2
    x = s["after"][:rows].copy()
    records = np.full((rows, 2, 32), np.nan, np.float32)
    records[:, :, :25] = s["records"][:rows]
    parts = [ref.hyper_connection(x[t], s["fn"], s["base"], s["scale"], 20, 1e-6, 1e-6) for t in range(rows)]
    y = [ref.rms_norm(parts[t][0] @ x[t].astype(np.float64), s["weight"], 1e-6) for t in range(rows)]
    expected = {
        "y": np.stack(y),
        "post": np.stack([p[1] for p in parts]),
        "comb": np.stack([p[2] for p in parts]),
    }
    arrays = {"x": x, "records": records, **{name: s[name] for name in ("base", "scale", "weight")}}
    arrays |= {name: np.full(value.shape, np.nan, np.float32) for name, value in expected.items()}
    params = params_of(rows, fn=None, add=None)
    launch = bugs.Launch("deep_gemm::hc_apply<kSpec>", (rows,), 544, 2176, arrays, params, expected, 1e-4)
    return launch, text("hc_apply", "HcApplySpec", ".y = Format::fp32, .weight = Format::fp32")


def hc_few() -> tuple[Any, str]:
    """Three rows, whose bits are those of nine in two launches; eight of the CTAs have a second slice."""
    rng = np.random.default_rng(13)
    rows, d = 3, 3072
    given = {"x": real(rng, (9, 4, d), "bf16"), "post": real(rng, (9, 4)), "comb": real(rng, (9, 4, 4))}
    add = real(rng, (9, d), "bf16")
    constants = {"fn": real(rng, (24, 4 * d), scale=0.02), "base": real(rng, (24,)),
                 "scale": np.array([0.7, 1.3, 1.9], np.float32), "weight": real(rng, (d,))}  # fmt: skip
    made = given | {"y": poisoned((9, d), "bf16")} | fp4_copies("nvfp4", 9, d)
    many = run(_C.Device("emulator:sm_90a"), "hc_pre", made, add=add, recipe="nvfp4", **constants)
    arrays = {name: value[:rows].copy() for name, value in (made | {"add": add}).items()} | constants
    expected = {name: value[:rows] for name, value in many.items()}
    launch = bugs.Launch("deep_gemm::hc_few<kSpec>", (16,), 512, 132248, arrays, pack(*hc_params(rows, d, True)),
                         expected, cluster=16)  # fmt: skip
    fields = ".y = Format::bf16, .weight = Format::fp32, .add = Format::bf16, .narrow = true, .recipe = Recipe::nvfp4"
    return launch, text("hc_few", "HcFewSpec", fields)


def in_order(values: Array, narrow: bool) -> Array:
    """Columns of 64 as a step of sixteen after the other: lane q of four has four of its 16 (or of both its 8)."""
    span = 16 if narrow else 8
    loads = values.reshape(
        len(values), -1, 16 // span, 4, span // 4, 4
    )  # .., load, lane, step of the load, column
    return np.ascontiguousarray(loads.transpose(0, 1, 2, 4, 3, 5).reshape(values.shape))


def project_operands() -> tuple[Any, str]:
    """Two groups of x, 130 and 20 rows of bf16; FP8 weights of 37 rows."""
    rng = np.random.default_rng(25)
    k, rows, n = 128, 130, 37
    x, w = real(rng, (rows, 2 * k), "bf16"), real(rng, (n, k), "fp8_e4m3")
    parts = [x[:, :k], x[:, k:], w.astype(np.float32).astype(BF16)]
    whole = [np.concatenate([v, np.repeat(v[-1:], -len(v) % 128, 0)]) for v in parts]
    expected = np.concatenate([in_order(v, True) for v in whole])
    arrays = {"x": x, "w": w, "to": np.full(expected.shape, np.nan, np.float32).astype(BF16)}
    operands = [["x", (2 * k,), rows, 2], [("x", k * 2), (2 * k,), rows, 4], ["w", (k,), n, 5]]
    params = pack("to", k, 2, *operands, *[[None, (0,), 0, 0]] * 29)
    blocks = len(expected) * (k // 64) // 256
    launch = bugs.Launch(
        "deep_gemm::project_operands<kSpec>", (blocks,), 256, 0, arrays, params, {"to": expected}, 0
    )
    return launch, text("project_operands", "ProjectOperandsSpec", ".w = Format::fp8_e4m3")


def project_wide() -> tuple[Any, str]:
    rng = np.random.default_rng(24)
    rows, n, k = 130, 37, 1152
    x, w = real(rng, (rows, k), "bf16"), real(rng, (n, k), "bf16", k**-0.5)
    operands = np.zeros((256 + 128, k), BF16)
    operands[:rows], operands[256 : 256 + n] = x, w
    part = [None, None, (0,), (0,), (0,), (0,), "y", None, (n,), (0,), n, 1]
    rest = pack(None, None, (k,), (0,), rows, k, 1, 2, part, *[NO_MATRIX] * 15)

    def params(device: Any, at: dict[str, int]) -> bytes:
        out = (
            matrix_map(device, at["operands"], (1, *operands.shape), "bf16", 2, 128, 128)
            + rest(device, at)
            + (1).to_bytes(4, "little")
        )
        return out + bytes(-len(out) % 64)

    arrays = {"operands": operands, "y": np.full((rows, n), np.nan, np.float32)}
    expected = {"y": x.astype(np.float64) @ w.astype(np.float64).T}
    launch = bugs.Launch("deep_gemm::project_wide<kSpec>", (1,), 384, 196704, arrays, params, expected, 1e-4)
    return launch, text("project_wide", "ProjectMmaSpec", ".wide = true")


def top_k_peaks() -> tuple[Any, str]:
    """Scores on both sides of a bound; the largest are in few warps, and one is the last."""
    rng = np.random.default_rng(9)
    n, k = 16400, 64
    scores = real(rng, (1, n))
    scores[0, 5000:5040] += 9
    scores[0, -1] = 30
    orders = scores.view(np.uint32)
    orders = np.where(orders >> 31 != 0, ~orders, orders | 0x80000000)
    arrays = {"scores": scores, "peaks": orders.reshape(-1, 16).max(1).astype(np.uint32),
              "positions": np.array([n - 1], np.int32), "picks": np.full((1, k), -7, np.int32)}  # fmt: skip
    params = pack("scores", (n,), "peaks", (1025,), "positions", "picks", n, k, 1)
    launch = bugs.Launch("deep_gemm::top_k<kSpec>", (1,), 1024, 213384, arrays, params,
                         {"picks": ref.top_k(scores[0], k)[None]})  # fmt: skip
    return launch, text("top_k", "TopKSpec", ".held = 32768, .peaks = true")


CASES = {
    "hc_sums": hc_sums,
    "hc_apply": hc_apply,
    "hc_few": hc_few,
    "project_operands": project_operands,
    "project_wide": project_wide,
    "top_k_peaks": top_k_peaks,
}
BUGS = [
    ("hc_sums", Bug("terms read before they are there", "                ptx::cp_async_wait<0>();\n                ptx::sync_threads();", "                ptx::sync_threads();")),
    ("hc_sums", Bug("shares read before they are there", "            ptx::sync_threads();\n            add_warps", "            add_warps")),
    ("hc_sums", Bug("fn in one bf16", "part < kFnParts; ++part)\n#pragma unroll\n                for (u32 tile = 0; tile < kFnTiles", "part < 1; ++part)\n#pragma unroll\n                for (u32 tile = 0; tile < kFnTiles", 8)),
    ("hc_sums", Bug("tokens change places", "const u32 a[4] = {taken[0].pair[b][0], taken[1].pair[b][0]", "const u32 a[4] = {taken[1].pair[b][0], taken[0].pair[b][0]", 8)),
    ("hc_sums", Bug("comb transposed", "(1 + a) * kHcStreams * 4", "(1 + (a + 1) % 4) * kHcStreams * 4", 8)),
    ("hc_sums", Bug("a row beyond the last", "const u32 row = first + token_of(half);\n            if (row >= p_.rows) continue;\n#pragma unroll\n            for (u32 b", "const u32 row = first + token_of(half);\n#pragma unroll\n            for (u32 b", 8)),
    ("hc_sums", Bug("this round's rows again", "load(loaded, first + step);", "load(loaded, first);", 8)),
    ("hc_sums", Bug("a warp is left out", "for (u32 warp = 0; warp < kHcSumsWarps; ++warp)", "for (u32 warp = 1; warp < kHcSumsWarps; ++warp)", 8)),
    ("hc_apply", Bug("totals read before they are there", "lane) * 4, sum);\n    }\n    ptx::sync_threads();", "lane) * 4, sum);\n    }")),
    ("hc_apply", Bug("squares read before they are there", "        sync_workers();\n        float sum = 0;", "        float sum = 0;")),
    ("hc_apply", Bug("a slice is left out", "for (u32 slice = warp;", "for (u32 slice = warp + 1;", 8)),
    ("hc_apply", Bug("the scale of pre for all", ": mix < 2 * kHcStreams ? 1", ": mix < 2 * kHcStreams ? 0", 8)),
    ("hc_apply", Bug("the first stream is lost", "for (u32 a = 0; a < kHcStreams; ++a) {\n            const ptx::Word2 w = x_", "for (u32 a = 1; a < kHcStreams; ++a) {\n            const ptx::Word2 w = x_", 8)),
    ("hc_apply", Bug("comb transposed", "row * H * H + i, comb[i / H][i % H]", "row * H * H + i, comb[i % H][i / H]", 8)),
    ("hc_few", Bug("sums read before they are there", "        multiply<0>();\n        ptx::sync_threads();", "        multiply<0>();")),
    ("hc_few", Bug("totals read before they are there", "        at_.meet(Meeting::totals);\n", "")),
    ("hc_few", Bug("squares and the largest read before they are there", "        at_.meet(which);\n", "")),
    ("hc_few", Bug("told before the CTA has begun", "    ptx::cluster_wait();  // all CTAs have begun\n", "")),
    ("hc_few", Bug("fewer bytes expected than come", "p.rows * kHcFewRanks * kHcFewPitch * 4);", "p.rows * kHcFewRanks * kHcMixes * 4);")),
    ("hc_few", Bug("begun without a fence", "            ptx::fence_mbarrier_init();\n", "")),
    ("hc_few", Bug("told on another barrier", "ptx::map_to_rank(at_.meeting(Meeting::totals), rank)", "ptx::map_to_rank(at_.meeting(Meeting::squares), rank)")),
    ("hc_few", Bug("fn read before it is there", "ptx::cp_async_wait<kCopies - 1 - Copy>()", "ptx::cp_async_wait<kCopies - 1>()")),
    ("hc_few", Bug("sums over fn that is still read", "            ptx::sync_warp();  // fn of the step has been read\n", "")),
    ("hc_few", Bug("fn in two bf16", "part < kFnParts; ++part)\n                ptx::mma", "part < 2; ++part)\n                ptx::mma", 8)),
    ("hc_few", Bug("warps in another order", "for (u32 warp = 0; warp < kHcSumsWarps; ++warp)\n                    sum", "for (u32 warp = kHcSumsWarps; warp-- > 0;)\n                    sum", 8)),
    ("hc_few", Bug("CTAs in another order", "for (u32 rank = 0; rank < kHcFewRanks; ++rank)\n            total", "for (u32 rank = kHcFewRanks; rank-- > 0;)\n            total", 8)),
    ("hc_few", Bug("half the CTAs are told", "at_.group * kRanks + i + at_.lane / kLanes", "i + at_.lane / kLanes", 8)),
    ("hc_few", Bug("the squares of the first row for all", "at_.row_of_warp() * slices_of(S) + first", "first", 8)),
    ("hc_few", Bug("streams are not put back", "    DG_DEVICE void between() const {\n        put_back();", "    DG_DEVICE void between() const {", 8)),
    ("hc_few", Bug("post of the first row for all", "z_of(at_.rank, at_.lane", "z_of(0, at_.lane", 8)),
    ("hc_few", Bug("a row beyond the last is put back", "if (!kAdds || at_.lane / 4 >= at_.p.rows) return;", "if (!kAdds) return;", 8)),
    ("project_operands", Bug("rows beyond the last are read", "place < of.rows ? place : of.rows - 1", "place", 8)),
    ("project_operands", Bug("lanes change places", "+ at.column) * 2 + q * 8;", "+ at.column) * 2 + (q ^ 1) * 8;", 8)),
    ("project_operands", Bug("the first group of x twice", "before = p.of[of++].end;", "before = p.of[of++].end - 1;", 8)),
    ("project_operands", Bug("steps in order of columns", "to + step * 32, low, high", "to + (step ^ 1) * 32, low, high", 8)),
    ("project_wide", Bug("a stage read before it is there", "        ptx::mbarrier_wait(ring_.full(second.stage), second.phase);\n", "")),
    ("project_wide", Bug("a stage written before it is read", "                ptx::mbarrier_wait(ring.empty(at.stage), at.phase ^ 1);\n", "")),
    ("project_wide", Bug("a stage handed back while it is read", "        ptx::wgmma_wait<0>();\n", "")),
    ("project_wide", Bug("fewer bytes than come", "ring.full(at.stage), kWideStageBytes)", "ring.full(at.stage), kWideStageBytes / 2)")),
    ("project_wide", Bug("warpgroups have the same rows", "ptx::warp_index() / 4 * (kWideTileBytes / 2)", "0", 8)),
    ("project_wide", Bug("the last sums are not added", "if (following != chunk + kProjectWarps) {", "if (following + 1 < kProjectWarps) {", 8)),
    ("project_wide", Bug("the first sums are forgotten", "chunk % kProjectWarps == 0 ? sum", "true ? sum", 8)),
    ("project_wide", Bug("weights from where x is", "w_row = (params.x_groups * p.token_blocks + row_block)", "w_row = row_block", 8)),
    ("top_k_peaks", Bug("the bound of fewer", "lane < scores.peaks(), p.k, smem)", "lane < scores.peaks(), p.k / 8, smem)", 8)),
    ("top_k_peaks", Bug("every other peak is left out", "first + j * 2 + lane / 16", "first + j * 2", 8)),
    ("top_k_peaks", Bug("places of the first peak", "* kScoresOfPeak + lane % kScoresOfPeak", "* 0 + lane % kScoresOfPeak", 8)),
    ("top_k_peaks", Bug("peaks of the first warp", "data += begin_ / kScoresOfPeak;", "", 8)),
    ("top_k_peaks", Bug("the last score is left out", "return ceil_div(end_ - begin_, kScoresOfPeak);", "return (end_ - begin_ - 1) / kScoresOfPeak;", 8)),
]  # fmt: skip

test_clean, test_bugs = bug_tests(CASES, BUGS, check_caught)
