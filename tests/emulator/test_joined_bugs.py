"""Bugs injected into launches that several operations share, and into projections of many rows, must be caught."""

from __future__ import annotations

from typing import Any

import numpy as np
from emulator.op_bugs import BF16, Bug, bug_tests, bugs, check_caught, pack, text
from ops_cases import fp8_rows, real
from reference import deepseek_v4 as ref

from deep_gemm import ops


def attention_heads() -> tuple[Any, str]:
    rng = np.random.default_rng(21)
    rows, heads, index_heads, d, f = 2, 3, 2, 128, ref.frequencies(64, 1e4)
    q, index, positions = (
        real(rng, (rows, heads, d)),
        real(rng, (rows, index_heads, d)),
        np.array([7, 90], np.int32),
    )
    expected = {
        "y": np.stack([[ref.rotate(ref.rms_norm(q[t, h], None, 1e-6), int(positions[t]), f) for h in range(heads)] for t in range(rows)]),
        "z": np.stack([[ref.rotate(index[t, h], int(positions[t]), f) for h in range(index_heads)] for t in range(rows)]),
    }  # fmt: skip
    arrays = {"q": q, "index": index, "positions": positions, "frequencies": ops.rope_frequencies(64, 1e4)}
    arrays |= {name: np.full(value.shape, np.nan, np.float32) for name, value in expected.items()}

    def part(x: str, y: str, inner: int) -> list[Any]:
        view = ((inner * d,), (d,))
        return [[x, *view], [y, *view], None, "frequencies", "positions", inner, d, 64, 1e-6]

    params = pack(part("q", "y", heads), part("index", "z", index_heads), 6)
    launch = bugs.Launch(
        "deep_gemm::attention_heads<kSpec>", (10,), 128, 1024, arrays, params, expected, 1e-4
    )
    fields = ".query = {.weight = Format::none}, .index = {.weight = Format::none, .norm = false}, .has_index = true"
    return launch, text("attention_rows", "AttentionHeadsSpec", fields)


def gqa_rows() -> tuple[Any, str]:
    rng = np.random.default_rng(26)
    rows, heads, kv_heads, d, f = 3, 3, 2, 32, ref.frequencies(32, 1e4)
    q, key, value = (real(rng, (rows, n, d)) for n in (heads, kv_heads, kv_heads))
    q_weight, k_weight = real(rng, (d,)), real(rng, (d,))
    positions, sequences = np.array([7, -1, 1], np.int32), np.array([1, 0, 0], np.int32)

    def rotated(x: Any, weight: Any, position: int) -> Any:
        return ref.rotate(ref.rms_norm(x, weight, 1e-6), position, f, halves=True)

    expected = {name: np.zeros((2, 6, kv_heads, d)) for name in ("keys", "values")} | {"y": np.zeros(q.shape)}
    for t in (0, 2):
        at = (int(sequences[t]), int(positions[t]) % 6)
        expected["values"][at] = value[t]
        for h in range(kv_heads):
            expected["keys"][at][h] = rotated(key[t, h], k_weight, int(positions[t]))
        for h in range(heads):
            expected["y"][t, h] = rotated(q[t, h], q_weight, int(positions[t]))
    arrays = {"q": q, "key": key, "value": value, "q_weight": q_weight, "k_weight": k_weight, "positions": positions,
              "sequences": sequences, "frequencies": ops.rope_frequencies(d, 1e4)}  # fmt: skip
    arrays |= {name: np.zeros(array.shape, np.float32) for name, array in expected.items()}

    def rope(x: str, y: str, weight: str, inner: int) -> list[Any]:
        view = ((inner * d,), (d,))
        return [[x, *view], [y, *view], weight, "frequencies", "positions", inner, d, d, 1e-6]

    def cache(x: str, name: str) -> list[Any]:
        row = kv_heads * d
        return [[x, (row,), (d,)], "positions", "sequences", [name, (6 * row,), (row,), 2, 6, 6, 1, None], (d,),
                kv_heads, d]  # fmt: skip

    params = pack(rope("q", "y", "q_weight", heads), rope("key", "key", "k_weight", kv_heads), cache("key", "keys"),
                  cache("value", "values"), 9, 15)  # fmt: skip
    launch = bugs.Launch("deep_gemm::gqa_rows<kSpec>", (18,), 128, 1024, arrays, params, expected, 1e-4)
    head = "{.weight = Format::fp32, .pairs = RopePairs::halves}"
    return launch, text("gqa_rows", "GqaRowsSpec", f".query = {head}, .key = {head}, .value = {{}}")


