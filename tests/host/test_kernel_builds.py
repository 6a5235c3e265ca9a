"""Every kernel a plan can choose builds for its architecture without spills and without serialised wgmma."""

from __future__ import annotations

import pytest

from deep_gemm import _C

DEVICE = "90a:132"
GROUPS = ("", "contiguous groups=8 ", "psum groups=8 ", "masked groups=8 ")
FORMS = (
    "",
    " d=fp32 accumulate",
    " accumulate",
    " scale_b=per_row_128",
    " d=fp32 scale_b=per_row_128 accumulate",
    " a=bf16",
    " a=bf16 b_major=mn",
    " a=bf16 accumulate",
    " a=bf16 d=fp32 accumulate",
    " a=bf16 d=fp32 a_major=mn b_major=mn accumulate",
)


def check_builds(specs: list[_C.GemmSpec]) -> None:
    artifacts = _C.build_all([_C.kernel_source(spec) for spec in specs])
    for spec, artifact in zip(specs, artifacts, strict=True):
        stats = artifact.stats
        assert stats["warnings"] == [], spec
        assert stats["spill_store_bytes"] == stats["spill_load_bytes"] == stats["stack_bytes"] == 0, spec
        assert 0 < stats["registers"] <= 255, spec


@pytest.mark.parametrize("groups", GROUPS, ids=lambda groups: groups.split(" ")[0] or "dense")
@pytest.mark.parametrize("form", FORMS)
def test_no_spills_and_no_serialised_wgmma(groups: str, form: str, request: pytest.FixtureRequest) -> None:
    """What a plan chooses for many tokens; in one form, and with --every-spec in all, everything it may choose."""
    problem = f"gemm {groups}m=2048 n=4096 k=7168{form}"
    if request.config.getoption("--every-spec") or (groups, form) == ("", ""):
        specs = _C.enumerate_specs(problem, DEVICE)
        assert specs
        check_builds(specs)
    else:
        check_builds([_C.plan(problem, DEVICE)["spec"]])


def test_the_source_of_a_spec() -> None:
    spec = _C.GemmSpec(block_m=128, block_n=128, stages=5)
    source = _C.kernel_source(spec)
    lines = source.code.splitlines()
    assert source.name == "sm90_fp8_gemm_nt"
    assert source.entry == "deep_gemm::sm90_fp8_gemm_nt<kSpec>"
    assert lines[0].startswith("// deep_gemm ") and lines[0].endswith(" | sm90_fp8_gemm_nt")
    assert lines[1:3] == ["#include <deep_gemm/kernel/sm90_gemm.cuh>", "using namespace deep_gemm;"]
    assert lines[3].startswith("constexpr GemmSpec kSpec{.ab = Format::fp8_e4m3, .d = Format::bf16, ")
    assert ".stages = 5, " in lines[3]
    assert lines[4].startswith(
        f"static_assert(plan_smem(kSpec).bytes == {spec.smem_bytes} && sizeof(GemmParams) == "
    )
