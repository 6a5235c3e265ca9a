"""Scales of any layout -> what the layout helpers give: one number after the other."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


def exponent(scale: Any) -> int:
    return int(np.float32(scale).view(np.uint32)) >> 23 & 0xFF


def word(scales: Sequence[Any]) -> int:
    """Up to four exponents, the first lowest, as an int32."""
    value = sum(exponent(scale) << 8 * i for i, scale in enumerate(scales))
    return value - (value >> 31 << 32)


def packed(sf: Array, groups: Sequence[int] | None = None) -> Array:
    """[mn, columns] -> int32 [mn, words]; `groups`: how many columns each group has."""
    starts = np.cumsum([0, *(groups or [sf.shape[1]])])
    spans = [
        (start, min(start + 4, int(end)))
        for begin, end in pairwise(starts)
        for start in range(int(begin), int(end), 4)
    ]
    rows = [[word(row[slice(*span)]) for span in spans] for row in sf]
    return np.array(rows, np.int32).reshape(len(sf), len(spans))