def attention_rows() -> tuple[Any, str]:
    rng = np.random.default_rng(22)
    tokens, dim, f = 8, 128, ref.frequencies(64, 1e4)
    x, latent = real(rng, (tokens, 256)), real(rng, (tokens, dim))
    norm_weight, weight = real(rng, (256,)), real(rng, (dim,))
    arrays = {"x": x, "latent": latent, "norm_weight": norm_weight, "weight": weight,
              "frequencies": ops.rope_frequencies(64, 1e4), "positions": np.arange(tokens, dtype=np.int32)}  # fmt: skip
    expected: dict[str, Any] = {
        "y": ref.rms_norm(x, norm_weight, 1e-6),
        "ring": np.stack([ref.rotate(ref.rms_norm(latent[t], weight, 1e-6), t, f) for t in range(tokens)])[
            None
        ],
    }
    compressors = []
    for name in ("a", "b"):
        kv, gate, ape = (real(rng, shape) for shape in ((tokens, 2 * dim), (tokens, 2 * dim), (4, 2 * dim)))
        pooled = ref.compressed_rows(kv, gate, ape, 4, True)
        rows = [ref.rotate(ref.rms_norm(row, weight, 1e-6), 4 * w, f) for w, row in enumerate(pooled)]
        arrays |= {f"kv_{name}": kv, f"gate_{name}": gate, f"ape_{name}": ape,
                   f"state_{name}": np.zeros((1, 9, dim), np.float32)}  # fmt: skip
        expected[f"rows_{name}"] = np.stack(rows)[None]
        compressors.append([f"kv_{name}", f"gate_{name}", (2 * dim,), (2 * dim,), f"ape_{name}", "weight", "frequencies",
                            "positions", None, f"state_{name}", None, [f"rows_{name}", (0,), (dim,), 1, 2, 1, 0, None],
                            tokens, dim, 64, 4, 1e-6, 1, tokens])  # fmt: skip
    arrays |= {name: np.full(value.shape, np.nan, np.float32) for name, value in expected.items()}
    norm = [["x", (256,), (0,)], ["y", (256,), (0,)], "norm_weight", None, None, None, 1, 256, 1e-6]
    write = [["latent", (dim,), (0,)], "weight", "frequencies", "positions", None,
             ["ring", (0,), (dim,), 1, tokens, 1, 0, None], dim, 64, 1e-6]  # fmt: skip
    params = pack(norm, write, *compressors, 8, 16, 17)
    expected |= {"state_a": None, "state_b": None}  # written, and not looked at
    launch = Rows("deep_gemm::attention_rows<kSpec>", (18,), 128, 1024, arrays, params, expected, 1e-4)
    compressor = "{.weight = Format::fp32}"
    fields = f".norm = {{.weight = Format::fp32}}, .write = {{.weight = Format::fp32}}, .main = {compressor}, .index = {compressor}, .has_main = true, .has_index = true"
    return launch, text("attention_rows", "AttentionRowsSpec", fields)


class Rows(bugs.Launch):  # type: ignore[misc, name-defined]
    def is_right(self) -> bool:
        kept = self.expected
        self.expected = {name: value for name, value in kept.items() if value is not None}
        try:
            return bool(super().is_right())
        finally:
            self.expected = kept


def matrix(w: str, y: str, n: int, k: int, end: int) -> list[Any]:
    return [w, None, (k,), (0,), (0,), (0,), y, None, (n,), (0,), n, end]


NO_MATRIX = [None, None, (0,), (0,), (0,), (0,), None, None, (0,), (0,), 0, 0]


