"""Bugs in the narrow forms that norms leave beside their results, of NVFP4 above all: its scales need the largest of a row.
The emulator must catch each."""

from __future__ import annotations

import numpy as np
from emulator.op_bugs import Bug, Launch, bug_tests, bugs, check_caught, pack, text
from ops_cases import real
from reference import deepseek_v4 as ref
from reference.quantize import nvfp4


def rms_norm() -> tuple[Launch, str]:
    """A row that more than one warp has, and its largest is not of the first."""
    rng = np.random.default_rng(33)
    rows, d, eps = 2, 640, 1e-6
    x = real(rng, (rows, d), "bf16")
    x[:, 300] = 9
    y = ref.rms_norm(x, None, eps).astype(x.dtype)
    codes, scales, shared = nvfp4(y.astype(np.float32))
    params = pack(["x", (d,), (0,)], ["y", (d,), (0,)], None, "codes", "scales", "shared", 1, d, eps)
    arrays = {"x": x, "y": np.full(x.shape, np.nan, np.float32).astype(x.dtype),
              "codes": np.full(codes.shape, 0x55, np.uint8), "scales": np.full(scales.shape, 0x55, np.uint8),
              "shared": np.full(rows, np.nan, np.float32)}  # fmt: skip
    expected = {"y": y, "codes": codes, "scales": scales, "shared": shared}
    launch = Launch("deep_gemm::rms_norm<kSpec>", (rows,), 128, 16, arrays, params,
                    {name: value.astype(np.float64) for name, value in expected.items()}, 1e-7)  # fmt: skip
    fields = ".x = Format::bf16, .y = Format::bf16, .narrow = true, .recipe = Recipe::nvfp4, .rule = ScaleRule::exact"
    return launch, text("norm", "NormSpec", fields)


class Looked(bugs.Launch):  # type: ignore[misc, name-defined]
    """Outputs that are expected to be None are not looked at: a code is far from the next one."""

    def is_right(self) -> bool:
        kept = self.expected
        self.expected = {name: value for name, value in kept.items() if value is not None}
        try:
            return bool(super().is_right())
        finally:
            self.expected = kept


def hc_mix() -> tuple[Launch, str]:
    """Three tokens, two of a cluster at a time; the largest of each lies in another CTA's channels."""
    rng = np.random.default_rng(34)
    d, rows = 1024, 3
    x = real(rng, (rows, 4, d), "bf16")
    for t in range(rows):
        x[t, :, 300 * t + 200] = 3000 * (t + 1)
    fn, base, scale = (
        real(rng, (24, 4 * d), scale=0.01),
        real(rng, (24,)),
        np.array([0.7, 1.3, 1.9], np.float32),
    )
    parts = [ref.hyper_connection(x[t], fn, base, scale, 20, 1e-6, 1e-6) for t in range(rows)]
    y = np.stack([parts[t][0] @ x[t].astype(np.float64) for t in range(rows)])
    expected = {
        "y": y,
        "post": np.stack([p[1] for p in parts]),
        "comb": np.stack([p[2] for p in parts]),
        "shared": abs(y).max(1) / 2688,
        "codes": None,
        "scales": None,
    }
    arrays = {"x": x, "fn": fn, "base": base, "scale": scale, "y": np.full(y.shape, np.nan, np.float32).astype(x.dtype),
              "post": np.full((rows, 4), np.nan, np.float32), "comb": np.full((rows, 4, 4), np.nan, np.float32),
              "shared": np.full(rows, np.nan, np.float32), "codes": np.full((rows, d // 2), 0x55, np.uint8),
              "scales": np.full((rows, d // 16), 0x55, np.uint8)}  # fmt: skip
    params = pack(["x", (4 * d,), (d,)], "fn", "base", "scale", None, ["y", (d,), (0,)], [None, (0,), (0,)], "codes",
                  "scales", "shared", "post", "comb", rows, d, 20, 1, 1e-6, 1e-6)  # fmt: skip
    launch = Looked("deep_gemm::hc_mix<kSpec>", (8,), 544, 163840, arrays, params, expected, 2e-2, cluster=8)
    fields = ".x = Format::bf16, .y = Format::bf16, .tokens = 2, .narrow = true, .recipe = Recipe::nvfp4"
    return launch, text("hyper_connection", "HcSpec", fields)


CASES = {"rms_norm": rms_norm, "hc_mix": hc_mix}
BUGS = [
    ("rms_norm", Bug("the largest of a warp", "tile::cta_max<kNormThreads>(ptx::dynamic_smem() + plan_smem(S).sums, amax)", "tile::warp_max(amax)", 8)),
    ("rms_norm", Bug("the largest read before it is there", "ptx::named_barrier_sync(0, Threads);\n    float largest", "float largest")),
    ("rms_norm", Bug("a scale for 32 columns", "warp_max<4>(amax_of_four(v))", "warp_max<8>(amax_of_four(v))", 8)),
    ("rms_norm", Bug("scales without the row's", "mul_rn_f32(value, global));\n    store_e2m1", "mul_rn_f32(value, 1.0f));\n    store_e2m1", 8)),
    ("rms_norm", Bug("scales of MXFP4's place", "+ columns / 16, column, v, global)", "+ columns / 32, column, v, global)", 8)),
    ("hc_mix", Bug("the largest of the first CTA", "plan_smem(S).amax + token * 4, rank)", "plan_smem(S).amax + token * 4, 0u)", 8)),
    ("hc_mix", Bug("the largest of the first token", "smem + plan_smem(S).amax + token * 4, rank", "smem + plan_smem(S).amax, rank", 8)),
    ("hc_mix", Bug("the last warp does not meet the others", "if constexpr (hc_row_amax(S)) ptx::cluster_sync();", "")),
    ("hc_mix", Bug("the largest read before it is there", "keep_amax<S>(tokens, smem);\n            ptx::cluster_sync();", "keep_amax<S>(tokens, smem);\n            ptx::cluster_arrive();\n            if (warp != 0) ptx::cluster_wait();")),
    ("hc_mix", Bug("warps' largest added before they are there", "sync_workers<S>();\n            keep_amax", "keep_amax")),
]  # fmt: skip

test_clean, test_bugs = bug_tests(CASES, BUGS, check_caught)
