"""Arguments of engines and sessions, checked where Python's types can still be named: got, expected, remedy."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

__all__ = ["LARGEST_ID", "count", "integer", "number", "sampling_of", "token_ids"]

LARGEST_COUNT, LARGEST_ID = (1 << 32) - 1, (1 << 31) - 1


def token_ids(call: str, tokens: Any) -> list[int]:
    """`tokens` as integers that the device's ids can hold; whether the vocabulary has them, the engine says."""
    if isinstance(tokens, (str, bytes, bytearray)) or not isinstance(tokens, Iterable):
        raise TypeError(
            f"{call}: got tokens of type {type(tokens).__name__}, expected a sequence of token ids; "
            "Engine.encode() makes one of a text"
        )
    given = list(tokens)
    try:
        ids = list(map(operator.index, given))
    except TypeError:
        at = next(i for i, token in enumerate(given) if not is_integer(token))
        raise TypeError(
            f"{call}: token {at} is {given[at]!r} of type {type(given[at]).__name__}, expected an integer; "
            "Engine.encode() makes token ids of a text"
        ) from None
    for i, token in enumerate(ids):
        if not -LARGEST_ID - 1 <= token <= LARGEST_ID:
            raise ValueError(
                f"{call}: token {i} is {token}, expected an id of the model's vocabulary; "
                "Engine.encode() makes token ids of a text"
            )
    return ids


def is_integer(value: Any) -> bool:
    """Arrays have __index__ as well, which raises for all but one integer."""
    try:
        operator.index(value)
    except TypeError:
        return False
    return True


def integer(call: str, name: str, value: Any) -> int:
    if not is_integer(value):
        raise TypeError(
            f"{call}: {name} is {value!r} of type {type(value).__name__}, expected an integer; "
            "round it to one first"
        )
    return operator.index(value)


def count(call: str, name: str, value: Any, largest: int = LARGEST_COUNT) -> int:
    """`value` as an integer from 0 on."""
    whole = integer(call, name, value)
    if not 0 <= whole <= largest:
        raise ValueError(f"{call}: got {name}={whole}, expected 0 to {largest}; correct it")
    return whole


def sampling_of(
    call: str, temperature: Any = 0.0, top_k: Any = 0, top_p: Any = 1.0, min_p: Any = 0.0, seed: Any = 0
) -> dict[str, Any]:
    """How tokens are chosen, as the extension takes it. A seed may be any integer: its lowest 64 bits count."""
    return {
        "temperature": number(call, "temperature", temperature),
        "top_k": count(call, "top_k", top_k, LARGEST_ID),
        "top_p": number(call, "top_p", top_p),
        "min_p": number(call, "min_p", min_p),
        "seed": integer(call, "seed", seed) & (1 << 64) - 1,
    }


def number(call: str, name: str, value: Any) -> float:
    """`value` as a float."""
    try:
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(
            f"{call}: {name} is {value!r} of type {type(value).__name__}, expected a number; convert it"
        ) from None
