"""Conditions around test functions."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

from deep_gemm.utils import arrays


def get_arch_major() -> int:
    """9 on Hopper, 10 on Blackwell; of PyTorch's current GPU."""
    torch = arrays.torch_for("get_arch_major")
    return int(torch.cuda.get_device_capability()[0])


def test_filter(condition: Callable[[], bool]) -> Callable[[Callable[..., Any]], Callable[..., None]]:
    """Runs the function only where the condition holds, and says so where it does not."""

    def decorate(function: Callable[..., Any]) -> Callable[..., None]:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> None:
            if condition():
                function(*args, **kwargs)
            else:
                print(f"{function.__name__}: left out by {condition}")

        return wrapper

    return decorate


# Not a test, whatever pytest makes of its name.
test_filter.__test__ = False  # type: ignore[attr-defined]


def ignore_env(
    name: str, condition: Callable[[], bool]
) -> Callable[[Callable[..., Any]], Callable[..., None]]:
    """Runs the function without an environment variable where the condition holds."""

    def decorate(function: Callable[..., Any]) -> Callable[..., None]:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> None:
            saved = os.environ.pop(name, None) if condition() else None
            try:
                function(*args, **kwargs)
            finally:
                if saved is not None:
                    os.environ[name] = saved

        return wrapper

    return decorate


__all__ = ["get_arch_major", "ignore_env", "test_filter"]
