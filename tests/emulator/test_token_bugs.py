"""Bugs injected into the kernels from logits to tokens must be caught."""

from __future__ import annotations

from typing import Any

import numpy as np
from emulator.op_bugs import Bug, Launch, bug_tests, check_caught, pack, text
from kernel.test_sample import SEED, drawn, philox, truncated
from ops_cases import real

SMEM_BYTES = 2160


def sample(kernel: str, grid: int, block: int, arrays: dict[str, Any], params: Any, expected: dict[str, Any],
           spec: str = "") -> tuple[Launch, str]:  # fmt: skip
    launch = Launch(f"deep_gemm::{kernel}<kSpec>", (grid,), block, SMEM_BYTES, arrays, params, expected, 1e-6)
    return launch, text("sample", "SampleSpec", spec)


def sample_distribution() -> tuple[Launch, str]:
    """A row cut by its number of tokens, in the middle of equal ones, and one by its share and its smallest."""
    v = 700
    logits = np.round(real(np.random.default_rng(52), (2, v), scale=2))
    logits = logits.astype(np.float32)
    cuts = {"temperature": [0.7, 1], "top_k": [35, 0], "top_p": [1, 0.9], "min_p": [0, 0.2]}
    expected = np.stack([truncated(logits[t], **{k: row[t] for k, row in cuts.items()}) for t in range(2)])
    arrays = {"logits": logits, "probabilities": np.full((2, v), np.nan, np.float32)}
    arrays |= {name: np.array(row, np.int32 if name == "top_k" else np.float32) for name, row in cuts.items()}
    params = pack("logits", "probabilities", (v,), (v,), "temperature", "top_k", "top_p", "min_p", v)
    return sample("sample_distribution", 2, 256, arrays, params, {"probabilities": expected})


def sample_draw() -> tuple[Launch, str]:
    """Four rows to draw from, one with a NaN, one that is idle."""
    rng = np.random.default_rng(53)
    v, positions = 600, np.array([3, 1000, 77, 5, 6, -1], np.int32)
    p = rng.dirichlet(np.full(v, 0.3), 6).astype(np.float32)
    tokens = [drawn(p[t], int(positions[t]), 3) for t in range(4)]
    p[4, 9] = np.nan
    arrays = {"p": p, "seed": SEED, "positions": positions, "tokens": np.full(6, -77, np.int32)}
    params = pack("p", (v,), "seed", "positions", "tokens", v, 3)
    return sample("sample_draw", 6, 256, arrays, params, {"tokens": np.array([*tokens, -1, -1])})


def accept_sampled() -> tuple[Launch, str]:
    """The first draft is accepted, the second is not."""
    rng, v, positions = np.random.default_rng(55), 200, np.array([10, 11, 12], np.int32)
    while True:
        p, q = (rng.dirichlet(np.ones(v), rows).astype(np.float32) for rows in (3, 2))
        tokens = np.array([0, *(rng.integers(0, v) for _ in q)], np.int32)
        shares = [
            np.float32((philox((1234, 2**32 - 5), int(at), 1)[0] >> 8) * 2.0**-24) for at in positions[:2]
        ]
        accepted = [shares[i] * q[i, tokens[i + 1]] < p[i, tokens[i + 1]] for i in range(2)]
        if accepted == [True, False]:
            break
    following = drawn(np.maximum(p[1] - q[1], 0), 11, 2)
    arrays = {
        "tokens": tokens,
        "p": p,
        "q": q,
        "seed": SEED,
        "positions": positions,
        "record": np.full(4, -77, np.int32),
    }
    params = pack("tokens", None, "p", "q", (v,), (v,), "seed", "positions", "record", 3, v)
    expected = {"record": np.array([1, following, 12, 1])}
    return sample("accept_drafts", 1, 256, arrays, params, expected, ".sampled = true")


def accept_greedy() -> tuple[Launch, str]:
    arrays = {"tokens": np.array([1, 5, -1, 7], np.int32), "targets": np.array([5, 6, 7, 8], np.int32),
              "positions": np.arange(100, 104, dtype=np.int32), "record": np.full(4, -77, np.int32)}  # fmt: skip
    params = pack("tokens", "targets", None, None, (0,), (0,), None, "positions", "record", 4, 0)
    return sample("accept_drafts", 1, 256, arrays, params, {"record": np.array([1, 6, 102, 0])})


