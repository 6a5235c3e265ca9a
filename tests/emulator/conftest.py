"""Launches of the bug tests are made once a module: their operands and references take longer than a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture(scope="module")
def launches() -> Callable[[Any], Any]:
    """The Launch of a Gemm, by its name."""
    made: dict[str, Any] = {}

    def get(gemm: Any) -> Any:
        if gemm.name not in made:
            made[gemm.name] = gemm.launch()
        return made[gemm.name]

    return get