def project_pair() -> tuple[Any, str]:
    rng = np.random.default_rng(23)
    rows, k, sizes = 5, 256, {"a": 20, "b": 40}
    x = real(rng, (rows, k), "bf16")
    arrays: dict[str, Any] = {"x": x}
    expected, halves = {}, []
    for name, n in sizes.items():
        w = real(rng, (n, k), "bf16", k**-0.5)
        arrays |= {f"w_{name}": w, f"y_{name}": np.full((rows, n), np.nan, np.float32)}
        expected[f"y_{name}"] = x.astype(np.float64) @ w.astype(np.float64).T
        halves.append(["x", None, (k,), (0,), rows, k, 1, 1, matrix(f"w_{name}", f"y_{name}", n, k, -(-n // 16)), *[NO_MATRIX] * 15])  # fmt: skip
    launch = bugs.Launch(
        "deep_gemm::project_pair<kSpec>", (5,), 256, 4096, arrays, pack(*halves, 2), expected, 1e-4
    )
    return launch, text("project_mma", "ProjectPairSpec", "")


def project_rounds() -> tuple[Any, str]:
    """Rows of bf16 that are rounded on the way."""
    rng = np.random.default_rng(27)
    rows, n, k = 5, 20, 1280
    x = (real(rng, (rows, k)) * 2.0 ** rng.integers(-5, 5, (rows, 10)).repeat(128, 1)).astype(BF16)
    w = real(rng, (n, k), "fp8_e4m3")
    codes, scales = fp8_rows(x)
    values = codes.astype(np.float64) * scales.repeat(128, 1)
    part = ["w", "w_scale", (k,), (10,), (0,), (0,), "y", None, (n,), (0,), n, 2]
    params = pack("x", None, (k,), (0,), rows, k, 1, 1, part, *[NO_MATRIX] * 15)
    arrays = {
        "x": x,
        "w": w,
        "w_scale": np.full((1, 10), 0.01, np.float32),
        "y": np.full((rows, n), np.nan, np.float32),
    }
    expected = {"y": values @ w.astype(np.float64).T * 0.01}
    launch = bugs.Launch("deep_gemm::project_mma<kSpec>", (2,), 256, 4096, arrays, params, expected, 2e-4)
    fields = ".w = Format::fp8_e4m3, .w_scale = Format::fp32, .rounds = true"
    return launch, text("project_mma", "ProjectMmaSpec", fields)


def route_activate() -> tuple[Any, str]:
    rng = np.random.default_rng(25)
    rows, experts, choices, slots, n = 2, 40, 4, 3, 128
    logits, h = real(rng, (rows, experts)), real(rng, (slots, 2 * n), "bf16", 2)
    routed = [ref.route(row, None, choices, False, True, 1.5) for row in logits]
    chosen, weights = (np.stack([one[i] for one in routed]) for i in range(2))
    wide = h.astype(np.float64)
    gate, up = wide[:, :n], wide[:, n:]
    values = (gate / (1 + np.exp(-gate)) * up).astype(np.float32).astype(BF16)
    codes, scales = fp8_rows(values)
    arrays = {"logits": logits, "h": h, "slots": np.arange(slots, dtype=np.int32), "count": np.array([slots], np.int32),
              "experts": np.full((rows, choices), -7, np.int32), "weights": np.full((rows, choices), np.nan, np.float32),
              "codes": np.full((slots, n), 0x7F, np.uint8).view(codes.dtype),
              "scales": np.full((slots, 1), np.nan, np.float32)}  # fmt: skip
    params = pack(["logits", (experts,), None, None, None, "experts", "weights", experts, choices, 0, 1.5],
                  ["h", "codes", "scales", None, "slots", "count", slots, n, 0.0], rows)  # fmt: skip
    expected = {"experts": chosen, "weights": weights, "scales": scales, "codes": codes.astype(np.float64)}
    launch = bugs.Launch(
        "deep_gemm::route_activate<kSpec>", (rows + 1,), 256, 8192, arrays, params, expected, 1e-4
    )
    return launch, text("moe_joined", "RouteActivateSpec", ".activate = {.rule = ScaleRule::up}")


def project_group() -> tuple[Any, str]:
    rng = np.random.default_rng(26)
    tokens, top_k, experts, k, n = 5, 3, 6, 256, 20
    x, w = real(rng, (tokens, k), "bf16"), real(rng, (n, k), "bf16", k**-0.5)
    ids = np.stack([rng.permutation(experts - 1)[:top_k] for _ in range(tokens)]).astype(np.int32)
    pairs = tokens * top_k
    order = np.argsort(ids.reshape(-1), kind="stable")
    counts = np.bincount(ids.reshape(-1), minlength=experts)
    ends = np.cumsum(counts)
    present = [e for e in range(experts) if counts[e]]
    entries = np.full((experts, 4), -7, np.int32)
    expected_entries = entries.copy()
    for i, e in enumerate(present):
        expected_entries[i] = [e, ends[e] - counts[e], counts[e], 0]
    places = np.empty(pairs, np.int32)
    places[order] = np.arange(pairs)
    expected = {"y": x.astype(np.float64) @ w.astype(np.float64).T, "offsets": np.concatenate([[0], ends]), "ends": ends,
                "entries": expected_entries, "head": np.array([len(present), 0, 0, 0]), "slot_pairs": order,
                "slot_tokens": order // top_k, "pair_slots": places}  # fmt: skip
    arrays = {"x": x, "w": w, "ids": ids, "y": np.full((tokens, n), np.nan, np.float32), "entries": entries}
    arrays |= {
        name: np.full(value.shape, -7, np.int32) for name, value in expected.items() if name not in arrays
    }
    params = pack(["x", None, (k,), (0,), tokens, k, 1, 1, matrix("w", "y", n, k, 2), *[NO_MATRIX] * 15],
                  ["ids", "offsets", "ends", "entries", "head", "slot_pairs", "slot_tokens", "pair_slots",
                   pairs, top_k, experts, 0, 1], 2)  # fmt: skip
    launch = bugs.Launch(
        "deep_gemm::project_group<kSpec>", (2 + experts,), 256, 4096, arrays, params, expected, 1e-4
    )
    return launch, text("moe_joined", "ProjectGroupSpec", "")


CASES = {
    "route_activate": route_activate,
    "project_group": project_group,
    "attention_heads": attention_heads,
    "gqa_rows": gqa_rows,
    "attention_rows": attention_rows,
    "project_pair": project_pair,
    "project_rounds": project_rounds,
}
BUGS = [
    ("route_activate", Bug("activation from the wrong block on", "(p.activate, block - p.route_blocks)", "(p.activate, block)", 8)),
    ("route_activate", Bug("one token less", "if (block < p.route_blocks)", "if (block + 1 < p.route_blocks)", 8)),
    ("route_activate", Bug("gate and up change places", "tile::swiglu(gate[i], up[i])", "tile::swiglu(up[i], gate[i])", 8)),
    ("route_activate", Bug("keys read before they are there", "// 0: taken\n        }\n        ptx::sync_threads();", "// 0: taken\n        }")),
    ("project_group", Bug("groups from the wrong block on", "(p.group, block - p.project_blocks)", "(p.group, block)", 8)),
    ("project_group", Bug("one block less", "if (block < p.project_blocks)", "if (block + 1 < p.project_blocks)", 8)),
    ("project_group", Bug("counted before the counts are cleared", "+ e * 4, 0);\n    ptx::sync_threads();\n    ptx::grid", "+ e * 4, 0);\n    ptx::grid")),
    ("project_group", Bug("a warp is left out", "u32 warp = 1; warp < kProjectWarps", "u32 warp = 2; warp < kProjectWarps", 8)),
    ("attention_heads", Bug("queries of the index from the wrong block on", "(p.index, block - p.query_end)", "(p.index, block)", 8)),
    ("gqa_rows", Bug("keys of the head beside", "to + inner * cache.stride_inner + channel, v", "to + (inner ^ 1) * cache.stride_inner + channel, v", 8)),
    ("gqa_rows", Bug("keys beyond the cache's rows", "static_cast<u32>(position) % cache.rows.rows);", "static_cast<u32>(position));", 8)),
    ("gqa_rows", Bug("keys of an idle row", "if (position < 0 || sequence >= cache.rows.sequences) return;", "", 8)),
    ("gqa_rows", Bug("keys with the queries' blocks", "p.keys, block - p.query_end", "p.keys, block", 8)),
    ("gqa_rows", Bug("values of the first token", "(p.values, block - p.key_end)", "(p.values, 0)", 8)),
    ("attention_heads", Bug("one head less", "if (block < p.query_end)", "if (block + 1 < p.query_end)", 8)),
    ("attention_heads", Bug("the index again for the queries", "rope_block<S.query>(p.query, block)", "rope_block<S.query>(p.index, block)", 8)),
    ("attention_heads", Bug("the index has the queries' norm", "rope_block<S.index>(p.index", "rope_block<S.query>(p.index", 8)),
    ("attention_rows", Bug("rows written from the wrong block on", "(p.write, block - p.norm_end)", "(p.write, block)", 8)),
    ("attention_rows", Bug("one norm less", "if (block < p.norm_end) return norm", "if (block + 1 < p.norm_end) return norm", 8)),
    ("attention_rows", Bug("the second compressor is the first", "if (block < p.main_end) return compressor", "if (block <= p.main_end) return compressor", 8)),
    ("attention_rows", Bug("one compressor twice", "compressor_block<S.index>(p.index, block - p.main_end)", "compressor_block<S.index>(p.main, block - p.main_end)", 8)),
    ("project_pair", Bug("the second from the wrong block on", "(p.second, block - p.first_blocks)", "(p.second, block)", 8)),
    ("project_pair", Bug("one block less of the first", "if (block < p.first_blocks)", "if (block + 1 < p.first_blocks)", 8)),
    ("project_pair", Bug("the first twice", "(p.second, block - p.first_blocks)", "(p.first, block - p.first_blocks)", 8)),
    ("project_pair", Bug("a warp is left out", "u32 warp = 1; warp < kProjectWarps", "u32 warp = 2; warp < kProjectWarps", 8)),
    ("project_rounds", Bug("a lane has its own largest", "tile::amax_over<4>(amax)", "amax", 8)),
    ("project_rounds", Bug("scales of other rows", "ptx::lane_index() % 4 * 2 + i) * 4)", "ptx::lane_index() % 4 * 2) * 4)", 8)),
    ("project_rounds", Bug("codes of a pair change places", "pair(word[2 * i]) | pair(word[2 * i + 1]) << 16", "pair(word[2 * i + 1]) | pair(word[2 * i]) << 16", 8)),
]  # fmt: skip

test_clean, test_bugs = bug_tests(CASES, BUGS, check_caught)
