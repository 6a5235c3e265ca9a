"""Injecting bugs: the emulator must catch them. Each bug is a substitution in the text of a kernel or of a device header
it includes, so the shipped text stays clean; a substitution whose text is gone fails, so the lists cannot rot. Every bug
runs under several seeds and must end, often enough, in a wrong result, a fault or a deadlock report. The clean kernel
must pass under all of them. The lists are in test_*bugs.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from deep_gemm import _C

Array = np.ndarray[Any, np.dtype[Any]]

# Six random schedules, and two in which asynchronous work lands only when nothing else can run.
SEEDS = range(8)
LAZY_SEEDS = (6, 7)
INCLUDE = re.compile(r"^#include <(deep_gemm/[^>]+)>\n", re.MULTILINE)


@dataclass(frozen=True)
class Bug:
    name: str
    old: str
    new: str
    caught_by: int = 1  # seeds out of 8 that must notice; 8 where no schedule can hide it
    occurrences: int = 1

    def inject(self, text: str) -> str:
        found = text.count(self.old)
        assert found == self.occurrences, (
            f"{self.name}: {self.old!r} occurs {found} times, expected {self.occurrences}"
        )
        return text.replace(self.old, self.new)


def flatten(source: str) -> str:
    """The source with every device header inlined once, where it is first included: what NVRTC sees, as one text."""
    headers: Mapping[str, str] = _C.device_headers()
    seen: set[str] = set()

    def inline(match: re.Match[str]) -> str:
        name = match.group(1)
        if name in seen:
            return ""
        seen.add(name)
        return INCLUDE.sub(inline, headers[name].replace("#pragma once\n", ""))

    return INCLUDE.sub(inline, source)


@dataclass
class Launch:
    """How to run one kernel: arrays in, arrays out, and what they must be."""

    entry: str
    grid: tuple[int, ...]
    block: int
    smem_bytes: int
    arrays: dict[str, Array]
    pack: Callable[[Any, dict[str, int]], bytes]  # device, addresses -> parameter bytes
    expected: dict[str, Array]
    tolerance: float = 0.0
    cluster: int = 1
    outputs: dict[str, Array] = field(default_factory=dict)

    def outcomes(self, text: str) -> dict[int, str]:
        compiled = _C.compile(text, [self.entry], arch="90a", kind="ptx")
        return {seed: self.run(compiled, seed) for seed in SEEDS}

    def run(self, compiled: Any, seed: int) -> str:
        """How the run ended: "clean", "wrong", or the first line of the emulator's report."""
        device = _C.Device("emulator:sm_90a", seed=seed, latency="lazy" if seed in LAZY_SEEDS else "random")
        module = device.load_module(compiled.image, "injected bug")
        addresses = {name: device.allocate(array.nbytes) for name, array in self.arrays.items()}
        try:
            for name, array in self.arrays.items():
                device.copy_to_device(addresses[name], array.view(np.uint8))
            memory = [
                (addresses[name], array.nbytes, name in self.expected) for name, array in self.arrays.items()
            ]
            try:
                device.launch(module.kernel(compiled.lowered_names[0]), self.pack(device, addresses), grid=self.grid,
                              block=self.block, cluster=self.cluster, smem_bytes=self.smem_bytes, memory=memory)  # fmt: skip
            except _C.Error as error:
                assert error.kind == "emulator", f"not a verdict of the emulator: {error}"
                return str(error).splitlines()[0]
            for name in self.expected:
                self.outputs[name] = np.empty_like(self.arrays[name])
                device.copy_to_host(self.outputs[name].view(np.uint8), addresses[name])
        finally:
            for address in addresses.values():
                device.release(address)
        return "clean" if self.is_right() else "wrong"

    def is_right(self) -> bool:
        for name, expected in self.expected.items():
            got = self.outputs[name].astype(np.float64)
            if not np.isfinite(got).all():
                return False
            if (np.abs(got - expected) > self.tolerance * np.maximum(np.abs(expected), 1.0)).any():
                return False
        return True


def check_clean(launch: Launch, text: str) -> None:
    outcomes = launch.outcomes(text)
    assert set(outcomes.values()) == {"clean"}, f"the clean kernel fails: {outcomes}"


def check_caught(launch: Launch, text: str, bug: Bug) -> None:
    outcomes = launch.outcomes(bug.inject(text))
    caught = [seed for seed, outcome in outcomes.items() if outcome != "clean"]
    assert len(caught) >= bug.caught_by, (
        f"caught by {len(caught)} of {len(SEEDS)} seeds, expected {bug.caught_by}: {outcomes}"
    )
