"""The quantisation and mixture-of-experts kernels build for Hopper without spills, stack or warnings, in few enough
registers for the four blocks an SM is meant to hold.
"""

from __future__ import annotations

from itertools import product

import pytest

from deep_gemm import _C

RULES = ("exact", "up", "nearest")
FLAGS = ("false", "true")
SPECS = {
    "quantize": [
        *(f"QuantizeSpec kSpec{{.x = Format::{x}, .rule = ScaleRule::{rule}, .gather = {gather}}}"
          for x, rule, gather in product(("bf16", "fp32"), RULES, FLAGS)),
        *(f"QuantizeSpec kSpec{{.x = Format::{x}, .recipe = Recipe::mxfp4, .rule = ScaleRule::{rule}}}"
          for x, rule in product(("bf16", "fp32"), RULES[1:])),
        *(f"QuantizeSpec kSpec{{.x = Format::{x}, .recipe = Recipe::nvfp4, .row_amax = {row}, .gather = {gather}}}"
          for x, row, gather in product(("bf16", "fp32"), FLAGS, FLAGS)),
        *(f"QuantizeSpec kSpec{{.x = Format::{x}, .recipe = Recipe::fp8_row, .rule = ScaleRule::{rule}, .row_amax = true}}"
          for x, rule in product(("bf16", "fp32"), RULES)),
    ],
    "moe_group": [f"MoeGroupSpec kSpec{{.max_experts = {experts}}}" for experts in (256, 512, 1024)],
    "moe_swiglu": [f"MoeSwigluSpec kSpec{{.rule = ScaleRule::{rule}, .limited = {limited}, .weighted = {weighted}}}"
                   for rule, limited, weighted in product(RULES, FLAGS, FLAGS)]
                  + [f"MoeSwigluSpec kSpec{{.limited = {limited}, .weighted = {weighted}, .per_token = true}}"
                     for limited, weighted in product(FLAGS, FLAGS)]
                  + ["MoeSwigluSpec kSpec{.d = Format::bf16, .limited = true, .weighted = true}"],
    "moe_combine": [f"MoeCombineSpec kSpec{{.d = Format::{d}, .top_k = {top_k}, .combine_weighted = {weighted}, .shared = {shared}}}"
                    for d, top_k, weighted, shared in product(("bf16", "fp32"), (1, 6, 8, 16), FLAGS, FLAGS)],
}  # fmt: skip


def source_of(kernel: str, spec: str) -> _C.KernelSource:
    code = f"#include <deep_gemm/kernel/{kernel}.cuh>\nusing namespace deep_gemm;\nconstexpr {spec};\n"
    return _C.KernelSource(kernel, code, f"deep_gemm::{kernel}<kSpec>")


@pytest.mark.parametrize("kernel", SPECS)
def test_no_spills(kernel: str) -> None:
    artifacts = _C.build_all([source_of(kernel, spec) for spec in SPECS[kernel]])
    for spec, artifact in zip(SPECS[kernel], artifacts, strict=True):
        stats = artifact.stats
        assert stats["warnings"] == [], spec
        assert stats["spill_store_bytes"] == stats["spill_load_bytes"] == stats["stack_bytes"] == 0, spec
        assert 0 < stats["registers"] <= 64, spec


@pytest.mark.parametrize(
    ("kernel", "spec", "text"),
    [
        ("quantize", "QuantizeSpec kSpec{.recipe = Recipe::mxfp4}", "static assertion failed"),
        ("moe_group", "MoeGroupSpec kSpec{.max_experts = 1025}", "static assertion failed"),
        ("moe_combine", "MoeCombineSpec kSpec{.top_k = 17}", "static assertion failed"),
    ],
)
def test_illegal_specs_do_not_compile(kernel: str, spec: str, text: str) -> None:
    with pytest.raises(_C.Error, match=text):
        _C.build(source_of(kernel, spec))
