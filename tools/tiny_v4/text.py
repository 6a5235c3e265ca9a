"""The text: documents from files and folders, a byte-level BPE tokenizer trained on them, and the tokens."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

SUFFIXES = {".txt", ".md", ".rst", ".py"}
HELD_OUT = 64  # one document of so many is never trained on
SHORTEST = 400  # characters of a document
BEGIN, END = 0, 1


def documents(paths: list[Path]) -> list[str]:
    """Files as they are, folders with all their text files; NUL characters separate documents inside a file."""
    files = []
    for path in paths:
        inside = [p for p in sorted(path.rglob("*")) if p.suffix in SUFFIXES and p.is_file()]
        files += inside if path.is_dir() else [path]
    seen: dict[str, None] = {}
    for file in files:
        for text in file.read_text("utf-8", errors="ignore").split("\0"):
            if len(text) >= SHORTEST:
                seen[text.strip() + "\n"] = None
    return list(seen)


def split(docs: list[str]) -> tuple[list[str], list[str]]:
    """(training, held out), by a hash of the text."""
    held = [int(hashlib.sha256(d.encode()).hexdigest(), 16) % HELD_OUT == 0 for d in docs]
    return [d for d, h in zip(docs, held, strict=True) if not h], [
        d for d, h in zip(docs, held, strict=True) if h
    ]


def train_tokenizer(docs: list[str], like: Path, vocab: int, megabytes: float = 16) -> Tokenizer:
    """With the special tokens and the splitting of another tokenizer.json."""
    other = Tokenizer.from_file(str(like))
    special = [token.content for _, token in sorted(other.get_added_tokens_decoder().items())]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = other.pre_tokenizer, other.decoder
    step = max(1, int(sum(len(d) for d in docs) / (megabytes * 1e6)))
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        docs[::step],
        trainers.BpeTrainer(
            vocab_size=vocab, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        ),
    )
    return tokenizer


def encode(tokenizer: Tokenizer, docs: list[str]) -> np.ndarray:
    """int32: every document between BEGIN and END."""
    parts = [
        np.array([BEGIN, *one.ids, END], np.int32)
        for one in tokenizer.encode_batch(docs, add_special_tokens=False)
    ]
    return np.concatenate(parts) if parts else np.zeros(0, np.int32)
