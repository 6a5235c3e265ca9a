"""Models that ship with the package, and what a checkpoint folder holds besides tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["Tokenizer", "model_path"]

SHIPPED = {"tiny_v4": Path(__file__).parent / "tiny_v4"}


def model_path(model: str | Path) -> Path:
    """The folder or file of `model`: a path, or the name of a shipped model."""
    if str(model) in SHIPPED:
        return SHIPPED[str(model)]
    path = Path(model)
    if not path.exists():
        raise ValueError(
            f"model: got '{model}', expected a checkpoint's folder or file, or one of {', '.join(SHIPPED)}"
        )
    return path


class Tokenizer:
    """The tokenizer.json of a checkpoint folder, through the `tokenizers` package."""

    def __init__(self, folder: str | Path) -> None:
        path = Path(folder) / "tokenizer.json"
        if not path.is_file():
            raise ValueError(f"tokenizer: got no {path}, expected the model's tokenizer.json there")
        try:
            import tokenizers
        except ImportError as error:
            raise ValueError(
                "tokenizer: the tokenizers package is missing; pip install tokenizers"
            ) from error
        self._tokenizer: Any = tokenizers.Tokenizer.from_file(str(path))

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, without any that mark its beginning or end."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens))
