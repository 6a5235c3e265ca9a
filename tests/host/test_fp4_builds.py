"""Every FP4 kernel a plan chooses builds without spills, within its registers, without serialised wgmma."""

from __future__ import annotations

from typing import Any

import pytest

import deep_gemm
from deep_gemm import _C

WIDE_TOKENS = (1024, 2048, 4096, 8192, 16384)  # where MXFP4 and one term of NVFP4 take the wide kernel
PROBLEMS = [
    *(f"fp4_gemm gathered groups=256 m={6 * t} n=4096 k=4096" for t in (1, 64, 256, *WIDE_TOKENS)),
    "fp4_gemm gathered groups=256 m=384 n=4096 k=2048 form=mx_e5m2",
    "fp4_gemm gathered groups=256 m=384 n=4096 k=2048 split",
    "fp4_gemm contiguous groups=8 m=4096 n=4096 k=7168",
    "fp4_gemm gathered groups=256 m=49152 n=4096 k=4096 per_token fast_accumulation",
    "fp4_gemm masked groups=32 m=128 expected_m=4 n=4096 k=7168",
    *(
        f"fp4_gemm gathered groups=256 m={6 * t} n=4096 k=4096 a=bf16{products}"
        for products in ("", " bf16_products")
        for t in (1, 64, 256, 512, 1024, 2048, 4096, 8192, 16384)
    ),
    "fp4_gemm gathered groups=256 m=384 n=4096 k=2048 form=mx_e5m2 a=bf16 split",
    "fp4_gemm masked groups=32 m=128 expected_m=4 n=4096 k=7168 a=bf16 accumulate",
    "fp4_gemm psum groups=16 m=16384 expected_m=900 n=4096 k=4096 a=bf16",
    "fp4_gemm m=4096 n=4096 k=4096 a=bf16",
    "fp4_gemm gathered groups=256 m=384 n=4096 k=2048 form=nv_exact a=bf16 split",
    "fp4_gemm gathered groups=256 m=24576 n=4096 k=2048 form=nv_exact a=bf16 split",
    "fp4_gemm gathered groups=256 m=49152 n=4096 k=2048 form=nv_exact per_token",
    "fp4_gemm contiguous groups=8 m=8192 n=4096 k=4096 a=bf16",
    "fp4_gemm m=2048 n=4096 k=4096 a=bf16 d=fp32 accumulate",
    "fp4_gemm gathered groups=256 m=6144 n=4096 k=2048 form=mx_e5m2 a=bf16",
    *(f"fp4_gemm gathered groups=256 m={6 * t} n=4096 k=4096 by_32" for t in (1, 256, 1024)),
    "fp4_gemm contiguous groups=8 m=4096 n=4096 k=2048 by_32 split d=fp32 form=nv_exact",
    "fp4_gemm m=100 n=2880 k=2880 d=fp32 accumulate a=bf16",
    "fp4_gemm m=100 n=2880 k=2880 d=fp32 accumulate",
    "fp4_gemm m=4096 n=4096 k=4096 d=fp32 accumulate",
    "fp4_gemm m=1024 n=4096 k=4096",
    "fp4_gemm psum groups=16 m=16384 expected_m=900 n=4096 k=4096 form=mx_e5m2",
    "fp4_gemm masked groups=8 m=1024 expected_m=100 n=4096 k=4096 accumulate",
    "fp4_gemm gathered groups=256 m=49152 n=4096 k=2048 form=mx_e5m2 split d=fp32",
    *(
        f"fp4_gemm {rest} form={form}"
        for form in ("nv_single", "nv_exact")
        for rest in (
            *(f"gathered groups=256 m={6 * t} n=4096 k=4096" for t in (1, 64, 256, 1024, 8192)),
            "gathered groups=256 m=384 n=4096 k=2048 split",
            "masked groups=32 m=128 expected_m=4 n=4096 k=7168",
            "m=100 n=2880 k=2880 d=fp32 accumulate",
        )
    ),
]
WIDE = deep_gemm.Fp4GemmSpec(wide=True, block_m=128, warpgroups=2, k_blocks=1, stages=7)


@pytest.mark.parametrize("problem", PROBLEMS)
def test_no_spills_and_no_serialised_wgmma(problem: str) -> None:
    spec = deep_gemm.plan_fp4(problem, "90a:132")["spec"]
    stats = _C.build(_C.fp4_kernel_source(spec)).stats
    assert stats["warnings"] == [], spec
    assert stats["spill_store_bytes"] == stats["spill_load_bytes"] == stats["stack_bytes"] == 0, spec
    assert 0 < stats["registers"] <= spec.register_limit, spec


@pytest.mark.parametrize(("per_token", "block_m", "stages"), [(True, 224, 6), (False, 192, 6)])
def test_the_widest_blocks_with_two_sets_of_fragments(per_token: bool, block_m: int, stages: int) -> None:
    """No plan chooses them at the points above, but they are legal: those beyond would spill."""
    spec = WIDE.replace(
        groups="gathered", fragment_sets=2, per_token=per_token, block_m=block_m, stages=stages
    )
    assert spec.replace(block_m=block_m + 16, stages=5).why_illegal is not None
    stats = _C.build(_C.fp4_kernel_source(spec)).stats
    assert stats["warnings"] == []
    assert stats["spill_store_bytes"] == stats["spill_load_bytes"] == stats["stack_bytes"] == 0, spec


