"""Expert choice against float64: both scores, bias, hash tables, ties, and values that are no numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from certificate import assert_batch_invariant
from ops_cases import Array, assert_close, poisoned, real, run
from reference import deepseek_v4 as ref

from deep_gemm import ops


def outputs(rows: int, k: int) -> dict[str, Array]:
    return {"experts": poisoned((rows, k), "int32"), "weights": poisoned((rows, k))}


@pytest.mark.parametrize(("experts", "k"), [(256, 6), (16, 4), (5, 5), (1, 1), (384, 8), (1000, 32)])
@pytest.mark.parametrize("score", ["sqrt_softplus", "softmax"])
@pytest.mark.parametrize("biased", [True, False])
def test_choice(device: Any, experts: int, k: int, score: str, biased: bool) -> None:
    rng = np.random.default_rng(experts)
    logits, bias = real(rng, (4, experts), scale=3), real(rng, (experts,))
    out = run(
        device,
        "route",
        outputs(4, k),
        logits=logits,
        score=score,
        scale=1.5,
        **({"bias": bias} if biased else {}),
    )
    for t in range(4):
        ids, weights = ref.route(logits[t], bias if biased else None, k, score == "softmax", True, 1.5)
        assert (out["experts"][t] == ids).all()
        assert_close(out["weights"][t], weights, 1e-6)


def test_ties_and_no_numbers(device: Any) -> None:
    logits = np.zeros((4, 8), np.float32)
    logits[1, [2, 5, 7]] = 1
    logits[2] = -np.inf
    logits[3, :6] = np.nan
    out = run(device, "route", outputs(4, 3), logits=logits)
    assert out["experts"].tolist() == [[0, 1, 2], [2, 5, 7], [0, 1, 2], [6, 7, 0]]
    assert (out["weights"][2] == 0).all() and np.allclose(out["weights"][0], 1 / 3)
    bias = np.array([0, 0, 0, 0.5, 0, 0, 0.5, 0], np.float32)  # changes the choice, not the weights
    out = run(device, "route", outputs(1, 2), logits=logits[:1], bias=bias)
    assert out["experts"].tolist() == [[3, 6]] and np.allclose(out["weights"], 0.5)


def test_hash(device: Any) -> None:
    rng = np.random.default_rng(1)
    table = np.stack([rng.permutation(16)[:4] for _ in range(10)]).astype(np.int32)
    tokens, logits = np.array([3, 9, -1, 10, 0], np.int32), real(rng, (5, 16))
    out = run(device, "route", outputs(5, 4), logits=logits, hash=table, tokens=tokens, scale=2.5)
    for t, token in enumerate(tokens):
        if 0 <= token < 10:
            ids, weights = ref.route(logits[t], None, 4, False, True, 2.5, table[token])
            assert (out["experts"][t] == ids).all()
            assert_close(out["weights"][t], weights, 1e-6)
        else:
            assert (out["experts"][t] == -1).all() and (out["weights"][t] == 0).all()


def test_unnormalised(device: Any) -> None:
    logits = real(np.random.default_rng(2), (2, 12))
    out = run(device, "route", outputs(2, 3), logits=logits, score="softmax", normalize=False)
    for t in range(2):
        assert_close(out["weights"][t], ref.route(logits[t], None, 3, True, False, 1)[1], 1e-6)


def test_rows_are_independent(device: Any) -> None:
    logits = real(np.random.default_rng(3), (5, 40))
    assert_batch_invariant(
        lambda rows: run(device, "route", outputs(len(rows["logits"]), 6), **rows), {"logits": logits}
    )


def test_bad_input(emulator: Any) -> None:
    logits = np.zeros((2, 4), np.float32)
    with pytest.raises(
        ValueError, match="experts has 5 columns, expected 1 to 32 and no more than the 4 experts"
    ):
        ops.route(logits, **outputs(2, 5), device=emulator)
    with pytest.raises(ValueError, match="got one of hash and tokens"):
        ops.route(logits, **outputs(2, 2), tokens=np.zeros(2, np.int32), device=emulator)
    with pytest.raises(ValueError, match="score is 'sigmoid', expected one of sqrt_softplus, softmax"):
        ops.route(logits, **outputs(2, 2), score="sigmoid", device=emulator)
