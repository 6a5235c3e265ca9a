"""Specs and settings that there are not."""

from __future__ import annotations

from typing import Any

import pytest

import deep_gemm
from deep_gemm import _C


def test_fields_of_a_spec() -> None:
    with pytest.raises(TypeError, match="has no field 'block_k'"):
        deep_gemm.GemmSpec(block_k=64)
    with pytest.raises(ValueError, match="GemmSpec: ab: got 'fp4', expected one of fp8_e4m3, bf16"):
        deep_gemm.GemmSpec(ab="fp4")
    with pytest.raises(ValueError, match="Fp4GemmSpec: form: got 'nv', expected one of mx_e4m3"):
        deep_gemm.Fp4GemmSpec(form="nv")


@pytest.mark.parametrize("spec", [deep_gemm.GemmSpec, deep_gemm.Fp4GemmSpec, _C.WeightGemmSpec])
def test_values_of_a_spec(spec: Any) -> None:
    for value, kind in (
        ("64", TypeError),
        (64.5, TypeError),
        (None, TypeError),
        (-1, ValueError),
        (2**32, ValueError),
    ):
        with pytest.raises(kind, match=rf"{spec.__name__}: block_m is {value!r}, expected a number from 0"):
            spec(block_m=value)


def test_truth_values_of_a_spec() -> None:
    with pytest.raises(TypeError, match="GemmSpec: swap_ab is 'yes', expected True or False"):
        deep_gemm.GemmSpec(swap_ab="yes")


def test_other_alignment() -> None:
    with pytest.raises(ValueError, match="expected 128"):
        deep_gemm.set_mk_alignment_for_contiguous_layout(64)
