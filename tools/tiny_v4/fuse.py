"""Elementwise chains that torch.compile makes one kernel of, where training asks for it."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch

_enabled = False


def enable() -> None:
    global _enabled
    _enabled = True
    for name in ("cache_size_limit", "recompile_limit", "accumulated_cache_size_limit"):
        if hasattr(torch._dynamo.config, name):
            setattr(torch._dynamo.config, name, 512)  # one function serves many shapes


def fused(f: Callable[..., Any]) -> Callable[..., Any]:
    compiled: Callable[..., Any] = torch.compile(f, dynamic=False)

    @wraps(f)
    def call(*arguments: Any, **named: Any) -> Any:
        return (compiled if _enabled else f)(*arguments, **named)

    return call
