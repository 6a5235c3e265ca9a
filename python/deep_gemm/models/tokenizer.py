"""The tokenizer of a checkpoint folder, and text that arrives token by token."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any

__all__ = ["TextStream", "Tokenizer"]


class Tokenizer:
    """The tokenizer.json of a checkpoint folder, through the `tokenizers` package."""

    def __init__(self, folder: str | Path) -> None:
        path = Path(folder) / "tokenizer.json"
        if not path.is_file():
            raise ValueError(
                f"tokenizer: got no {path}, expected the model's tokenizer.json there; "
                "copy it from where the model was released"
            )
        try:
            import tokenizers
        except ImportError as error:
            raise ValueError(
                "tokenizer: the tokenizers package is missing; pip install tokenizers"
            ) from error
        self._lock = Lock()
        try:
            self._tokenizer: Any = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the package raises nothing narrower
            raise ValueError(
                f"tokenizer: got {path}, which is no tokenizer that the tokenizers package {tokenizers.__version__} "
                f"reads ({error}); copy it from where the model was released"
            ) from error

    def encode(self, text: str, *, plain: bool = False) -> list[int]:
        """Token ids of `text`, without any that mark its beginning or end; `plain`: no special tokens in it either."""
        if not isinstance(text, str):
            raise TypeError(
                f"encode: got text of type {type(text).__name__}, expected a str; decode bytes first"
            )
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"encode: character {error.start} is half a surrogate pair, expected whole characters; "
                'decode bytes with errors="replace"'
            ) from None
        with self._lock:  # the flag is the tokenizer's, which threads share
            self._tokenizer.encode_special_tokens = plain
            return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of the tokens, special ones left out."""
        return str(self._tokenizer.decode(list(tokens)))


class TextStream:
    """Tokens in, text out as soon as it is certain: never half a character."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        self._begin = (
            0  # decoded together with what follows, because a token's text can depend on the one before
        )
        self._given = 0  # tokens whose text was returned

    @property
    def taken(self) -> int:
        """How many tokens were pushed."""
        return len(self._tokens)

    def push(self, tokens: Sequence[int]) -> str:
        """The text that these tokens complete."""
        self._tokens += tokens
        return self._advance(final=False)

    def finish(self) -> str:
        """What is left: text whose last character is incomplete."""
        return self._advance(final=True)

    def _advance(self, *, final: bool) -> str:
        known = self._tokenizer.decode(self._tokens[self._begin : self._given])
        text = self._tokenizer.decode(self._tokens[self._begin :])
        if text.endswith("\ufffd") and not final:
            return ""
        if len(self._tokens) > self._given:
            self._begin, self._given = self._given, len(self._tokens)
        return text[len(known) :]
