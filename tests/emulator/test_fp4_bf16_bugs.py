"""Injected bugs of the FP4 kernel with bf16 tokens: each must show."""

from __future__ import annotations

import pytest
from emulator.injection import Bug, Launch, check_caught, check_clean, flatten
from emulator.test_fp4_bugs import SPEC, make_launch

from deep_gemm import _C

TABLE_BUG = Bug(
    "one table for high and low bytes",
    "permute_bytes_or_signs(kLow, kLowOfMore",
    "permute_bytes_or_signs(kHigh, kHighOfMore",
    8,
)
BUGS = [
    TABLE_BUG,
    Bug("bytes of a pair the wrong way round", "0x5140", "0x1504", 8),
    Bug("the second pair is the first", "0x7362", "0x5140", 8),
    Bug("signs of the second half forgotten", "(step % 2 == 0 ? word : word << 4) & kSigns", "word & kSigns", 8),
    Bug("the second word is the first", "step < 2 ? first : second", "first", 8),
    Bug("both halves of the weights are the first", "thread * 16 + half * 8", "thread * 16", 8),
    Bug("both halves of the tokens are the first", "part * S.block_m * kFp4BlockK", "0", 8),
    Bug("one half of the tokens is brought", "turn < kElementBytes", "turn < 1", 8),
    Bug("halves of the tokens are swapped", "kElementBytes) / 8 * (S.block_m * kFp4BlockK)",
        "kElementBytes) / 8 * 0", 8),
    Bug("the second half begins a new sum", "step > 0 || part > 0", "step > 0", 8),
    Bug("a part is promoted before it is done", "ptx::wgmma_wait<0>();", "ptx::wgmma_wait<1>();", 8),
]  # fmt: skip
MX = Bug("the even row's exponent for both", "mx_scale_pair<S.form>(offsets >> 4)", "mx_scale_pair<S.form>(offsets & 0xf)", 8)  # fmt: skip
NV = [
    Bug("the second group has the first's scale", "if constexpr (half == 0) return", "return", 8),
    Bug("the fourth scale is not gathered", "(first >> 14 & 3) << 2 | ", "", 8),
]


class Kernel:
    def __init__(self, form: str) -> None:
        spec = SPEC.replace(a="bf16", form=form)
        self.launch: Launch = make_launch(spec, 768, 4)
        self.text = flatten(_C.fp4_kernel_source(spec).code)


@pytest.fixture(scope="module")
def kernels() -> dict[str, Kernel]:
    return {form: Kernel(form) for form in ("mx_e4m3", "nv_exact")}


@pytest.mark.parametrize("form", ["mx_e4m3", "nv_exact"])
def test_the_kernel_is_clean(kernels: dict[str, Kernel], form: str) -> None:
    check_clean(kernels[form].launch, kernels[form].text)


@pytest.mark.parametrize("bug", [*BUGS, MX], ids=lambda bug: bug.name)
def test_bugs(kernels: dict[str, Kernel], bug: Bug) -> None:
    check_caught(kernels["mx_e4m3"].launch, kernels["mx_e4m3"].text, bug)


@pytest.mark.parametrize("bug", NV, ids=lambda bug: bug.name)
def test_bugs_of_nvfp4(kernels: dict[str, Kernel], bug: Bug) -> None:
    check_caught(kernels["nv_exact"].launch, kernels["nv_exact"].text, bug)
