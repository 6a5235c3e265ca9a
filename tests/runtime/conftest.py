"""The shipped tiny model, loaded once per device and numerics."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from deep_gemm import Engine, _C
from golden import tiny_v4

Load = Callable[..., Engine]
ENGINES: dict[tuple[str, str], Engine] = {}


@pytest.fixture
def load(device: _C.Device) -> Load:
    """load("exact"): the engine of these numerics on this device, with a context of 512."""

    def get(numerics: str = "exact") -> Engine:
        key = (device.name, numerics)
        if key not in ENGINES:
            ENGINES[key] = Engine("tiny_v4", device=device, numerics=numerics, context=512, max_rows=32)
        return ENGINES[key]

    return get


@pytest.fixture
def prompt() -> list[int]:
    """The golden prompt, 14 tokens."""
    return tiny_v4.prompt("p0")
