"""Arguments of engines and sessions, checked where Python's types can still be named: got, expected, remedy."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any, SupportsIndex

__all__ = ["count", "number", "token_ids"]

LARGEST_COUNT, LARGEST_ID = (1 << 32) - 1, (1 << 31) - 1


def token_ids(call: str, tokens: Any) -> list[int]:
    """`tokens` as integers that the device's ids can hold; whether the vocabulary has them, the engine says."""
    if isinstance(tokens, str) or not isinstance(tokens, Iterable):
        raise TypeError(
            f"{call}: got tokens of type {type(tokens).__name__}, expected a sequence of token ids; "
            "Engine.encode() makes one of a text"
        )
    given = list(tokens)
    try:
        ids = list(map(operator.index, given))
    except TypeError:
        at = next(i for i, token in enumerate(given) if not isinstance(token, SupportsIndex))
        raise TypeError(
            f"{call}: token {at} is {given[at]!r} of type {type(given[at]).__name__}, expected an integer; "
            "Engine.encode() makes token ids of a text"
        ) from None
    for i, token in enumerate(ids):
        if not -LARGEST_ID - 1 <= token <= LARGEST_ID:
            raise ValueError(f"{call}: token {i} is {token}, expected an id of the model's vocabulary")
    return ids


def count(call: str, name: str, value: Any, largest: int = LARGEST_COUNT) -> int:
    """`value` as an integer from 0 on."""
    if not isinstance(value, SupportsIndex):
        raise TypeError(
            f"{call}: {name} is {value!r} of type {type(value).__name__}, expected an integer; "
            "round it to one first"
        )
    whole = operator.index(value)
    if not 0 <= whole <= largest:
        raise ValueError(f"{call}: got {name}={whole}, expected 0 to {largest}")
    return whole


def number(call: str, name: str, value: Any) -> float:
    """`value` as a float."""
    try:
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(
            f"{call}: {name} is {value!r} of type {type(value).__name__}, expected a number"
        ) from None
