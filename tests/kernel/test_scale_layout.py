"""Scales into MN-major layout by a kernel, as they are and as packed exponents: bit for bit, edges first."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from reference import scale_layout as reference

from deep_gemm import _C, utils
from deep_gemm.demo.arrays import put, strided, take

Array = np.ndarray[Any, np.dtype[Any]]
POISON = -559038737

SHAPES = [
    (1, 1, 1),
    (1, 5, 3),
    (2, 67, 9),  # tails along both sides, batches
    (1, 64, 32),  # one tile
    (1, 65, 33),
    (3, 4, 130),
    (2, 0, 4),
    (2, 4, 0),
]


def powers_of_two(shape: tuple[int, ...], seed: int = 0) -> Array:
    """Of all exponents, with zeros and infinities, which have no mantissa either."""
    rng = np.random.default_rng(seed)
    return (rng.integers(0, 256, shape).astype(np.uint32) << 23).view(np.float32)


def laid_out(device: Any, sf: Array, order: str) -> Any:
    """[batches, mn, columns] with this dimension innermost; "apart": with gaps of NaN on both sides."""
    batches, mn, columns = sf.shape
    if order == "columns":
        return put(device, sf)
    if order == "rows":
        stored = put(device, np.ascontiguousarray(sf.swapaxes(1, 2)))
        return strided(stored, sf.shape, (mn * columns, 1, mn))
    wide = np.full((batches, mn + 2, columns + 3), np.nan, np.float32)
    wide[:, :mn, :columns] = sf
    return strided(put(device, wide), sf.shape, ((mn + 2) * (columns + 3), columns + 3, 1))


def output(device: Any, shape: tuple[int, int, int], dtype: Any) -> tuple[Any, Any]:
    """(all of a poisoned output, whose columns start at multiples of 16 bytes; its view)."""
    batches, mn, columns = shape
    pitch = utils.get_tma_aligned_size(mn, 4)
    whole = put(device, np.full((batches, columns, pitch), POISON, np.int32).view(dtype))
    return whole, strided(whole, shape, (columns * pitch, 1, pitch))


def result_of(whole: Any, mn: int) -> Array:
    """[batches, mn, columns]; the padding of columns is untouched."""
    stored = take(whole)
    assert (stored[..., mn:].view(np.int32) == POISON).all()
    return stored[..., :mn].swapaxes(1, 2)


@pytest.mark.parametrize("order", ["columns", "rows", "apart"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_transpose(device: Any, shape: tuple[int, int, int], order: str) -> None:
    sf = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    whole, out = output(device, shape, np.float32)
    _C.transpose_fp32(laid_out(device, sf, order), out, device=device)
    assert (result_of(whole, shape[1]).view(np.int32) == sf.view(np.int32)).all()


@pytest.mark.parametrize("order", ["columns", "rows", "apart"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_pack(device: Any, shape: tuple[int, int, int], order: str) -> None:
    sf = powers_of_two(shape)
    whole, out = output(device, (*shape[:2], utils.ceil_div(shape[2], 4)), np.int32)
    _C.pack_fp32_into_ue8m0(laid_out(device, sf, order), out, device=device)
    assert (result_of(whole, shape[1]) == np.stack([reference.packed(batch) for batch in sf])).all()


GROUPS = [
    ((256, 512, 1024), 128),
    ((4, 0, 200, 33, 0), 32),  # empty groups, and k that is no multiple of gran_k
    (tuple(i % 7 * 96 for i in range(80)), 32),  # more groups than a warp looks at together
    ((), 128),
]


@pytest.mark.parametrize("order", ["columns", "rows"])
@pytest.mark.parametrize(("ks", "gran_k"), GROUPS, ids=lambda value: str(value)[:20])
def test_pack_groups(device: Any, ks: tuple[int, ...], gran_k: int, order: str) -> None:
    """A word has columns of one group; words that no group has, here the last, are 0."""
    mn, columns = 70, [-(-k // gran_k) for k in ks]
    sf = powers_of_two((1, mn, sum(columns)))
    expected = reference.packed(sf[0], columns)
    whole, out = output(device, (1, mn, expected.shape[1] + 1), np.int32)
    matrix = strided(out, (mn, expected.shape[1] + 1), (1, 72))
    left = laid_out(device, sf, order)
    left = strided(left, sf.shape[1:], (1, mn) if order == "rows" else (sf.shape[2], 1))
    _C.pack_fp32_into_ue8m0(left, matrix, put(device, np.array(ks, np.int32)), gran_k, device=device)
    got = result_of(whole, mn)[0]
    assert (got[:, :-1] == expected).all() and (got[:, -1] == 0).all()


@pytest.mark.parametrize("shape", [(5, 7), (2, 67, 9)], ids=str)
def test_helpers_give_what_the_host_gives(emulator: Any, shape: tuple[int, ...]) -> None:
    """The same values and strides, whether numpy or a kernel moved them."""
    sf = powers_of_two(shape)
    for helper in (utils.get_mn_major_tma_aligned_tensor, utils.get_mn_major_tma_aligned_packed_ue8m0_tensor):
        for source in (sf, np.ascontiguousarray(sf.swapaxes(-1, -2)).swapaxes(-1, -2)):
            host, moved = helper(source), helper(source, device=emulator)
            assert (host == moved).all() and host.strides == moved.strides and host.dtype == moved.dtype
    ks, gran_k = [384, 128, 0, 640], 128
    grouped = powers_of_two((9, 6))
    arguments = (grouped, np.array(ks, np.int32), ks, gran_k, 128)
    host = utils.get_k_grouped_mn_major_tma_aligned_packed_ue8m0_tensor(*arguments)
    moved = utils.get_k_grouped_mn_major_tma_aligned_packed_ue8m0_tensor(*arguments, device=emulator)
    assert (host == moved).all() and host.strides == moved.strides
    assert (host == reference.packed(grouped.T, [3, 1, 0, 5]).T).all()


def test_rows_of_gaps_may_hold_anything(emulator: Any) -> None:
    sf = powers_of_two((256, 6))
    sf[100:128] = np.pi
    ends = np.array([100, 256], np.int32)
    host = utils.get_mn_major_tma_aligned_packed_ue8m0_tensor(sf, ends)
    moved = utils.get_mn_major_tma_aligned_packed_ue8m0_tensor(sf, ends, device=emulator)
    assert (host == moved).all() and (host == reference.packed(sf)).all()


REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    (
        {"sf": np.full((4, 8), 3, np.float32)},
        ValueError,
        "sf has 3 in row 0, column 0, expected powers of two",
    ),
    ({"sf": np.full((4, 8), -2, np.float32)}, ValueError, "round scales with ceil_to_ue8m0"),
    ({"sf": np.ones((4, 8))}, TypeError, "is float64, expected"),
    ({"sf": np.ones(8, np.float32)}, ValueError, "sf has shape [8], expected [mn, columns] or"),
    (
        {"out": np.zeros((4, 2), np.int32)},
        ValueError,
        "out has stride 2 along mn, expected 1; allocate it MN-major",
    ),
    ({"out": np.zeros((3, 4), np.int32).T}, ValueError, "out has shape [4, 3], expected [4, 2]"),
    ({"out": np.zeros((2, 4), np.float32).T}, TypeError, "out is fp32, expected int32"),
    (
        {"group_ks": np.array([512, 513], np.int32)},
        ValueError,
        "the groups have 9 scales along K in 3 words, expected",
    ),
    ({"group_ks": np.array([1024, -1], np.int32)}, ValueError, "group 1 has k=-1, expected at least 0"),
    ({"group_ks": np.array([512, 512], np.int64)}, TypeError, "group_ks is int64, expected"),
    (
        {"group_ks": np.array([512, 512], np.int32), "gran_k": 0},
        ValueError,
        "gran_k is 0, expected at least 1",
    ),
]


@pytest.mark.parametrize(("changes", "error", "sentence"), REFUSED, ids=[case[2][:40] for case in REFUSED])
def test_refused(emulator: Any, changes: dict[str, Any], error: type[Exception], sentence: str) -> None:
    arguments = {"sf": np.ones((4, 8), np.float32), "out": np.full((2, 4), POISON, np.int32).T} | changes
    with pytest.raises(error) as raised:
        _C.pack_fp32_into_ue8m0(**arguments, device=emulator)
    assert sentence in str(raised.value), raised.value
    if "out" not in changes:
        assert (arguments["out"] == POISON).all(), "nothing may have been launched"


def test_groups_that_do_not_match_sf() -> None:
    arguments = (np.ones((9, 6), np.float32), np.zeros(2, np.int32), [384, 128], 128, 128)
    with pytest.raises(
        ValueError, match=r"got sf of shape \(9, 6\) and 2 ks_cpu .*expected as many and \[4, mn\]"
    ):
        utils.get_k_grouped_mn_major_tma_aligned_packed_ue8m0_tensor(*arguments)
