"""A text becomes token vectors: every byte is a token, described by the 1, 2 and 3 bytes that end there.

Each n-gram is hashed to a row of a seeded normal table and the three rows are added, so equal contexts give
equal vectors and the whole embedding is a function of (text, hidden, seed). It stands in for a trained
embedding: real text, with its repetitions, reaches the experts as unevenly as it would in a model.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

TABLE_ROWS = 4096
NGRAM_SIZES = (1, 2, 3)
HASH_FACTOR = 0x9E3779B1  # odd, so that multiplying by it permutes the residues modulo 2^32


def read_text(path: Path | None) -> tuple[str, bytes]:
    """(where from, bytes) of the file, or of the README: the checkout's, else the installed package's."""
    if path is not None:
        content = path.read_bytes()
        if not content:
            raise ValueError(
                f"demo: got an empty file, {path}, expected at least one byte; pass another file"
            )
        return str(path), content
    readme = Path(__file__).resolve().parents[3] / "README.md"
    if readme.is_file():
        return "README.md", readme.read_bytes()
    from importlib.metadata import metadata

    return "the package's README", str(metadata("deep-gemm-jit").json["description"]).encode()


def embed(text: bytes, count: int, hidden: int, seed: int) -> npt.NDArray[np.float32]:
    """Token vectors [count, hidden] of the text's first bytes, with entries of variance about 1.

    The text is repeated where it is shorter than `count`. Raises ValueError for an empty text.
    """
    if not text:
        raise ValueError("demo: got an empty text, expected at least one byte; pass another file")
    rng = np.random.default_rng(seed)
    raw = np.frombuffer(text, np.uint8)
    codes = np.resize(raw, count).astype(np.uint64)
    vectors = np.zeros((count, hidden), np.float32)
    for size in NGRAM_SIZES:
        table = rng.standard_normal((TABLE_ROWS, hidden), np.float32)
        key = np.zeros(count, np.uint64)
        for back in range(size):
            shifted = np.concatenate([np.zeros(min(back, count), np.uint64), codes[: max(count - back, 0)]])
            key = (key * np.uint64(HASH_FACTOR) + shifted + np.uint64(1)) & np.uint64(0xFFFFFFFF)
        vectors += table[(key >> np.uint64(20)).astype(np.int64) % TABLE_ROWS]
    vectors /= np.sqrt(np.float32(len(NGRAM_SIZES)))
    return vectors
