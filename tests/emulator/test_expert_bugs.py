"""Bugs injected into the router, the experts of few rows, the indexer and the activations of narrow weights."""

from __future__ import annotations

from typing import Any

import numpy as np
from emulator.op_bugs import Bug, Launch, bug_tests, check_caught, pack, text
from ops_cases import real
from reference import deepseek_v4 as ref
from reference import gemv as gemv_reference


def route() -> tuple[Launch, str]:
    rng = np.random.default_rng(41)
    rows, experts, choices = 2, 70, 6
    logits, bias = np.round(real(rng, (rows, experts)) * 2) / 2, np.round(real(rng, (experts,)))  # ties
    chosen = [ref.route(row, bias, choices, False, True, 1.5) for row in logits.astype(np.float32)]
    expected = {"experts": np.stack([c[0] for c in chosen]), "weights": np.stack([c[1] for c in chosen])}
    arrays = {"logits": logits.astype(np.float32), "bias": bias.astype(np.float32),
              "experts": np.full((rows, choices), -77, np.int32), "weights": np.full((rows, choices), np.nan, np.float32)}  # fmt: skip
    params = pack("logits", (experts,), "bias", None, None, "experts", "weights", experts, choices, 0, 1.5)
    launch = Launch("deep_gemm::route<kSpec>", (rows,), 256, 8192, arrays, params, expected, 1e-5)
    return launch, text("router", "RouterSpec", ".bias = true")


# Two rows of two slots over three experts; one slot has none. Nine outputs are two blocks of eight warps.
EXPERTS, N, K = np.array([[2, 0], [-1, 1]], np.int32), 9, 132
WEIGHTS = np.array([[0.5, 2], [1, -1.5]], np.float32)


def matrix(name: str) -> list[Any]:
    return [name, None, (N * K,), (K,), (0,), (0,)]


def expert_up() -> tuple[Launch, str]:
    rng = np.random.default_rng(42)
    x, w1, w3 = real(rng, (2, K)), real(rng, (3, N, K), scale=K**-0.5), real(rng, (3, N, K), scale=K**-0.5)
    mid = np.zeros((2, 2, N))
    for row, slot in np.ndindex(2, 2):
        if (expert := EXPERTS[row, slot]) >= 0:
            gate, up = (w[expert].astype(np.float64) @ x[row] for w in (w1, w3))
            mid[row, slot] = ref.swiglu(gate, up, 0.5) * WEIGHTS[row, slot]
    params = pack(["x", (K,), (0,)], [None, (0,), (0,)], matrix("w1"), matrix("w3"), "experts", "weights",
                  ["mid", (2 * N,), (N,)], 2, 2, 3, N, K, 0.5)  # fmt: skip
    arrays = {"x": x, "w1": w1, "w3": w3, "experts": EXPERTS, "weights": WEIGHTS,
              "mid": np.full(mid.shape, np.nan, np.float32)}  # fmt: skip
    launch = Launch("deep_gemm::expert_up<kSpec>", (8,), 256, 0, arrays, params, {"mid": mid}, 1e-5)
    return launch, text("expert", "ProjectSpec", ".w = Format::fp32")


def expert_down() -> tuple[Launch, str]:
    rng = np.random.default_rng(43)
    mid, w, add = real(rng, (2, 2, K)), real(rng, (3, N, K), scale=K**-0.5), real(rng, (2, N))
    y = add.astype(np.float64)
    for row, slot in np.ndindex(2, 2):
        if (expert := EXPERTS[row, slot]) >= 0:
            y[row] += w[expert].astype(np.float64) @ mid[row, slot] * WEIGHTS[row, slot]
    params = pack(["mid", (2 * K,), (K,)], [None, (0,), (0,)], matrix("w"), "experts", "weights", ["y", (N,), (0,)],
                  ["add", (N,), (0,)], 2, 2, 3, N, K)  # fmt: skip
    arrays = {"mid": mid, "w": w, "add": add, "experts": EXPERTS, "weights": WEIGHTS,
              "y": np.full(y.shape, np.nan, np.float32)}  # fmt: skip
    launch = Launch("deep_gemm::expert_down<kSpec>", (4,), 256, 0, arrays, params, {"y": y}, 1e-5)
    return launch, text("expert", "ProjectSpec", ".w = Format::fp32, .add = Format::fp32")


