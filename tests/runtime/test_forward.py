"""The forward pass against goldens and a float64 reference, in both numerics, and its independence of chunks."""

from __future__ import annotations

import numpy as np
import pytest
from golden import tiny_v4
from reference import deepseek_v4_model
from runtime.decode import Load

from deep_gemm.models import model_path

# fp32 arithmetic over 3 blocks; logits have a standard deviation of 4.3. What the model's makers ask for.
EXACT_TOLERANCE = 2e-4


@pytest.mark.races
def test_logits_of_the_golden_prompt(load: Load) -> None:
    ids = tiny_v4.ids("p0")
    got = load("exact").session(window=1).logits_of(ids)
    assert abs(got - tiny_v4.logits("p0")).max() < EXACT_TOLERANCE


def test_a_long_prompt(load: Load) -> None:
    """Past token 127 the window slides and HCA has a row; past token 67 the indexer leaves rows out. Logits, those of the
    MTP block, and every choice."""
    ids = tiny_v4.ids("p1")[:134]
    got = load("exact").session(window=2).trace_of(ids, depth=1)
    assert abs(got["logits"] - tiny_v4.logits("p1")[: len(ids)]).max() < EXACT_TOLERANCE
    model = deepseek_v4_model.Model(model_path("tiny_v4"))
    drafts = []
    for i, token in enumerate(ids):
        if i > 0:
            drafts.append(model.draft(model.streams[-1], i - 1, token)[1])
        model.feed(token)
    assert abs(got["mtp.0.logits.1"][1:] - np.stack(drafts)).max() < EXACT_TOLERANCE
    for rows, want in zip(got["layers.1.picks"], model.blocks[1].picks, strict=True):
        assert [int(row) for row in rows if row >= 0] == want
    experts = {f"layers.{i}": block.chosen for i, block in enumerate(model.blocks)}
    for name, chosen in experts.items():
        assert same_sets(got[f"{name}.experts"], chosen), name
    assert same_sets(got["mtp.0.experts"][1:], model.mtp.chosen)


def same_sets(got: np.ndarray, want: list[np.ndarray]) -> bool:
    return np.array_equal(np.sort(got, axis=1), np.sort(np.stack(want), axis=1))


def test_chained_drafts(load: Load) -> None:
    """Logits of three drafts of each token, over the true tokens, each from the streams of the draft before. (The reference's
    correlate by 0.994 with those of the code that trained the model, which had the weights before they were quantised:
    as much as the trunk's logits do.)"""
    ids = tiny_v4.ids("p0")[:8]
    got = load("exact").session(window=2).trace_of(ids, chunk=1, depth=3)
    model = deepseek_v4_model.Model(model_path("tiny_v4"))
    for i, token in enumerate(ids):
        streams = model.streams[-1] if i > 0 else None
        for depth, following in enumerate(ids[i : i + 3] if streams is not None else [], 1):
            # The rows of later drafts are replaced when their own tokens come.
            streams, want = model.draft(streams, i + depth - 2, following)
            assert abs(got[f"mtp.0.logits.{depth}"][i] - want).max() < EXACT_TOLERANCE, (i, depth)
        model.feed(token)
    assert [len(got[f"mtp.0.logits.{depth}"]) for depth in (1, 2, 3)] == [8, 7, 6]
    with pytest.raises(ValueError, match="chunks of 1 for more than one draft"):
        load("exact").session(window=2).trace_of(ids, depth=2)
    with pytest.raises(ValueError, match="a window of 1 row"):
        load("exact").session(window=1).trace_of(ids, depth=1)


def test_fp8_cache_against_the_reference(load: Load) -> None:
    """FP8 rows and the Hadamard FP4 indexer. A value at the middle of two codes may fall to either side: with fp32
    activations that happens to few values, and each moves a logit by much less than this bound."""
    ids = tiny_v4.ids("p0")[:12]
    model = deepseek_v4_model.Model(model_path("tiny_v4"), quantized=True)
    want = np.stack([model.feed(token) for token in ids])
    got = load("fp8_cache").session(window=1).logits_of(ids)
    assert abs(got - want).max() < 2e-2
    assert (got.argmax(1) == want.argmax(1)).all()


@pytest.mark.races
def test_released_numerics_stay_near_the_exact_ones(load: Load) -> None:
    """bf16 and FP8 activations: the goldens' authors measured 59.5 % against 59.5 % right tokens and a loss 0.002 higher;
    here the probabilities given to the right tokens have to agree."""
    ids = tiny_v4.ids("p0")[:20]
    got = load("released").session(window=1).logits_of(ids).astype(np.float64)
    want = tiny_v4.logits("p0")[:20].astype(np.float64)

    def loss(logits: np.ndarray) -> float:
        top = logits.max(1, keepdims=True)
        log_sum = np.log(np.exp(logits - top).sum(1)) + top[:, 0]
        return float((log_sum[:-1] - logits[np.arange(len(ids) - 1), ids[1:]]).mean())

    assert abs(got - want).max() > 1e-2, "the released numerics are not in use"
    assert abs(loss(got) - loss(want)) < 0.1
    assert (got.argmax(1) == want.argmax(1)).mean() > 0.8


@pytest.mark.parametrize("chunk", [1, 3])
def test_chunks_change_no_bit(load: Load, chunk: int) -> None:
    ids = tiny_v4.ids("p0")[:7]
    whole, parts = load("exact").session(window=1), load("exact").session(window=1)
    a, b = whole.logits_of(ids), parts.logits_of(ids, chunk)
    assert np.array_equal(a.view(np.uint32), b.view(np.uint32))
    assert whole.state_digest() == parts.state_digest()
