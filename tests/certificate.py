"""The certificate of batch invariance: a row has the bits that it has alone, in batches of any size, at any place, beside
any neighbours. Some neighbours are poison: what a kernel computes of them, and then drops, must not reach another row."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import chain

import numpy as np
from ops_cases import Array

__all__ = ["BATCHES", "assert_batch_invariant"]

# Few tokens of a decode step, a verify window, and one more than the tiles that kernels have.
BATCHES = (2, 3, 4, 5, 8, 16, 33, 128)
NUM_SICK = 3


def sick_rows(healthy: Array) -> Array:
    """All NaN, all infinite, and a sound row but for its first and last value. Whole numbers say where a row belongs:
    poison belongs where the sound rows do."""
    rows = healthy[np.arange(NUM_SICK) % len(healthy)].copy()
    if np.issubdtype(rows.dtype, np.integer):
        return rows
    rows[0], rows[1] = np.nan, np.inf
    flat = rows[2].reshape(-1) if rows.ndim > 1 else rows[2:]
    flat[-1], flat[0] = -np.inf, np.nan
    return rows


def batches(healthy: int, sizes: tuple[int, ...]) -> Iterator[Array]:
    """Rows of each batch, sound ones below `healthy`: small batches of those alone, then with poison at either end."""
    rng = np.random.default_rng(5)
    for size in sizes:
        if size <= healthy:
            yield rng.permutation(healthy)[:size]
        for first_is_sick in (False, True) if size <= 8 else (False,):
            order = rng.permutation(np.arange(size) % (healthy + NUM_SICK))
            ends = rng.integers(healthy), healthy + rng.integers(NUM_SICK)
            order[0], order[-1] = reversed(ends) if first_is_sick else ends
            yield order


def assert_batch_invariant(
    call: Callable[[dict[str, Array]], dict[str, Array]],
    rows: Mapping[str, Array],
    sick: Mapping[str, Array] | None = None,
    sizes: tuple[int, ...] = BATCHES,
) -> None:
    """call(rows) runs the operation on these rows of its inputs and gives the rows of its outputs. `sick`: neighbours of
    a kind that sick_rows() cannot make, as many of them."""
    healthy = len(next(iter(rows.values())))
    sick = sick or {}
    inputs = {
        name: np.concatenate([value, sick.get(name, sick_rows(value))]).astype(value.dtype)
        for name, value in rows.items()
    }

    def outputs(order: Array) -> list[dict[str, bytes]]:
        got = call({name: np.ascontiguousarray(value[order]) for name, value in inputs.items()})
        assert all(len(value) == len(order) for value in got.values())
        return [{name: value[i].tobytes() for name, value in got.items()} for i in range(len(order))]

    alone = list(chain.from_iterable(outputs(np.array([row])) for row in range(healthy + NUM_SICK)))
    for order in batches(healthy, sizes):
        for place, (row, got) in enumerate(zip(order, outputs(order), strict=True)):
            for name, bits in got.items():
                kind = "row" if row < healthy else "poisoned row"
                assert bits == alone[row][name], (
                    f"{name}: {kind} {row} differs from itself alone at place {place} of rows {order.tolist()}, "
                    f"of which those from {healthy} are poison"
                )
