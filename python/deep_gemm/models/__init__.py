"""Models that ship with the package, and what a checkpoint folder holds besides tensors."""

from __future__ import annotations

from pathlib import Path

from deep_gemm.models.tokenizer import TextStream, Tokenizer
from deep_gemm.paths import path_text

__all__ = ["SHIPPED", "TextStream", "Tokenizer", "model_path"]

SHIPPED = {"tiny_v4": Path(__file__).parent / "tiny_v4"}


def model_path(model: str | Path) -> Path:
    """The folder or file of `model`: a path, or the name of a shipped model."""
    name = path_text("model", model)
    if name in SHIPPED:
        return SHIPPED[name]
    path = Path(name)
    if not name or not path.exists():
        raise ValueError(
            f"model: got '{model}', expected a checkpoint's folder or file, or one of {', '.join(SHIPPED)}; "
            "correct the path"
        )
    return path
