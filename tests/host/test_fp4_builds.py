"""Every FP4 kernel a plan chooses builds without spills, within its registers, without serialised wgmma."""

from __future__ import annotations

import pytest

import deep_gemm
from deep_gemm import _C

PROBLEMS = [
    *(f"fp4_gemm gathered groups=256 m={6 * t} n=4096 k=4096" for t in (1, 64, 256, 1024, 4096)),
    "fp4_gemm gathered groups=256 m=384 n=4096 k=2048 form=mx_e5m2",
    "fp4_gemm gathered groups=256 m=384 n=4096 k=2048 split",
    "fp4_gemm contiguous groups=8 m=4096 n=4096 k=7168",
    "fp4_gemm masked groups=32 m=128 expected_m=4 n=4096 k=7168",
    "fp4_gemm m=100 n=2880 k=2880 d=fp32 accumulate",
    *(
        f"fp4_gemm {rest} form={form}"
        for form in ("nv_single", "nv_exact")
        for rest in (
            *(f"gathered groups=256 m={6 * t} n=4096 k=4096" for t in (1, 64, 256, 1024, 4096)),
            "gathered groups=256 m=384 n=4096 k=2048 split",
            "masked groups=32 m=128 expected_m=4 n=4096 k=7168",
            "m=100 n=2880 k=2880 d=fp32 accumulate",
        )
    ),
]


@pytest.mark.parametrize("problem", PROBLEMS)
def test_no_spills_and_no_serialised_wgmma(problem: str) -> None:
    spec = deep_gemm.plan_fp4(problem, "90a:132")["spec"]
    stats = _C.build(_C.fp4_kernel_source(spec)).stats
    assert stats["warnings"] == [], spec
    assert stats["spill_store_bytes"] == stats["spill_load_bytes"] == stats["stack_bytes"] == 0, spec
    assert 0 < stats["registers"] <= spec.register_limit, spec


def test_an_illegal_spec_has_no_source() -> None:
    with pytest.raises(ValueError, match="accumulators do not fit"):
        _C.fp4_kernel_source(deep_gemm.Fp4GemmSpec(block_m=128, warpgroups=4, load_warps=2))