def fill_positions() -> tuple[Launch, str]:
    n, count = 300, 270  # two CTAs
    arrays = {
        "base": np.array([41], np.int32),
        "count": np.array([count], np.int32),
        "positions": np.full(n, -77, np.int32),
    }
    expected = np.where(np.arange(n) < count, 44 + np.arange(n), -1)
    params = pack("base", "count", "positions", 3, n)
    return sample("fill_positions", 2, 256, arrays, params, {"positions": expected})


CASES = {
    "sample_distribution": sample_distribution,
    "sample_draw": sample_draw,
    "accept_sampled": accept_sampled,
    "accept_greedy": accept_greedy,
    "fill_positions": fill_positions,
}
BUGS = [
    ("sample_distribution", Bug("counted before the bins are cleared", "ptx::st_shared_u64(smem + kPlan.bins + thread * 8, 0);\n        ptx::sync_threads();", "ptx::st_shared_u64(smem + kPlan.bins + thread * 8, 0);")),
    ("sample_distribution", Bug("bins read before all have counted", "measure(i));\n        }\n        ptx::sync_threads();", "measure(i));\n        }")),
    ("sample_distribution", Bug("what lies above is forgotten", "wanted -= ptx::ld_shared_u64(smem + kPlan.found + 8);", "", 8)),
    ("sample_distribution", Bug("ties beyond the last place", "before < prefix.equal", "before <= prefix.equal", 8)),
    ("sample_distribution", Bug("ties of earlier warps", "if (w < warp) before += count;", "", 8)),
    ("sample_distribution", Bug("the smallest is not looked at", "inside && weight >= least", "inside", 8)),
    ("sample_draw", Bug("sums read before they are there", "ptx::sync_threads();\n    u64 total = 0, before = 0;", "u64 total = 0, before = 0;")),
    ("sample_draw", Bug("warps before are forgotten", "if (warp < thread / 32) before += sum;", "", 8)),
    ("sample_draw", Bug("lanes before are added twice", "if (lane >= delta) through += lower;", "through += lower;", 8)),
    ("sample_draw", Bug("the first token of a run", "for (reached += weight(i); reached <= target; reached += weight(i)) ++i;", "", 8)),
    ("sample_draw", Bug("drawn in spite of a NaN", "position >= 0 && nan == 0", "position >= 0", 8)),
    ("sample_draw", Bug("one stream of numbers for all purposes", "{position, purpose, 0, 0}", "{position, 0, 0, 0}", 8)),
    ("accept_sampled", Bug("goes on after a draft that is rejected", "if (rejected) break;", "", 8)),
    ("accept_sampled", Bug("the number of a plain draw", "position, kPurposeResidual", "position, kPurposeDraw", 8)),
    ("accept_sampled", Bug("the rest of the first draft", "p.q + accepted * p.q_stride", "p.q", 8)),
    ("accept_sampled", Bug("position of the first token", "p.positions + accepted);", "p.positions);", 8)),
    ("accept_greedy", Bug("compared with the next target", "p.targets + i) != draft", "p.targets + i + 1) != draft", 8)),
    ("accept_greedy", Bug("no draft is a wrong one", "if (draft < 0) break;", "", 8)),
    ("fill_positions", Bug("threads beyond the last", "if (i >= p.n) return;", "", 8)),
    ("fill_positions", Bug("the count is not looked at", "!p.count || static_cast<i32>(i) < ptx::ld_global_s32(p.count)", "true", 8)),
    ("fill_positions", Bug("no offset", " + p.offset + static_cast<i32>(i)", " + static_cast<i32>(i)", 8)),
    ("fill_positions", Bug("every CTA from the start", "const u32 i = ptx::block_index() * kSampleThreads + ptx::thread_index();", "const u32 i = ptx::thread_index();", 8)),
]  # fmt: skip

test_clean, test_bugs = bug_tests(CASES, BUGS, check_caught)
