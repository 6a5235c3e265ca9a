"""The running compressor against pooling whole windows in float64: both ratios, chunks, several sequences, undo."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from certificate import assert_batch_invariant
from ops_cases import Array, assert_close, poisoned, real, run, same_bits
from reference import deepseek_v4 as ref

from deep_gemm import ops

FREQUENCIES = ops.rope_frequencies(64, 1.6e5, yarn_factor=16)
WIDE = ref.frequencies(64, 1.6e5, (16, 65536, 32, 1))


def case(tokens: int, dim: int, ratio: int, overlap: bool) -> dict[str, Any]:
    rng = np.random.default_rng(dim + ratio)
    width = dim * (2 if overlap else 1)
    return {
        "kv": real(rng, (tokens, width)),
        "gate": real(rng, (tokens, width), scale=3),
        "ape": real(rng, (ratio, width)),
        "weight": real(rng, (dim,), "bf16"),
        "frequencies": FREQUENCIES,
        "ratio": ratio,
        "overlap": overlap,
    }


def expected_rows(c: dict[str, Any]) -> Array:
    pooled = ref.compressed_rows(c["kv"], c["gate"], c["ape"], c["ratio"], c["overlap"])
    return np.stack(
        [
            ref.rotate(ref.rms_norm(row, c["weight"], 1e-6), w * c["ratio"], WIDE)
            for w, row in enumerate(pooled)
        ]
    )


def state_of(sequences: int, dim: int, overlap: bool) -> Array:
    return poisoned((sequences, 9 if overlap else 3, dim))


def chunk(c: dict[str, Any], begin: int, end: int) -> dict[str, Any]:
    """Tokens begin to end of one sequence."""
    return {
        **c,
        "kv": c["kv"][begin:end],
        "gate": c["gate"][begin:end],
        "positions": np.arange(begin, end, dtype=np.int32),
    }


@pytest.mark.parametrize(
    ("dim", "ratio", "overlap", "tokens"),
    [(512, 4, True, 15), (128, 4, True, 9), (512, 16, False, 40), (128, 128, False, 130), (128, 4, True, 3)],
)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_rows(device: Any, dim: int, ratio: int, overlap: bool, tokens: int, dtype: str) -> None:
    c = case(tokens, dim, ratio, overlap)
    outputs = {"state": state_of(1, dim, overlap), "rows": poisoned((1, tokens // ratio + 1, dim), dtype)}
    rows = run(device, "compressor_update", outputs, **chunk(c, 0, tokens))["rows"]
    if tokens >= ratio:
        assert_close(rows[0, :-1], expected_rows(c), 2e-5)
    assert np.isnan(rows[0, -1].astype(np.float32)).all(), "no row before its window is full"


@pytest.mark.parametrize(
    ("ratio", "overlap", "begin", "end"),
    [(4, True, 6, 81), (4, True, 0, 64), (4, True, 7, 132), (16, False, 5, 75), (16, False, 0, 128)],
)
def test_many_tokens_on_several_ctas(device: Any, ratio: int, overlap: bool, begin: int, end: int) -> None:
    """The bits of one CTA, which is what a call that names sequences gets."""
    c = case(end, 128, ratio, overlap)
    outputs = {"state": state_of(1, 128, overlap), "rows": poisoned((1, end // ratio + 1, 128))}
    if begin:
        outputs = run(device, "compressor_update", outputs, **chunk(c, 0, begin))
    many = run(device, "compressor_update", outputs, **chunk(c, begin, end))
    one = run(
        device,
        "compressor_update",
        outputs,
        **chunk(c, begin, end),
        sequences=np.zeros(end - begin, np.int32),
    )
    assert same_bits(many["rows"], one["rows"])
    assert same_bits(many["state"], one["state"])


@pytest.mark.parametrize("cuts", [(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11), (5,), (4, 8), (3, 9)], ids=str)
def test_any_chunks_give_the_same_bits(device: Any, cuts: tuple[int, ...]) -> None:
    c = case(12, 128, 4, True)
    outputs = {"state": state_of(1, 128, True), "rows": poisoned((1, 4, 128))}
    whole = run(device, "compressor_update", outputs, **chunk(c, 0, 12))
    bounds = (0, *cuts, 12)
    for begin, end in pairwise(bounds):
        outputs = run(device, "compressor_update", outputs, **chunk(c, begin, end))
    assert same_bits(outputs["rows"], whole["rows"]) and same_bits(outputs["state"], whole["state"])


def test_sequences_do_not_meet(device: Any) -> None:
    """Rows of two sequences in turns, an idle one and one of no sequence."""
    c = case(8, 128, 4, True)
    order = np.array([0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 7, 7])
    positions = order.astype(np.int32)
    sequences = np.array([0, 1] * 8 + [0, 2], np.int32)
    positions[-2] = -1
    kv = np.where((sequences == 1)[:, None], -1, 1).astype(np.float32) * c["kv"][order]
    outputs = {"state": state_of(2, 128, True), "rows": poisoned((2, 2, 128))}
    got = run(
        device,
        "compressor_update",
        outputs,
        **{**c, "kv": kv, "gate": c["gate"][order]},
        positions=positions,
        sequences=sequences,
    )
    alone = run(
        device,
        "compressor_update",
        {"state": state_of(1, 128, True), "rows": poisoned((1, 2, 128))},
        **chunk(c, 0, 8),
    )
    assert same_bits(got["rows"][:1], alone["rows"])
    assert (got["rows"][1] == -got["rows"][0]).all()


@pytest.mark.parametrize("closes", [False, True])
def test_sequences_are_independent(device: Any, closes: bool) -> None:
    """The certificate of a step of many sequences; poisoned ones have a state of poison too."""
    c = case(4, 128, 4, True)
    state = np.concatenate([state_after(device, chunk(c, 0, tokens)) for tokens in (3, 4, 2)])
    rows = {"kv": c.pop("kv")[:3], "gate": c.pop("gate")[:3], "state": state}
    rows["positions"] = np.array([3 if closes else 1, 4, 2], np.int32)

    def call(some: dict[str, Array]) -> dict[str, Array]:
        count = len(some["kv"])
        outputs = {"state": some.pop("state"), "rows": np.zeros((count, 2, 128), np.float32)}
        sequences = np.arange(count, dtype=np.int32)
        return run(device, "compressor_update", outputs, **c, **some, sequences=sequences)

    assert_batch_invariant(call, rows)


def state_after(device: Any, tokens: dict[str, Any]) -> Array:
    outputs = {"state": state_of(1, 128, True), "rows": poisoned((1, 2, 128))}
    return run(device, "compressor_update", outputs, **tokens)["state"]


@pytest.mark.parametrize("accepted", [0, 1, 2, 3])
@pytest.mark.parametrize("start", [4, 5, 6, 7])
def test_undo(device: Any, accepted: int, start: int) -> None:
    """Four drafted tokens, taken back to `accepted`, then others: the bits of never having drafted."""
    c, other = case(16, 128, 4, True), case(16, 128, 4, True)
    other["kv"] = other["kv"] + np.float32(1)
    outputs = {"state": state_of(2, 128, True)[:, :, :], "rows": poisoned((2, 5, 128))}
    begin = run(device, "compressor_update", outputs, **chunk(c, 0, start))
    end = start + accepted + 1
    drafted = run(
        device, "compressor_update", {**begin, "journal": poisoned((4, 9, 128))}, **chunk(c, start, start + 4)
    )
    state = run(
        device,
        "compressor_restore",
        {"state": drafted["state"]},
        journal=drafted["journal"],
        row=np.array([accepted], np.int32),
    )["state"]
    after = run(
        device, "compressor_update", {"state": state, "rows": drafted["rows"]}, **chunk(other, end, 16)
    )
    plain = run(device, "compressor_update", begin, **chunk(c, start, end))
    plain = run(device, "compressor_update", plain, **chunk(other, end, 16))
    assert same_bits(after["state"][:1], plain["state"][:1]) and same_bits(
        after["rows"][:, :4], plain["rows"][:, :4]
    )


def test_restore_of_nothing(device: Any) -> None:
    state = np.arange(2 * 3 * 8, dtype=np.float32).reshape(2, 3, 8)
    journal = -np.ones((2, 3, 8), np.float32)
    for row in (-1, 2):
        assert same_bits(
            run(
                device, "compressor_restore", {"state": state}, journal=journal, row=np.array([row], np.int32)
            )["state"],
            state,
        )
    got = run(
        device,
        "compressor_restore",
        {"state": state},
        journal=journal,
        row=np.array([1], np.int32),
        sequence=1,
    )["state"]
    assert same_bits(got[0], state[0]) and (got[1] == -1).all()


@pytest.mark.parametrize("finish", ["fp8_round_trip", "hadamard", "hadamard_fp4"])
def test_finish(device: Any, finish: str) -> None:
    dim = 512 if finish == "fp8_round_trip" else 128
    c = case(8, dim, 4, True)
    outputs = {"state": state_of(1, dim, True), "rows": poisoned((1, 2, dim))}
    got = run(device, "compressor_update", outputs, **chunk(c, 0, 8), finish=finish)["rows"][0]
    exact = expected_rows(c)
    if finish == "hadamard":
        assert_close(got, ref.hadamard(exact), 2e-5)
        return
    rounded = ref.fp8_round_trip(exact, 64) if dim == 512 else ref.fp4_round_trip(exact)
    assert (np.abs(got - rounded) > 1e-9).mean() < 0.01
    if dim == 512:
        pages = np.zeros((1, 1, ops.latent_page_bytes(2)), np.int8)
        pages = run(
            device,
            "compressor_update",
            {"state": outputs["state"], "rows": pages},
            **chunk(c, 0, 8),
            page_rows=2,
        )["rows"]
        assert (ref.read_fp8_rows(pages, 2)[0] == got).all()
    else:
        pages = np.full((1, 1, ops.index_page_bytes(2)), 0x7F, np.int8)
        pages = run(
            device,
            "compressor_update",
            {"state": outputs["state"], "rows": pages},
            **chunk(c, 0, 8),
            finish=finish,
            page_rows=2,
        )["rows"]
        assert (ref.read_fp4_rows(pages, 2)[0] == got).all()
        assert (pages[0, 0, 2 * 68 :] == 0x7F).all(), "beyond the rows"


def test_bad_input(emulator: Any) -> None:
    c = chunk(case(4, 128, 4, True), 0, 4)
    outputs = {"state": state_of(1, 128, True), "rows": poisoned((1, 2, 128))}
    with pytest.raises(ValueError, match=r"state has shape \[1, 3, 128\], expected \[1, 9, 128\]"):
        ops.compressor_update(**c, **{**outputs, "state": state_of(1, 128, False)}, device=emulator)
    with pytest.raises(ValueError, match=r"ape has shape \[4, 256\], expected \[5, 256\]"):
        ops.compressor_update(**{**c, "ratio": 5}, **outputs, device=emulator)
    pages = np.zeros((1, 1, ops.index_page_bytes(2)), np.int8)
    with pytest.raises(ValueError, match="FP4 rows with finish hadamard, expected hadamard_fp4"):
        ops.compressor_update(
            **c, **{**outputs, "rows": pages}, page_rows=2, finish="hadamard", device=emulator
        )
    with pytest.raises(ValueError, match="finish is 'fp16', expected one of none"):
        ops.compressor_update(**c, **outputs, finish="fp16", device=emulator)
