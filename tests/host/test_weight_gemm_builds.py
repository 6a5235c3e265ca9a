"""Large-batch weight-only kernels that a plan chooses assemble for sm_90a without spills or serialised wgmma."""

from __future__ import annotations

import pytest

import deep_gemm
from deep_gemm import _C
from deep_gemm.quantized import FORMATS

SERVED = [name for name in FORMATS if not name.startswith("q8")]
DEVICE = "90a:132"


def check(specs: list[deep_gemm.WeightGemmSpec]) -> None:
    for artifact, spec in zip(_C.build_all([_C.weight_gemm_source(s) for s in specs]), specs, strict=True):
        stats = artifact.stats
        assert stats["warnings"] == [], spec
        assert stats["spill_store_bytes"] == stats["spill_load_bytes"] == stats["stack_bytes"] == 0, spec
        assert 0 < stats["registers"] <= 255, spec


@pytest.mark.parametrize("w", SERVED)
def test_most_tokens(w: str) -> None:
    """Compute-bound: the most accumulators, pairs of CTAs."""
    x = "fp16" if w == "fp16" else "bf16"
    check([_C.plan_weight_gemm(w, 8192, 14336, 4096, x=x, device=DEVICE)])


def test_other_chosen_kernels() -> None:
    """Memory-bound; K with a tail; fp32 y."""
    plans = [
        _C.plan_weight_gemm(w, m, n, k, y=y, device=DEVICE)
        for w, m, n, k, y in (
            ("fp8_128x128", 32, 4096, 4096, "bf16"),
            ("nvfp4", 64, 14336, 4096, "bf16"),
            ("int4_zero_32", 200, 14336, 2880, "bf16"),
            ("mxfp4", 512, 4096, 14336, "fp32"),
            ("bf16", 64, 4096, 4096, "fp32"),
        )
    ]
    check(plans)


def test_swiglu() -> None:
    """The most accumulators of the layouts that need the most and the fewest registers beside them."""
    specs = [
        deep_gemm.WeightGemmSpec(
            w=w, epilogue="swiglu", block_m=block_m, cluster=2, token_stages=4, weight_stages=2
        )
        for w, block_m in (("mxfp4", 256), ("int4_zero_32", 128), ("bf16", 256))
    ]
    legal = [spec for spec in specs if spec.why_illegal is None]
    assert len(legal) >= 2
    check(legal)


def test_integers() -> None:
    check([_C.plan_weight_gemm("int8_row", m, 14336, 4096, x="int8_row", device=DEVICE) for m in (16, 8192)])


def test_every_block_size() -> None:
    """Both numbers of warpgroups, of the layouts that need the most and the fewest registers."""
    specs = [
        deep_gemm.WeightGemmSpec(w=w, block_m=block_m, warpgroups=warpgroups, token_stages=4, weight_stages=2)
        for w in ("int8_row", "int4_zero_32")
        for block_m in (16, 192)
        for warpgroups in (1, 2)
    ]
    legal = [spec for spec in specs if spec.why_illegal is None]
    assert len(legal) >= 7
    check(legal)
