"""Launches that serve a few rows alone, in a model whose queries have the rank that they take: the bits of many rows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from runtime.checkpoints import V4, write_random_v4
from runtime.decode import WITHOUT_RACES

from deep_gemm import _C, Engine

SHAPES = {
    "hidden_size": 128,
    "moe_intermediate_size": 128,
    "num_attention_heads": 4,
    "head_dim": 512,
    "qk_rope_head_dim": 64,
    "q_lora_rank": 1024,
    "o_lora_rank": 128,
    "index_n_heads": 4,
    "index_head_dim": 128,
    "hc_mult": 4,
    "num_hash_layers": 0,
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_v4(tmp_path_factory.mktemp("few_rows"), released=True, **SHAPES)


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_the_launches_that_few_rows_have(rows: int) -> None:
    speed = _C.ModelSpeed(
        json.dumps({**V4, **SHAPES}), device=WITHOUT_RACES, context=128, sequences=1, max_rows=32
    )
    names = speed.kernels("prefill", rows)
    assert {"query_rows", "query_index"} <= set(names) and "attention_rows" not in names


def test_few_rows_have_the_bits_of_many(device: _C.Device, checkpoint: Path) -> None:
    """Both kinds of layers, past the window and past what the indexer picks: streams, caches and logits."""
    ids = np.random.default_rng(5).integers(2, 64, 26).tolist()
    engine = Engine(checkpoint, device=device, numerics="released", context=128, max_rows=32)

    def fed(chunk: int) -> tuple[np.ndarray, object]:
        session = engine.session(window=1)
        return session.logits_of(ids, chunk).view(np.uint32), session.state_digest()

    whole, state = fed(0)
    for chunk in (1, 2, 3):
        logits, digest = fed(chunk)
        assert np.array_equal(logits, whole), chunk
        assert digest == state, chunk