@pytest.mark.parametrize(
    ("groups", "a"),
    [("dense", "fp8_e4m3"), ("masked", "fp8_e4m3"), ("gathered", "fp8_e4m3"), ("gathered", "bf16")],
)
def test_arrange_builds(groups: str, a: str) -> None:
    spec = f"deep_gemm::ArrangeSpec{{.groups = deep_gemm::GroupMode::{groups}, .a = deep_gemm::Format::{a}}}"
    source = _C.KernelSource(
        "arrange", "#include <deep_gemm/kernel/arrange.cuh>\n", f"deep_gemm::arrange<{spec}>"
    )
    stats = _C.build(source).stats
    assert stats["warnings"] == []
    assert stats["spill_store_bytes"] == stats["spill_load_bytes"] == stats["stack_bytes"] == 0
    assert stats["registers"] <= 64, "four CTAs of 256 threads share an SM"


@pytest.mark.parametrize("groups", ["dense", "masked"])
def test_two_terms_build(groups: str) -> None:
    spec = f"deep_gemm::TwoTermSpec{{.groups = deep_gemm::GroupMode::{groups}}}"
    source = _C.KernelSource(
        "two_terms", "#include <deep_gemm/kernel/two_terms.cuh>\n", f"deep_gemm::two_terms<{spec}>"
    )
    stats = _C.build(source).stats
    assert stats["warnings"] == []
    assert stats["spill_store_bytes"] == stats["spill_load_bytes"] == stats["stack_bytes"] == 0
    assert stats["registers"] <= 64, "four CTAs of 256 threads share an SM"


@pytest.mark.parametrize("form", ["mx_e4m3", "mx_e5m2", "nv_single", "nv_exact"])
def test_the_packer_builds(form: str) -> None:
    spec = f"deep_gemm::Fp4PackSpec{{.form = deep_gemm::Fp4Form::{form}}}"
    source = _C.KernelSource(
        "fp4_pack", "#include <deep_gemm/kernel/fp4_pack.cuh>\n", f"deep_gemm::fp4_pack<{spec}>"
    )
    stats = _C.build(source).stats
    assert stats["warnings"] == []
    assert stats["spill_store_bytes"] == stats["spill_load_bytes"] == stats["stack_bytes"] == 0
    assert stats["registers"] <= 80, "three CTAs of 256 threads share an SM"


def test_an_illegal_spec_has_no_source() -> None:
    with pytest.raises(ValueError, match="accumulators do not fit"):
        _C.fp4_kernel_source(deep_gemm.Fp4GemmSpec(block_m=128, warpgroups=4, load_warps=2))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"block_m": 40}, "32 to 256 in steps of 16"),
        ({"by_32": True}, "and the few-token kernel's"),
        ({"by_32": True, "wide": False, "block_m": 40}, "block_m is at most 32"),
        ({"warpgroups": 1}, "2 to 4 warpgroups"),
        ({"ctas_per_sm": 2}, "an SM of its own"),
        ({"k_blocks": 2}, "is one blob, brought by one warp"),
        ({"cluster": 3}, "clusters of 1, 2 or 4 CTAs"),
        ({"fragment_sets": 3}, "one or two sets"),
        ({"form": "nv_exact", "fragment_sets": 2}, "has two sets of fragments anyway"),
        ({"a": "bf16", "fragment_sets": 2}, "has two sets of fragments anyway"),
        ({"a": "bf16", "block_m": 64}, "block_m 80 at least"),
        ({"a": "bf16", "block_m": 224, "stages": 3}, "accumulators do not fit"),
        ({"groups": "contiguous", "cluster": 2, "block_m": 256, "stages": 5}, "have block_m 240 at most"),
        ({"split": True, "fragment_sets": 2}, "no registers for a second set"),
        ({"split": True, "accumulate": True, "groups": "gathered"}, "or added outputs"),
        ({"per_token": True, "fragment_sets": 2, "block_m": 240, "stages": 5}, "accumulators do not fit"),
        ({"per_token": True, "form": "nv_exact", "block_m": 176, "stages": 5}, "block_m 160 at most"),
        (
            {"per_token": True, "fast_accumulation": True, "fragment_sets": 2, "block_m": 240, "stages": 5},
            "up to 224 tokens",
        ),
        ({"groups": "gathered", "queue": True}, "fixed turns"),
        ({"stages": 2}, "3 to 24 stages"),
        ({"block_m": 256, "stages": 5}, "have block_m 240 at most"),
        ({"block_m": 256, "warpgroups": 3, "cluster": 2}, "accumulators do not fit"),
        ({"stages": 24}, "stages do not fit shared memory"),
        ({"wide": False, "cluster": 2}, "are the wide kernel's"),
        ({"wide": False, "fragment_sets": 2}, "are the wide kernel's"),
    ],
    ids=str,
)
def test_what_the_wide_kernel_cannot_be(fields: dict[str, Any], words: str) -> None:
    assert WIDE.why_illegal is None
    with pytest.raises(ValueError, match=words):
        _C.fp4_kernel_source(WIDE.replace(**fields))
