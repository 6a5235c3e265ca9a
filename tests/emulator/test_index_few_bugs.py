"""Deliberate bugs in the indexer of few tokens, which must be caught: a cluster that shares heads and scores."""

from __future__ import annotations

import numpy as np
from emulator.op_bugs import BF16, Bug, Launch, bug_tests, check_caught, pack, text
from ops_cases import real
from reference import deepseek_v4 as ref

from deep_gemm import ops

CTAS, HEADS, ROWS, VISIBLE, K = 3, 64, 420, 401, 30


def index_few() -> tuple[Launch, str]:
    """No two scores of this seed are so near that float64 orders them in another way where it matters."""
    rng = np.random.default_rng(48)
    query, weights = real(rng, (1, HEADS, 128), "bf16"), real(rng, (1, HEADS))
    rows, position = real(rng, (1, ROWS, 128), "bf16"), VISIBLE * 4 + 1
    wide = ref.frequencies(64, 1e4)
    turned = ref.to_bf16(ref.hadamard(ref.to_bf16(ref.rotate(query[0].astype(np.float64), position, wide))))
    scores = ref.index_scores(turned, weights[0], rows[0, :VISIBLE].astype(np.float64), 0.25)
    order = np.argsort(-scores, kind="stable")
    assert scores[order[K - 1]] - scores[order[K]] > 1e-3
    arrays = {
        "query": query.astype(BF16),
        "weights": weights,
        "rows": rows,
        "positions": np.array([position], np.int32),
        "frequencies": ops.rope_frequencies(64, 1e4),
        "picks": np.full((1, K), -9, np.int32),
    }
    params = pack(
        ["query", (HEADS * 128,), (128,), "weights", (HEADS,), ["rows", (0,), (128,), 1, ROWS, 1, 0, None],
         "positions", None, None, (0,), None, (0,), 1, HEADS, 128, 4, 0, 0.25, 0],
        "frequencies", "picks", 64, K, CTAS,
    )  # fmt: skip
    expected = {"picks": np.sort(order[:K])[None].astype(np.float64)}
    smem = -(-(2 * 8192 + 8 * 4 + 8 + 8 * 8 + 2048 * 6) // 128) * 128 + 64 * 324
    launch = Launch("deep_gemm::index_few<kSpec>", (CTAS,), 256, smem, arrays, params, expected, cluster=CTAS)
    return launch, text("index_few", "IndexFewSpec", ".finish = RowFinish::hadamard")


CASES = {"index_few": index_few}
BUGS = [
    ("index_few", Bug("heads read before they are there", "    if (!started) ptx::cluster_wait();\n    ptx::cluster_sync();\n", "    if (!started) ptx::cluster_wait();\n    ptx::sync_threads();\n")),
    ("index_few", Bug("scores read before they are there", "    ptx::cluster_sync();\n    if (rank > 0) return;", "    ptx::sync_threads();\n    if (rank > 0) return;")),
    ("index_few", Bug("heads stay where they are", "ptx::map_to_rank(heads + quad.place, i)", "ptx::map_to_rank(heads + quad.place, rank)", 8)),
    ("index_few", Bug("scores stay where they are", "ptx::map_to_rank(smem + plan_smem(kChoice).orders, 0)", "ptx::map_to_rank(smem + plan_smem(kChoice).orders, rank)", 8)),
    ("index_few", Bug("every warp's first scores", "row % share.per_warp", "row % 16", 8)),
    ("index_few", Bug("rows of the turn before", "fetch(unit + turns);", "fetch(unit);", 8)),
    ("index_few", Bug("heads of the turn before", "v = load_head(head + turns);", "v = load_head(head);", 8)),
    ("index_few", Bug("both quads of a piece in one place", "(lane / 2) + (upper ? 8 : 0)", "(lane / 2)", 8)),
    ("index_few", Bug("places are not taken", "    scores.take();\n", "")),
    ("index_few", Bug("one pick less", "choose<kChoice>(params.k", "choose<kChoice>(params.k - 1", 8)),
]  # fmt: skip

test_clean, test_bugs = bug_tests(CASES, BUGS, check_caught)
