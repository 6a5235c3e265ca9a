"""Dimensions unlike the shipped model's, against transformers' logits: chunks of any size, and decoding from the cache."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from golden import tiny_a
from runtime.checkpoints import write_checkpoint

from deep_gemm import _C, Engine

TOLERANCE = 2e-4  # what the model's makers ask for; both sides compute in fp32
PREFILL = 72


@pytest.fixture
def engine(device: _C.Device, tmp_path: Path) -> Engine:
    folder = write_checkpoint(tmp_path, tiny_a.config(), tiny_a.tensors())
    return Engine(folder, device=device, numerics="exact", context=128, max_rows=32)


def test_prefill_and_cached_decoding(engine: Engine) -> None:
    ids = [int(i) for i in tiny_a.arrays()["ids"]]
    want = tiny_a.arrays()["logits"]
    whole, parts = engine.session(), engine.session()
    got = whole.logits_of(ids)
    assert want.std() > 1 and abs(got - want).max() < TOLERANCE
    some = parts.logits_of(ids[:PREFILL], chunk=7)
    assert np.array_equal(some.view(np.uint32), got[:PREFILL].view(np.uint32))
    for end in range(PREFILL + 1, len(ids) + 1):
        assert parts.sync(ids[:end]) == end - 1
        assert np.array_equal(parts.logits().view(np.uint32), got[end - 1].view(np.uint32))
    assert parts.state_digest() == whole.state_digest()


def test_indexer_picks(engine: Engine) -> None:
    """The same rows at every position, of which there are more than can be picked from token 19 on."""
    data = tiny_a.arrays()
    chosen = engine.session().trace_of([int(i) for i in data["ids"]], chunk=13)
    for layer, want in zip((1, 3), data["picks"], strict=True):
        assert np.array_equal(np.sort(chosen[f"layers.{layer}.picks"], axis=1), want), layer
    hashed = tiny_a.tensors()["layers.0.ffn.gate.tid2eid"][data["ids"]]
    assert np.array_equal(chosen["layers.0.experts"], hashed)
