"""Injected bugs of NVFP4 decoding, one term and two: each must show."""

from __future__ import annotations

import pytest
from emulator.injection import Bug, Launch, check_caught, check_clean, flatten
from emulator.test_fp4_bugs import SPEC, make_launch

from deep_gemm import _C

BUGS = [
    Bug("the odd row has the even row's first table", "term>(2 + i);", "term>(i);", 8),
    Bug("the tables of the two groups are swapped", "even_tables[step / 2]", "even_tables[1 - step / 2]", 8),
    Bug("one table for both groups", "even_tables[step / 2]", "even_tables[0]", 8),
    Bug("a neighbour's scales", "blob + kFp4CodeBytes + thread * 2) |", "blob + kFp4CodeBytes + (thread ^ 1) * 2) |", 8),
    Bug("the third byte is another thread's", "kNvThirdBytes + thread) << 16", "kNvThirdBytes + (thread ^ 4)) << 16", 8),
]  # fmt: skip
BUGS += [
    Bug("the fourth scale's bits in the first three", "bytes & 0x003f3f3f", "bytes & 0x00ffffff", 8),
    Bug("the fourth scale is not gathered", "1 << 6 | 1 << 12 | 1 << 18", "1 << 6 | 1 << 12", 8),
]  # fmt: skip
SINGLE = [
    *BUGS,
    Bug("two thirds always round one way", "(beyond_2 & ~beyond_5) >> 3 & 0x01010101", "0", 8),
    Bug("two thirds one code off", "codes_ - 0x05050505", "codes_ - 0x04040404", 8),
]
EXACT = [
    *BUGS,
    Bug("the second term is left out", "start<N, 1>(stage, kb, partial, second);", "", 8),
    Bug("the second term begins a new sum", "step > 0 || part > 0", "step > 0", 8),
    Bug("the second term is the first", "decode<1>(stage, kb, second);", "decode<0>(stage, kb, second);", 8),
    Bug(
        "both terms are promoted before the second is done",
        "ptx::wgmma_wait<0>();",
        "ptx::wgmma_wait<1>();",
        8,
    ),
]


class Kernel:
    """One form's launch and source."""

    def __init__(self, form: str) -> None:
        spec = SPEC.replace(form=form)
        self.launch: Launch = make_launch(spec, 768, 4)
        self.text = flatten(_C.fp4_kernel_source(spec).code)


@pytest.fixture(scope="module")
def kernels() -> dict[str, Kernel]:
    return {form: Kernel(form) for form in ("nv_single", "nv_exact")}


@pytest.mark.parametrize("form", ["nv_single", "nv_exact"])
def test_the_kernel_is_clean(kernels: dict[str, Kernel], form: str) -> None:
    check_clean(kernels[form].launch, kernels[form].text)


@pytest.mark.parametrize("bug", SINGLE, ids=lambda bug: bug.name)
def test_bugs_of_one_term(kernels: dict[str, Kernel], bug: Bug) -> None:
    check_caught(kernels["nv_single"].launch, kernels["nv_single"].text, bug)


@pytest.mark.parametrize("bug", EXACT, ids=lambda bug: bug.name)
def test_bugs_of_two_terms(kernels: dict[str, Kernel], bug: Bug) -> None:
    check_caught(kernels["nv_exact"].launch, kernels["nv_exact"].text, bug)
