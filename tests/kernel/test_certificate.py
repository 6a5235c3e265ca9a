"""The certificate of batch invariance can fail: negative controls, operations of the kinds that it must refuse."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from certificate import BATCHES, assert_batch_invariant
from ops_cases import Array

ROWS = np.random.default_rng(1).standard_normal((6, 512)).astype(np.float32)


def in_order(values: Array) -> np.float32:
    total = np.float32(0)
    for value in values:
        total = total + value
    return total


def fixed(rows: Array) -> Array:
    """What the operations do: an order that depends on the row alone."""
    return np.array([in_order(row) for row in rows])


def tree_of_the_batch(rows: Array) -> Array:
    """A reduction whose shape follows the number of rows, as a split over multiprocessors does."""
    parts = max(1, 8 // len(rows))
    return np.array([in_order(np.array([in_order(p) for p in np.split(row, parts)])) for row in rows])


def make_atomic_sum() -> Callable[[Array], Array]:
    """Additions in whatever order they arrive."""
    arrivals = np.random.default_rng(2)

    def atomic_sum(rows: Array) -> Array:
        return np.array([in_order(arrivals.permutation(row)) for row in rows])

    return atomic_sum


def scale_of_the_batch(rows: Array) -> Array:
    """A row rounded with a scale that its neighbours have a part in."""
    scale = np.abs(rows).max() / 127
    return np.array([in_order(np.round(row / scale) * scale) for row in rows], np.float32)


def place_in_the_batch(rows: Array) -> Array:
    """A row that starts its sum where its place says."""
    return np.array([in_order(np.roll(row, i)) for i, row in enumerate(rows)])


def two_at_a_time(rows: Array) -> Array:
    """Pairs of rows by a kernel of their own, as few tokens often have."""
    return fixed(rows) if len(rows) != 2 else np.array([in_order(row[::-1]) for row in rows])


def leaks_poison(rows: Array) -> Array:
    """The product of a tile of eight rows, with zeros where a row meets another: zero times NaN is NaN."""
    sums = fixed(rows)
    tiles = [sums[i // 8 * 8 : i // 8 * 8 + 8] for i in range(len(rows))]
    return np.array([np.eye(8, dtype=np.float32)[i % 8, : len(t)] @ t for i, t in enumerate(tiles)])


def test_passes_what_depends_on_the_row_alone() -> None:
    assert_batch_invariant(lambda rows: {"y": fixed(rows["x"])}, {"x": ROWS})


@pytest.mark.parametrize(
    "wrong",
    [
        tree_of_the_batch,
        make_atomic_sum(),
        scale_of_the_batch,
        place_in_the_batch,
        two_at_a_time,
        leaks_poison,
    ],
    ids=lambda wrong: wrong.__name__.replace("_", " "),
)
def test_refuses(wrong: Callable[[Array], Array]) -> None:
    refusal = pytest.raises(AssertionError, match=r"y: row . differs from itself alone at place \d+ of rows")
    with np.errstate(invalid="ignore"), refusal:
        assert_batch_invariant(lambda rows: {"y": wrong(rows["x"])}, {"x": ROWS})


def test_only_poison_tells_of_a_leak() -> None:
    """A control that sound neighbours do not find: they are multiplied by zero."""
    with np.errstate(invalid="ignore"):
        assert_batch_invariant(lambda rows: {"y": leaks_poison(rows["x"])}, {"x": ROWS}, sick={"x": ROWS[:3]})


@pytest.mark.parametrize("size", BATCHES)
def test_each_size_is_run(size: int) -> None:
    """A kernel for this number of rows that adds backwards: no other batch finds it."""

    def special(rows: Array) -> Array:
        return fixed(rows[:, ::-1] if len(rows) == size else rows)

    with pytest.raises(AssertionError, match=r"y: row . differs"):
        assert_batch_invariant(lambda rows: {"y": special(rows["x"])}, {"x": ROWS})
