"""Small-batch kernels of each kind that a plan chooses assemble without spills for sm_90a, and for the other architectures."""

from __future__ import annotations

import pytest

from deep_gemm import _C

# One of each decoder and each way to scale; the widest of each first.
PAIRS = [
    ("fp8_32", "fp8_32"),
    ("int4_zero_32", "bf16"),
    ("nvfp4", "bf16"),
    ("fp8_128x128", "fp8_128"),
    ("bf16", "bf16"),
]
MMA = [{}, {"tokens": 16}, {"row_tiles": 2, "swiglu": True}]
Q8 = [
    {},
    {"row_tiles": 2},
    {"row_tiles": 2, "swiglu": True},
    {"tokens": 1},
    {"tokens": 2, "row_tiles": 2},
    {"tokens": 2, "row_tiles": 2, "swiglu": True},
]
RESIDENT = [
    {"groups": 2, "stages": 3},
    {"groups": 2, "stages": 2, "tokens": 16},
    {"row_tiles": 2, "stages": 2, "swiglu": True},
    {"row_tiles": 2, "stages": 2, "tokens": 16},
]
OTHERS = ["80", "89", "100a", "120a", "121a"]


def check(artifact: _C.Artifact, what: str) -> None:
    stats = artifact.stats
    assert stats["warnings"] == [], what
    assert stats["spill_store_bytes"] == stats["spill_load_bytes"] == stats["stack_bytes"] == 0, what
    assert 0 < stats["registers"] <= 255, what


@pytest.mark.parametrize(("w", "x"), PAIRS, ids=str)
def test_mma_kernels(w: str, x: str) -> None:
    sources = [_C.gemv_source(w, x, **options) for options in MMA]
    for artifact, options in zip(_C.build_all(sources), MMA, strict=True):
        check(artifact, f"{w} {x} {options}")


@pytest.mark.parametrize(
    ("w", "x"), [("int4_32", "fp8_128"), ("int4_zero_32", "bf16"), ("mxfp4", "fp8_128"), ("nvfp4", "bf16"), ("fp8_32", "fp8_32"), ("bf16", "bf16")], ids=str
)  # fmt: skip
def test_resident_kernels(w: str, x: str) -> None:
    """With as many groups as a plan may take, no more registers than leave room for them."""
    sources = [_C.gemv_source(w, x, resident=True, **options) for options in RESIDENT]
    if w == "int4_32":  # and beside it the one whose scales need not be vectors
        sources[-1] = _C.gemv_source("int4_128", x, resident=True, row_alignment=2, **RESIDENT[-1])
    for artifact, options in zip(_C.build_all(sources), RESIDENT, strict=True):
        check(artifact, f"{w} {x} resident {options}")


@pytest.mark.parametrize("w", ["q8_0", "q8_0_split"])
def test_resident_q8_kernels(w: str) -> None:
    paired = {"row_tiles": 2, "swiglu": True}
    options = [
        {"stages": 2, **option}
        for option in (
            {},
            {"tokens": 16, **paired},
            {"bulk": True, "tokens": 16},
            {"bulk": True, "tokens": 16, **paired},
            {"bulk": True, "row_alignment": 4},
            {"bulk": True, "tokens": 16, "row_alignment": 2, **paired},
        )
        if w == "q8_0" or "bulk" not in option
    ]
    for artifact, option in zip(
        _C.build_all([_C.gemv_source(w, "q8", resident=True, **o) for o in options]), options, strict=True
    ):
        check(artifact, f"{w} resident {option}")


@pytest.mark.parametrize("w", ["q8_0", "q8_0_split"])
def test_q8_kernels(w: str) -> None:
    for artifact, option in zip(_C.build_all([_C.gemv_source(w, "q8", **o) for o in Q8]), Q8, strict=True):
        check(artifact, f"{w} {option}")


@pytest.mark.parametrize("arch", OTHERS)
def test_other_architectures(arch: str) -> None:
    """Ampere to Blackwell have the same text, without and with dependent launch. (121a differs from 120a in name alone.)"""
    dependent = arch not in ("80", "89")
    pairs = [("fp8_128x128", "fp8_128"), ("nvfp4", "bf16"), ("q8_0", "q8")]
    sources = [
        _C.gemv_source(w, x, resident=resident, dependent_launch=dependent, native_fp8=arch != "80")
        for w, x in pairs
        for resident in ((False,) if arch == "121a" else (False, True))
    ]
    for artifact in _C.build_all(sources, arch=arch):
        assert artifact.stats["spill_store_bytes"] == 0, f"sm_{arch}"


def test_unaligned_kernels() -> None:
    """The masked path is not one to be fast in; it must exist for every layout."""
    pairs = [("fp8_32", "fp8_32"), ("int4_zero_32", "bf16")]
    for artifact in _C.build_all([_C.gemv_source(w, x, vector=False) for w, x in pairs]):
        assert artifact.stats["registers"] <= 255
