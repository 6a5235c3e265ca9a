"""The shipped tiny model, loaded once per device and numerics."""

from __future__ import annotations

import pytest
from golden import tiny_v4
from runtime.decode import Load, Plain

from deep_gemm import _C, Engine

ENGINES: dict[tuple[str, str], Engine] = {}
PLAIN: dict[str, Plain] = {}


@pytest.fixture
def emulator_name(emulator_name: str, request: pytest.FixtureRequest) -> str:
    """Without the check of races, a third of the time: every kernel has it in its own tests, and whole models in the
    tests marked `races`."""
    return emulator_name if request.node.get_closest_marker("races") else f"{emulator_name},races=off"


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
    """The first tokens of the golden prompt: few, because the emulator pays for each."""
    return tiny_v4.prompt("p0")[:5]


@pytest.fixture
def plain(device: _C.Device, load: Load, prompt: list[int]) -> Plain:
    if device.name not in PLAIN:
        session = load().session(window=1)
        session.sync(prompt)
        text, digests = [], [session.state_digest()]
        for _ in range(12):
            text += session.step().tokens
            digests.append(session.state_digest())
        PLAIN[device.name] = Plain(text, digests)
    return PLAIN[device.name]
