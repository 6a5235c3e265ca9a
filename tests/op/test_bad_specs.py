"""Specs and settings that there are not."""

from __future__ import annotations

from typing import Any

import pytest

import deep_gemm


def test_fields_of_a_spec() -> None:
    with pytest.raises(TypeError, match="has no field 'block_k'"):
        deep_gemm.GemmSpec(block_k=64)
    with pytest.raises(ValueError, match="GemmSpec: ab: got 'fp4', expected one of fp8_e4m3, bf16"):
        deep_gemm.GemmSpec(ab="fp4")
    with pytest.raises(ValueError, match="Fp4GemmSpec: form: got 'nv', expected one of mx_e4m3"):
        deep_gemm.Fp4GemmSpec(form="nv")


SPECS = [deep_gemm.GemmSpec, deep_gemm.Fp4GemmSpec, deep_gemm.WeightGemmSpec]


@pytest.mark.parametrize("spec", SPECS)
def test_a_spec_is_a_value(spec: Any) -> None:
    one, other = spec(block_m=64), spec(block_m=128)
    assert one == other.replace(block_m=64) and one != other and one != "x"
    assert hash(one) == hash(spec(block_m=64)) and eval(repr(one), {spec.__name__: spec}) == one
    assert spec(**one.to_dict()) == one and one.block_m == one.to_dict()["block_m"] == 64
    with pytest.raises(AttributeError, match=f"{spec.__name__} has no field 'block'"):
        _ = one.block


@pytest.mark.parametrize("spec", SPECS)
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