def indexer(
    kernel: str, spec: str, dtype: str, heads: int, d: int, block: int, smem: int
) -> tuple[Launch, str]:
    """42 and 7 of 45 compressed rows are visible; what is not stays as it was."""
    rng = np.random.default_rng(44)
    tokens, rows, positions = 2, 45, np.array([170, 30], np.int32)
    query, weights = real(rng, (tokens, heads, d), dtype), real(rng, (tokens, heads))
    cache = real(rng, (1, rows, d), dtype)
    scores = np.zeros((tokens, rows))
    for t, visible in enumerate((42, 7)):
        scores[t, :visible] = ref.index_scores(query[t], weights[t], cache[0, :visible], 0.25)
    params = pack(["query", (heads * d,), (d,)], "weights", (heads,), ["cache", (0,), (d,), 1, rows, 1, 0, None],
                  "positions", None, "scores", (rows,), None, (0,), tokens, heads, d, 4, 0, 0.25, 1)  # fmt: skip
    arrays = {"query": query, "weights": weights, "cache": cache, "positions": positions,
              "scores": np.zeros(scores.shape, np.float32)}  # fmt: skip
    grid = (
        tokens * (1 if kernel == "index_mma" else -(-rows // block)),
    )  # on tensor cores one goes through all rows
    launch = Launch(f"deep_gemm::{kernel}<kSpec>", grid, 128, smem, arrays, params, {"scores": scores}, 1e-4)
    return launch, text("indexer", spec, "")


def index_scores() -> tuple[Launch, str]:
    return indexer("index_scores", "IndexScoreSpec", "fp32", 3, 96, 32, 0)


def index_mma() -> tuple[Launch, str]:
    return indexer("index_mma", "IndexMmaSpec", "bf16", 70, 128, 64, 64 * 324)


def gemv_quantize() -> tuple[Launch, str]:
    rows, k = 3, 200  # the last block of a row has eight elements
    x = real(np.random.default_rng(45), (rows, k))
    x[:, 40] = -5  # the largest of its block is negative
    values, scales = gemv_reference.q8_activations(x)
    params = pack("x", "values", "scales", (4 * k,), (224,), (7,), rows, k)
    arrays = {
        "x": x,
        "values": np.full((rows, 224), 99, np.int8),
        "scales": np.full((rows, 7), np.nan, np.float32),
    }
    expected = {"values": values.reshape(rows, 224).astype(np.float64), "scales": scales.astype(np.float64)}
    launch = Launch("deep_gemm::gemv_quantize<kSpec>", (3,), 256, 0, arrays, params, expected)
    return launch, text("gemv_quantize", "GemvQuantizeSpec", ".x = Format::fp32")


CASES = {
    "route": route,
    "expert_up": expert_up,
    "expert_down": expert_down,
    "index_scores": index_scores,
    "index_mma": index_mma,
    "gemv_quantize": gemv_quantize,
}
TIES = Bug("ties to the higher index",
           "(0xffffffffu - index);\n}\nDG_DEVICE u32 index_of(u64 ranked) {\n    return 0xffffffffu - static_cast<u32>(ranked);",
           "index;\n}\nDG_DEVICE u32 index_of(u64 ranked) {\n    return static_cast<u32>(ranked);", 8)  # fmt: skip
BUGS = [
    ("route", TIES),
    ("route", Bug("the same expert again", "if (chosen % 32 == lane) ptx::st_shared_u32(keys + chosen * 4, 0);", "", 8)),
    ("route", Bug("the bias is not looked at", "value += ptx::ld_global_f32(p.bias + e);", "value += 0.0f;", 8)),
    ("route", Bug("weights are not normalised", "mine / divisor * p.scale", "mine * p.scale", 8)),
    ("route", Bug("keys read before they are there", "// 0: taken\n        }\n        ptx::sync_threads();", "\n        }")),
    ("expert_up", Bug("gate in the place of up", "tile::dot_rows<S>(p.w3, expert", "tile::dot_rows<S>(p.w1, expert", 8)),
    ("expert_up", Bug("outputs beyond the last", "row = slot / p.slots;\n    if (n >= p.n) return;", "row = slot / p.slots;", 8)),
    ("expert_up", Bug("an expert that is not here", "float mid = 0;\n    if (expert < p.num_experts) {", "float mid = 0;\n    {", 8)),
    ("expert_up", Bug("weights of the row's number", "weight_of(p.weights, slot));", "weight_of(p.weights, row));", 8)),
    ("expert_up", Bug("up is cut above only", "ptx::max_nan_f32(ptx::min_nan_f32(up, limit), -limit)", "ptx::min_nan_f32(up, limit)", 8)),
    ("expert_up", Bug("all slots in one place", "slot % p.slots * p.mid.inner_stride", "0 * p.mid.inner_stride", 8)),
    ("expert_down", Bug("an expert that is not here", "if (expert >= p.num_experts) continue;", "", 8)),
    ("expert_down", Bug("nothing is added to", "if constexpr (S.add != Format::none) sum =", "if constexpr (S.add == Format::none) sum =", 8)),
    ("expert_down", Bug("the first slot for all", "{row * p.mid.stride + j * p.mid.inner_stride}", "{row * p.mid.stride}", 8)),
    ("expert_down", Bug("weights are not used", "ptx::fma_rn_f32(part[0], expert_detail::weight_of(p.weights, slot), sum)", "ptx::add_rn_f32(part[0], sum)", 8)),
    ("expert_down", Bug("outputs beyond the last", "row = ptx::block_index() / n_blocks;\n    if (n >= p.n) return;", "row = ptx::block_index() / n_blocks;", 8)),
    ("index_scores", Bug("rows that are not visible yet", "ptx::lane_index() == i && first + i < visible", "ptx::lane_index() == i", 8)),
    ("index_scores", Bug("dots below zero count", "ptx::max_nan_f32(dot, 0.0f), score[i])", "dot, score[i])", 8)),
    ("index_scores", Bug("weight of the first head", "ptx::ld_global_f32(p.weights + token * p.weights_stride + head);", "ptx::ld_global_f32(p.weights + token * p.weights_stride);", 8)),
    ("index_scores", Bug("lanes beyond the channels", "        if (active)\n            q = ", "            q = ", 8)),
    ("index_scores", Bug("the warp's first row for all", "sequence, first + i, channel)", "sequence, first, channel)", 8)),
    ("index_mma", Bug("heads read before they are there", "load_heads<S.rows>(p, token, head, smem);\n                ptx::sync_threads();", "load_heads<S.rows>(p, token, head, smem);")),
    ("index_mma", Bug("heads overwritten while they are read", "if (!once) ptx::sync_threads();", "")),
    ("index_mma", Bug("weights beyond the last head", "first + head < p.heads\n                               ? ptx::ld_global_f32", "true\n                               ? ptx::ld_global_f32", 8)),
    ("index_mma", Bug("the upper rows twice", "&b = rows[1][load];", "&b = rows[0][load];", 8)),
    ("index_mma", Bug("pairs of a step change places", "high, q.z, q.w)", "high, q.w, q.z)", 8)),
    ("index_mma", Bug("heads of the first round stay", "held = once;", "held = true;", 8)),
    ("index_mma", Bug("lanes are not added", "sum = ptx::add_rn_f32(sum, ptx::shfl_bfly_f32(sum, 1)) * p.scale;", "sum *= p.scale;", 8)),
    ("gemv_quantize", Bug("maximum of half a warp", "distance = 16; distance > 0; distance /= 2) {\n        const u32 other", "distance = 8; distance > 0; distance /= 2) {\n        const u32 other", 8)),
    ("gemv_quantize", Bug("the tail goes on in the next row", "column < p.k ? kernel::load_value<S.x>(p.x + row * p.x_stride, column) : 0.0f", "kernel::load_value<S.x>(p.x + row * p.x_stride, column)", 8)),
    ("gemv_quantize", Bug("signs are part of a magnitude", "ptx::float_bits(value[i]) & 0x7fffffff;\n        largest", "ptx::float_bits(value[i]);\n        largest", 8)),
    ("gemv_quantize", Bug("the last block is left out", "ceil_div(p.k, kBlock), lane", "p.k / kBlock, lane", 8)),
    ("gemv_quantize", Bug("127 is 128", "ptx::div_rn(amax, 127.0f)", "ptx::div_rn(amax, 128.0f)", 8)),
]  # fmt: skip

test_clean, test_bugs = bug_tests(CASES, BUGS, check_caught)
