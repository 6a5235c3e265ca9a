"""A random DeepSeek-V4 of small, odd dimensions (heads of 64 channels, HCA windows of 16 tokens, an indexer of 4 heads of
32 channels that leaves rows out from token 19 on), its weights, and what transformers 5.17 makes of 96 tokens in fp32.

Weights are bf16: their upper and lower bytes lie apart, because only the upper ones can be compressed.
"""

from __future__ import annotations

import io
import json
import lzma
from functools import cache
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

FOLDER = Path(__file__).parent


@cache
def arrays() -> dict[str, np.ndarray]:
    """ids [96], logits fp32 [96, vocab], picks [CSA layers, 96, k] in ascending order after -1, and the weights' parts."""
    with np.load(io.BytesIO(lzma.decompress((FOLDER / "golden.npz.xz").read_bytes()))) as file:
        return dict(file)


def config() -> dict[str, Any]:
    return dict(json.loads((FOLDER / "config.json").read_text()))


def tensors() -> dict[str, np.ndarray]:
    """Under the released names."""
    data = arrays()
    values = (data["high"].astype(np.uint16) << 8 | data["low"]).view(ml_dtypes.bfloat16)
    found, at = dict[str, np.ndarray](), 0
    for entry in data["names"]:
        name, _, text = str(entry).partition(":")
        shape = [int(extent) for extent in text.split("x")]
        count = int(np.prod(shape))
        found[name] = values[at : at + count].reshape(shape)
        at += count
    hashes = {name: table.astype(np.int32) for name, table in data.items() if name.endswith("tid2eid")}
    return {**found, **hashes}
