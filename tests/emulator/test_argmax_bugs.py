"""Bugs injected into the choice of the largest logit must be caught."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import pytest
from emulator.op_bugs import Bug, Launch, check_clean, check_shown, pack, text
from emulator.test_expert_bugs import TIES
from ops_cases import real


def argmax() -> tuple[Launch, str]:
    v = 3000
    logits = np.round(real(np.random.default_rng(51), (4, v))).astype(np.float32)  # ties
    logits[1, v // 2] = np.nan
    logits[2] = -np.inf
    tokens = logits.argmax(1)
    tokens[1] = -1
    arrays = {"logits": logits, "tokens": np.full(4, -77, np.int32)}
    params = pack("logits", (v,), "tokens", v)
    launch = Launch("deep_gemm::argmax<kSpec>", (4,), 1024, 2160, arrays, params, {"tokens": tokens})
    return launch, text("sample", "SampleSpec", "")


CASES = {"argmax": argmax}
BUGS = [
    ("argmax", TIES),
    ("argmax", Bug("warps read before they are there", "st_shared_u64(warps + warp * 8, best);\n    ptx::sync_threads();", "st_shared_u64(warps + warp * 8, best);")),
    ("argmax", Bug("a NaN is passed over", "nan ? ~u64{0} : best", "best", 8)),
    ("argmax", Bug("logits beyond the last", "logits + (i < p.v ? i : thread)", "logits + i", 8)),
    ("argmax", Bug("a warp's largest", "best = tile::warp_max_u64(ptx::ld_shared_u64(warps + lane * 8));", "", 8)),
]  # fmt: skip


@lru_cache
def made(name: str) -> tuple[Any, str]:
    return CASES[name]()


@pytest.mark.parametrize("name", CASES)
def test_clean(name: str) -> None:
    check_clean(*made(name))


@pytest.mark.parametrize(("name", "bug"), BUGS, ids=lambda value: getattr(value, "name", value))
def test_bugs(name: str, bug: Any) -> None:
    check_shown(*made(name), bug)
