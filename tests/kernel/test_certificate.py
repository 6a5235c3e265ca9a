"""The certificate of batch invariance can fail: negative controls, operations of the kinds that it must refuse."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from ops_cases import Array, assert_batch_invariant

ROWS = np.random.default_rng(1).standard_normal((6, 512)).astype(np.float32)


def in_order(values: Array) -> np.float32:
    total = np.float32(0)
    for value in values:
        total = total + value
    return total


def fixed(rows: Array) -> Array:
    """What the operations do: an order that depends on the row alone."""
    return np.array([in_order(row) for row in ROWS[rows]])


def tree_of_the_batch(rows: Array) -> Array:
    """A reduction whose shape follows the number of rows, as a split over multiprocessors does."""
    parts = max(1, 8 // len(rows))
    return np.array([in_order(np.array([in_order(p) for p in np.split(row, parts)])) for row in ROWS[rows]])


def make_atomic_sum() -> Callable[[Array], Array]:
    """Additions in whatever order they arrive."""
    arrivals = np.random.default_rng(2)
    return lambda rows: np.array([in_order(arrivals.permutation(row)) for row in ROWS[rows]])


def scale_of_the_batch(rows: Array) -> Array:
    """A row rounded with a scale that its neighbours have a part in."""
    scale = np.abs(ROWS[rows]).max() / 127
    return np.array([in_order(np.round(row / scale) * scale) for row in ROWS[rows]], np.float32)


def place_in_the_batch(rows: Array) -> Array:
    """A row that starts its sum where its place says."""
    return np.array([in_order(np.roll(row, i)) for i, row in enumerate(ROWS[rows])])


def two_at_a_time(rows: Array) -> Array:
    """Pairs of rows by a kernel of their own, as few tokens often have."""
    return fixed(rows) if len(rows) != 2 else np.array([in_order(ROWS[row][::-1]) for row in rows])


def test_passes_what_depends_on_the_row_alone() -> None:
    assert_batch_invariant(lambda rows: {"y": fixed(rows)}, len(ROWS))


@pytest.mark.parametrize(
    "wrong",
    [tree_of_the_batch, make_atomic_sum(), scale_of_the_batch, place_in_the_batch, two_at_a_time],
    ids=["tree of the batch", "atomic sum", "scale of the batch", "place in the batch", "two at a time"],
)
def test_refuses(wrong: Callable[[Array], Array]) -> None:
    with pytest.raises(
        AssertionError, match=r"y: (permuted rows differ|pair .* differs|row . differs alone)"
    ):
        assert_batch_invariant(lambda rows: {"y": wrong(rows)}, len(ROWS))
