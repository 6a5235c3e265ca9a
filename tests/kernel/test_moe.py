"""The kernels around the products of a mixture of experts: grouping, activation, combination; edges first."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from reference import fp4
from reference import moe as reference
from reference import quantize as reference_quantize

from deep_gemm import _C
from deep_gemm.demo.arrays import put, take

Array = np.ndarray[Any, np.dtype[Any]]
BF16 = ml_dtypes.bfloat16
FP8 = ml_dtypes.float8_e4m3fn
POISON = -77


def run_group(
    device: Any, ids: Array, experts: int, alignment: int = 1, first_expert: int = 0
) -> dict[str, Array]:
    """moe_group with poisoned outputs, one slot more than it may use."""
    pairs = ids.size
    slots = _C.moe_slots(pairs, experts, alignment)
    shapes = {
        "offsets": (experts + 1,), "ends": (experts,), "entries": (experts, 4), "head": (4,),
        "slot_pairs": (slots + 1,), "slot_tokens": (slots + 1,), "pair_slots": (pairs,),
    }  # fmt: skip
    out = {name: put(device, np.full(shape, POISON, np.int32)) for name, shape in shapes.items()}
    _C.moe_group(put(device, ids), **out, first_expert=first_expert, alignment=alignment, device=device)
    return {name: take(tensor) for name, tensor in out.items()}


def check_group(device: Any, ids: Array, experts: int, alignment: int = 1, first_expert: int = 0) -> None:
    got = run_group(device, ids, experts, alignment, first_expert)
    expected = reference.group(ids, experts, alignment, first_expert)
    used = len(expected.slot_pairs)
    assert (got["offsets"] == expected.offsets).all() and (got["ends"] == expected.ends).all()
    assert got["head"].tolist() == [len(expected.entries), 0, 0, 0]
    listed = got["entries"][: len(expected.entries)]
    assert [tuple(row[:3]) for row in listed.tolist()] == expected.entries
    assert (got["entries"][len(expected.entries) :] == POISON).all()
    assert (got["slot_pairs"][:used] == expected.slot_pairs).all() and (
        got["slot_pairs"][used:] == POISON
    ).all()
    tokens = np.where(expected.slot_pairs < 0, -1, expected.slot_pairs // ids.shape[1])
    assert (got["slot_tokens"][:used] == tokens).all() and (got["slot_tokens"][used:] == POISON).all()
    assert (got["pair_slots"] == expected.pair_slots).all()


def random_ids(tokens: int, top_k: int, experts: int, seed: int = 0, skip: float = 0.0) -> Array:
    rng = np.random.default_rng(seed)
    ids = (
        np.stack([rng.permutation(max(experts, top_k))[:top_k] for _ in range(tokens)])
        if tokens
        else np.zeros((0, top_k))
    )
    ids = np.where(rng.random(ids.shape) < skip, -1, ids)
    return ids.astype(np.int32)


@pytest.mark.parametrize("alignment", [1, 8, 128])
@pytest.mark.parametrize(
    ("tokens", "top_k", "experts"),
    [(0, 6, 8), (1, 1, 8), (1, 6, 256), (3, 8, 512), (33, 2, 9), (65, 6, 16), (300, 4, 12), (7, 16, 40)],
)
def test_group(device: Any, tokens: int, top_k: int, experts: int, alignment: int) -> None:
    check_group(device, random_ids(tokens, top_k, experts), experts, alignment)


@pytest.mark.parametrize("expert", [0, 3, 7])
def test_all_tokens_to_one_expert(device: Any, expert: int) -> None:
    check_group(device, np.full((70, 1), expert, np.int32), 8, 64)
    check_group(device, np.full((40, 3), expert, np.int32), 8)  # named three times by each token


def test_skipped_pairs(device: Any) -> None:
    check_group(device, random_ids(40, 4, 16, seed=1, skip=0.4), 16, 8)
    check_group(device, np.full((9, 2), -1, np.int32), 8)
    check_group(device, np.array([[8, 2**31 - 1], [-(2**31), 3]], np.int32), 8)


def test_a_part_of_the_experts(device: Any) -> None:
    for first in (0, 8, 24):
        check_group(device, random_ids(50, 4, 32, seed=2), 8, 8, first)


@pytest.mark.parametrize("seed", range(4))
def test_group_under_any_schedule(seed: int) -> None:
    check_group(
        _C.Device(f"emulator:sm_90a,sms=4,seed={seed}"), random_ids(90, 4, 10, seed=3, skip=0.2), 10, 8
    )


# ---- Activation


def run_swiglu(
    device: Any,
    h: Array,
    slot_pairs: Array,
    used: int,
    weights: Array | None,
    limit: float | None,
    rule: str = "exact",
    per_token: bool = False,
) -> tuple[Array, Array]:
    slots, n = h.shape[0], h.shape[1] // 2
    codes = put(device, np.full((slots, n), 0xA5, np.uint8).view(FP8))
    shape = (slots,) if per_token else (slots, -(-n // 128))
    scales = put(device, np.full(shape, np.nan, np.float32))
    _C.moe_swiglu(
        put(device, h), codes, scales, put(device, slot_pairs), put(device, np.array([used], np.int32)),
        None if weights is None else put(device, weights), limit, rule, device=device,
    )  # fmt: skip
    return take(codes), take(scales)


@pytest.mark.parametrize("limit", [None, 2.0])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("slots", "n"), [(1, 16), (5, 128), (9, 208), (3, 1040)])
def test_swiglu(device: Any, slots: int, n: int, weighted: bool, limit: float | None) -> None:
    rng = np.random.default_rng(slots)
    h = (rng.standard_normal((slots, 2 * n)) * 3).astype(BF16)
    slot_pairs = rng.permutation(slots).astype(np.int32)
    weights = rng.random(slots).astype(np.float32) if weighted else None
    codes, scales = run_swiglu(device, h, slot_pairs, slots, weights, limit)
    t = reference.swiglu(h[:, :n], h[:, n:], limit) * (
        weights[slot_pairs][:, None] if weights is not None else 1.0
    )
    blocks = np.zeros((slots, -(-n // 128) * 128))
    blocks[:, :n] = np.abs(t)
    amax = np.maximum(blocks.reshape(slots, -1, 128).max(-1), 1e-4)
    # The scale is that of a bf16 number within half a step of t; a code is within half a step of E4M3 and of bf16.
    assert (np.abs(scales - amax / 448) <= amax / 448 * (2.0**-8 + 2.0**-20)).all()
    back = reference.dequantise(codes, scales)
    step = np.repeat(scales, 128, axis=-1)[:, :n] * 2.0**-10
    assert (np.abs(back - t) <= np.abs(t) * (2.0**-4 + 2.0**-8) + step).all()


@pytest.mark.parametrize("limit", [None, 2.0])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("slots", "n"), [(1, 16), (5, 208), (3, 2048), (2, 4368)])
def test_swiglu_with_a_scale_for_each_slot(
    device: Any, slots: int, n: int, weighted: bool, limit: float | None
) -> None:
    """The activations are those of scales for 128: bf16, whose largest makes the scale, and codes follow bit for bit."""
    rng = np.random.default_rng(slots)
    h = (rng.standard_normal((slots, 2 * n)) * 3).astype(BF16)
    h[0, n // 2] = 40  # the largest anywhere
    slot_pairs = rng.permutation(slots).astype(np.int32)
    slot_pairs[slots // 2] = -1 if slots > 1 else 0
    weights = rng.random(slots).astype(np.float32) if weighted else None
    codes, scales = run_swiglu(device, h, slot_pairs, slots, weights, limit, per_token=True)
    rows = put(device, np.zeros((slots, n), BF16))
    _C.moe_swiglu(
        put(device, h), rows, None, put(device, slot_pairs), put(device, np.array([slots], np.int32)),
        None if weights is None else put(device, weights), limit, "exact", device=device,
    )  # fmt: skip
    expected = reference_quantize.fp8_row(take(rows).astype(np.float32))
    mine = slot_pairs >= 0
    assert (scales[mine] == expected[1][mine]).all() and np.isnan(scales[~mine]).all()
    assert (codes.view(np.uint8)[mine] == expected[0][mine]).all()
    assert (codes.view(np.uint8)[~mine] == 0xA5).all()


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("slots", "n"), [(1, 16), (5, 208), (3, 2048), (2, 4368)])
def test_swiglu_as_two_terms(device: Any, slots: int, n: int, weighted: bool) -> None:
    """The terms of what it leaves as bf16, zeros up to a multiple of 256, other slots alone."""
    rng = np.random.default_rng(slots)
    h = (rng.standard_normal((slots, 2 * n)) * 3).astype(BF16)
    slot_pairs = rng.permutation(slots).astype(np.int32)
    slot_pairs[slots // 2] = -1 if slots > 1 else 0
    weights = rng.random(slots).astype(np.float32) if weighted else None
    padded = -(-n // 256) * 256
    rows = put(device, np.zeros((slots, n), BF16))
    terms = put(device, np.full((slots, 2, padded), 0xA5, np.uint8).view(FP8))
    scales = put(device, np.full(slots, np.nan, np.float32))
    for codes, scale in ((rows, None), (terms, scales)):
        _C.moe_swiglu(
            put(device, h), codes, scale, put(device, slot_pairs), put(device, np.array([slots], np.int32)),
            None if weights is None else put(device, weights), 2.0, "exact", device=device,
        )  # fmt: skip
    high, low, scale = fp4.two_terms(take(rows))
    got, mine = take(terms), slot_pairs >= 0
    assert (take(scales)[mine] == scale[mine, 0]).all() and np.isnan(take(scales)[~mine]).all()
    assert (got.astype(np.float64)[mine, 0, :n] == high[mine]).all()
    assert (got.astype(np.float64)[mine, 1, :n] == low[mine]).all()
    assert (got.view(np.uint8)[mine][:, :, n:] == 0).all() and (got.view(np.uint8)[~mine] == 0xA5).all()


def test_swiglu_of_numbers_that_matter(device: Any) -> None:
    """Far gates, zeros, the limit itself, infinity and NaN; codes follow from exact bf16 activations."""
    gates = np.array(
        [-200, -88, -20, -1, -0.0, 0.0, 1, 20, 88, 200, 10, 10.0625, np.inf, np.nan, 5, 5], np.float32
    )
    h = np.zeros((1, 32), np.float32)
    h[0, :16], h[0, 16:] = gates, 1.0
    h[0, 16 + 14], h[0, 16 + 15] = 30.0, -30.0
    h = h.astype(BF16)
    for limit in (None, 10.0):
        one = np.delete(np.arange(16), [12, 13])
        finite = np.concatenate(
            [h[:, one], np.zeros((1, 2), BF16), h[:, 16 + one], np.zeros((1, 2), BF16)], axis=1
        )
        codes, scales = run_swiglu(device, finite, np.zeros(1, np.int32), 1, None, limit)
        t = reference.bf16(reference.swiglu(finite[:, :16], finite[:, 16:], limit))
        expected = reference_quantize.fp8_128(t.astype(np.float32))
        assert (codes.view(np.uint8) == expected[0]).all() and (scales == expected[1]).all()
        codes, scales = run_swiglu(device, h, np.zeros(1, np.int32), 1, None, limit)
        assert np.isnan(scales).all() and np.isnan(codes.astype(np.float32)).all()  # a NaN is not hidden


def test_swiglu_leaves_other_slots_alone(device: Any) -> None:
    h = np.random.default_rng(0).standard_normal((6, 64)).astype(BF16)
    codes, scales = run_swiglu(device, h, np.array([0, -1, 1, 2, 3, 4], np.int32), 4, None, None)
    written = ~np.isnan(scales[:, 0])
    assert written.tolist() == [True, False, True, True, False, False]
    assert (codes.view(np.uint8)[~written] == 0xA5).all()


@pytest.mark.parametrize("rule", ["up", "nearest"])
def test_swiglu_with_powers_of_two(device: Any, rule: str) -> None:
    h = np.random.default_rng(0).standard_normal((4, 512)).astype(BF16)
    exact, rounded = (
        run_swiglu(device, h, np.arange(4, dtype=np.int32), 4, None, None, r)[1] for r in ("exact", rule)
    )
    assert (np.log2(rounded) % 1 == 0).all()
    assert ((rounded >= exact) | (rule == "nearest")).all() and (np.abs(np.log2(rounded / exact)) <= 1).all()


# ---- Combination


@pytest.mark.parametrize("out", ["bf16", "fp32"])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    ("tokens", "top_k", "n"), [(1, 1, 8), (3, 6, 72), (9, 8, 264), (0, 2, 16), (40, 16, 8)]
)
def test_combine(
    device: Any, tokens: int, top_k: int, n: int, weighted: bool, shared: bool, out: str
) -> None:
    rng = np.random.default_rng(tokens)
    y = rng.standard_normal((max(tokens * top_k, 1), n)).astype(BF16)
    slots = rng.permutation(tokens * top_k).astype(np.int32).reshape(tokens, top_k)
    slots[rng.random(slots.shape) < 0.2] = -1
    weights = rng.random((tokens, top_k)).astype(np.float32)
    extra = rng.standard_normal((tokens, n)).astype(BF16)
    d = np.full((tokens, n), np.nan, np.float32).astype(np.float32 if out == "fp32" else BF16)
    target = put(device, d)
    _C.moe_combine(
        put(device, y), put(device, slots), target, put(device, weights) if weighted else None,
        put(device, extra) if shared else None, device=device,
    )  # fmt: skip
    expected = np.zeros((tokens, n), np.float32)
    for j in range(top_k):  # fp32 in the order of j: the bits are known
        row = y[np.maximum(slots[:, j], 0)].astype(np.float32)
        term = row * weights[:, j : j + 1] if weighted else row
        expected = np.where(slots[:, j : j + 1] >= 0, expected + term, expected)
    if shared:
        expected = expected + extra.astype(np.float32)
    assert (take(target) == expected.astype(d.dtype)).all()


# ---- Bad arguments


def group_arguments(**changes: Any) -> dict[str, Any]:
    i32 = np.int32
    arguments: dict[str, Any] = {
        "topk_ids": np.zeros((4, 2), i32), "offsets": np.full(9, POISON, i32), "ends": np.zeros(8, i32),
        "entries": np.zeros((8, 4), i32), "head": np.zeros(4, i32), "slot_pairs": np.zeros(8, i32),
        "slot_tokens": np.zeros(8, i32), "pair_slots": np.zeros(8, i32),
    }  # fmt: skip
    return arguments | changes


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"topk_ids": np.zeros((4, 2), np.float32)}, TypeError, "topk_ids is fp32, expected int32"),
        ({"topk_ids": np.zeros(8, np.int32)}, ValueError, "topk_ids has shape [8], expected [any, any]"),
        ({"topk_ids": np.zeros((4, 17), np.int32)}, ValueError, "expected 1 to 16 experts a token"),
        ({"offsets": np.zeros(8, np.int32)}, ValueError, "offsets has shape [8], expected [9]"),
        ({"alignment": 128}, ValueError, "slot_pairs has 8 slots, expected at least 1024"),
        ({"alignment": 0}, ValueError, "alignment is 0, expected 1 to 1024"),
        ({"pair_slots": np.zeros(16, np.int32)[::2]}, ValueError, "pair_slots has stride 2"),
    ],
)
def test_bad_groups(emulator: Any, changes: dict[str, Any], error: type[Exception], text: str) -> None:
    arguments = group_arguments(**changes)
    with pytest.raises(error) as raised:
        _C.moe_group(**arguments, device=emulator)
    assert text in str(raised.value)
    assert "offsets" in changes or (arguments["offsets"] == POISON).all()


def test_bad_activations_and_sums(emulator: Any) -> None:
    h, ids = np.zeros((2, 64), BF16), np.zeros(2, np.int32)
    codes, scales, used = np.zeros((2, 32), FP8), np.zeros((2, 1), np.float32), np.zeros(1, np.int32)
    for changes, text in [
        ({"h": np.zeros((2, 40), BF16)}, "multiple of 16 channels"),
        ({"codes": np.zeros((2, 64), FP8)}, "codes has shape [2, 64], expected [2, 32]"),
        ({"limit": 0.0}, "limit is 0, expected a positive number"),
        ({"scale_rule": "down"}, "scale_rule: got 'down'"),
    ]:
        arguments = {"h": h, "codes": codes, "scales": scales, "slot_pairs": ids, "num_slots": used} | changes
        with pytest.raises(ValueError) as raised:
            _C.moe_swiglu(**arguments, device=emulator)
        assert text in str(raised.value)
    y, slots, d = np.zeros((4, 16), BF16), np.zeros((2, 2), np.int32), np.zeros((2, 16), BF16)
    for changes, text in [
        ({"y": np.zeros((4, 12), BF16)}, "multiple of 8"),
        ({"d": np.zeros((3, 16), BF16)}, "d has shape [3, 16], expected [2, 16]"),
        ({"weights": np.zeros((2, 3), np.float32)}, "weights has shape [2, 3], expected [2, 2]"),
        ({"shared": np.zeros((2, 8), BF16)}, "shared has shape [2, 8], expected [2, 16]"),
    ]:
        with pytest.raises(ValueError) as raised:
            _C.moe_combine(**({"y": y, "pair_slots": slots, "d": d} | changes), device=emulator)
        assert text in str(raised.value)
