"""Every kernel has bugs of its own that the emulator must catch: four at least, in the lists of test_*bugs.py."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from emulator.injection import Bug

from deep_gemm import _C

WANTED = 4
# Lists of bugs alone, which name no kernel.
KERNEL_OF = {
    ("test_fp4_bugs", "BUGS"): "sm90_fp8_fp4_gemm_swap_ab",
    ("test_fp4_wide_bugs", "BUGS"): "sm90_fp8_fp4_gemm_wide",
    ("test_fp4_wide_bugs", "ARRANGE_BUGS"): "arrange",
    ("test_fp4_pack_bugs", "BUGS"): "fp4_pack",
    ("test_two_terms_bugs", "TERMS_BUGS"): "two_terms",
    ("test_two_terms_bugs", "GEMM_BUGS"): "sm90_fp8_fp4_gemm_swap_ab",
}


def kernel_of(module: ModuleType, case: Any) -> str:
    """A case is an object that names its kernel, or a key of one, or of a function that makes a launch."""
    if isinstance(case, str):
        case = (vars(module).get("CASES") or vars(module)["KERNELS"])[case]
    if not callable(case):
        return str(case.kernel)
    entry = re.fullmatch(r"deep_gemm::(\w+)<kSpec>", case()[0].entry)
    assert entry is not None
    return entry.group(1)


def bugs_of(module: ModuleType) -> Iterator[tuple[str, Bug]]:
    """(kernel, bug) of all lists of a module."""
    name = module.__name__.rpartition(".")[2]
    for key, value in vars(module).items():
        if not key.endswith("BUGS"):
            continue
        pairs = value
        if isinstance(value, dict):
            pairs = [(case, bug) for case, bugs in value.items() for bug in bugs]
        elif isinstance(value[0], Bug):
            pairs = []
            if (name, key) in KERNEL_OF:
                yield from ((KERNEL_OF[name, key], bug) for bug in value)
        yield from ((kernel_of(module, case), bug) for case, bug in pairs)


def test_every_kernel_has_bugs() -> None:
    kernels = {
        name
        for text in _C.device_headers().values()
        for name in re.findall(r"^DG_KERNEL\(.*\)\n(\w+)\(", text, re.MULTILINE)
    }
    assert len(kernels) > 50
    found = {
        (kernel, bug.name)
        for path in Path(__file__).parent.glob("test_*bugs.py")
        for kernel, bug in bugs_of(import_module(f"emulator.{path.stem}"))
    }
    counts = Counter(kernel for kernel, _ in found)
    assert not set(counts) - kernels, "bugs of kernels that are gone"
    few = {kernel: counts[kernel] for kernel in kernels if counts[kernel] < WANTED}
    assert not few, f"kernels with fewer than {WANTED} bugs: {few}"
