"""The forms nn, tn and tt: the bits of nt for the same operands given transposed, in everything that nt takes."""

from __future__ import annotations

import inspect
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import deep_gemm
from deep_gemm import utils

M, N, K, GROUPS = 40, 128, 256, 2
BF16 = ml_dtypes.bfloat16
FORMS = ("nn", "tn", "tt")
Pair = tuple[Any, Any]


def turned(x: Any) -> Any:
    return x.swapaxes(-1, -2)


def turned_pair(pair: Pair) -> Pair:
    return turned(pair[0]), turned(pair[1])


def fp8_operands() -> tuple[Pair, Pair]:
    rng = np.random.default_rng(0)
    a = utils.per_token_cast_to_fp8(rng.standard_normal((M, K)).astype(np.float32))
    return a, utils.per_block_cast_to_fp8(rng.standard_normal((N, K)).astype(np.float32))


def fp4_pair(*groups: int) -> Pair:
    rng = np.random.default_rng(1)
    codes = rng.integers(-128, 128, (*groups, N, K // 2)).astype(np.int8)
    return codes, np.exp2(rng.integers(-8, 0, (*groups, N, K // 32))).astype(np.float32)


def given(form: str, a: Any, b: Any) -> tuple[Any, Any]:
    """The operands as the letters of the form say."""
    turn = turned_pair if isinstance(a, tuple) else turned
    return turn(a) if form[0] == "t" else a, turn(b) if form[1] == "n" else b


def output(*shape: int) -> Any:
    return np.full(shape or (M, N), 7, BF16)


def bits(d: Any) -> Any:
    return d.view(np.uint16)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["fp8_gemm", "fp8_fp4_gemm"])
def test_fp8_pairs_may_be_lists(emulator: Any, name: str, form: str) -> None:
    a, b = fp8_operands()
    expected, d = output(), output()
    deep_gemm.fp8_gemm_nt(a, b, expected, device=emulator)
    left, right = given(form, a, b)
    getattr(deep_gemm, f"{name}_{form}")(list(left), list(right), d, device=emulator)
    assert (bits(d) == bits(expected)).all()


@pytest.mark.parametrize("form", FORMS)
def test_operands_that_are_viewed_as_bf16(emulator: Any, form: str) -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((rows, K)).astype(BF16) for rows in (M, N))
    c, expected, d = output(), output(), output()
    deep_gemm.bf16_gemm_nt(a, b, expected, c, "nk", device=emulator)
    left, right = (deep_gemm.view_as(x.view(np.uint16), "bf16") for x in given(form, a, b))
    getattr(deep_gemm, f"bf16_gemm_{form}")(left, right, d, c, "mn", device=emulator)
    assert (bits(d) == bits(expected)).all()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("packed", [True, False], ids=["Fp4Weights", "pair"])
def test_fp4(emulator: Any, packed: bool, form: str) -> None:
    """Fp4Weights have their own layout, [n, k] whatever the letters say; a pair is turned like a tensor."""
    a, b = fp8_operands()[0], fp4_pair()
    weights = deep_gemm.pack_fp4_weights(*b)
    expected, d = output(), output()
    deep_gemm.fp8_fp4_gemm_nt(a, weights, expected, device=emulator)
    left, right = given(form, a, b)
    getattr(deep_gemm, f"fp8_fp4_gemm_{form}")(left, weights if packed else right, d, device=emulator)
    assert bits(d).any() and (bits(d) == bits(expected)).all()


@pytest.mark.parametrize("packed", [True, False], ids=["Fp4Weights", "pair"])
def test_grouped_fp4(emulator: Any, packed: bool) -> None:
    a, b = fp8_operands()[0], fp4_pair(GROUPS)
    weights = deep_gemm.pack_fp4_weights(*b)
    layout = np.full(M, 1, np.int32)
    expected, d = output(), output()
    deep_gemm.m_grouped_fp8_fp4_gemm_nt_contiguous(a, weights, expected, layout, device=emulator)
    operand = weights if packed else turned_pair(b)
    deep_gemm.m_grouped_fp8_fp4_gemm_nn_contiguous(a, operand, d, layout, device=emulator)
    assert bits(d).any() and (bits(d) == bits(expected)).all()


def test_grouped_fp8_weights_under_both_names(emulator: Any) -> None:
    a, b = fp8_operands()
    stacked = tuple(np.stack([x, x]) for x in b)
    layout = np.full(M, 1, np.int32)
    expected = output()
    deep_gemm.m_grouped_fp8_gemm_nt_contiguous(a, stacked, expected, layout, device=emulator)
    for function in (
        deep_gemm.m_grouped_fp8_gemm_nn_contiguous,
        deep_gemm.m_grouped_fp8_fp4_gemm_nn_contiguous,
    ):
        d = output()
        function(a, turned_pair(stacked), d, layout, device=emulator)
        assert (bits(d) == bits(expected)).all()


def test_codes_along_n_are_refused(emulator: Any) -> None:
    """A packed [k / 2, n] holds neighbours along n in a byte, were it DeepGEMM's: it is not read as another matrix."""
    a, (codes, scales) = fp8_operands()[0], fp4_pair()
    with pytest.raises(
        ValueError, match=r"^fp8_fp4_gemm_nn: got FP4 codes with stride 128 along k, expected 1"
    ):
        deep_gemm.fp8_fp4_gemm_nn(a, (np.ascontiguousarray(codes.T), scales.T), output(), device=emulator)


def test_a_pair_of_no_matrices(emulator: Any) -> None:
    with pytest.raises(ValueError, match=r"^fp8_fp4_gemm_nn: got FP4 codes \(4,\) and scales \(1,\) for b"):
        deep_gemm.fp8_fp4_gemm_nn(
            fp8_operands()[0], (np.zeros(4, np.int8), np.ones(1, np.float32)), output(), device=emulator
        )


@pytest.mark.parametrize("family", ["fp8_gemm", "fp8_fp4_gemm", "bf16_gemm"])
def test_forms_have_the_parameters_of_nt(family: str) -> None:
    nt = inspect.signature(getattr(deep_gemm, f"{family}_nt")).parameters
    for form in FORMS:
        assert list(inspect.signature(getattr(deep_gemm, f"{family}_{form}")).parameters) == list(nt)


BAD_D: list[tuple[str, Any]] = [("fp16", np.float16), ("float64", np.float64), ("int32", np.int32)]


@pytest.mark.parametrize("form", ["nt", *FORMS])
@pytest.mark.parametrize(("name", "dtype"), BAD_D)
def test_errors_begin_with_the_function_called(emulator: Any, form: str, name: str, dtype: Any) -> None:
    a, b = fp8_operands()
    function = getattr(deep_gemm, f"fp8_gemm_{form}")
    with pytest.raises(TypeError, match=rf"^fp8_gemm_{form}: d is {name}, expected bf16 or fp32"):
        function(*given(form, a, b), np.zeros((M, N), dtype), device=emulator)
    with pytest.raises(ValueError, match=rf"^fp8_gemm_{form}: d has shape \[1, 1\], expected \[{M}, {N}\]"):
        function(*given(form, a, b), output(1, 1), device=emulator)


@pytest.mark.parametrize("num_sms", [1, 3])
def test_any_number_of_multiprocessors(emulator: Any, num_sms: int) -> None:
    """FP4 kernels share blocks among clusters of two: an odd number leaves one out, and changes no bit."""
    rng = np.random.default_rng(0)
    a = utils.per_token_cast_to_fp8(rng.standard_normal((300, K)).astype(np.float32))
    weights = deep_gemm.pack_fp4_weights(*fp4_pair())
    expected, d = output(300, N), output(300, N)
    deep_gemm.fp8_fp4_gemm_nt(a, weights, expected, device=emulator)
    try:
        deep_gemm.set_num_sms(num_sms)
        assert deep_gemm.get_num_sms(emulator) == num_sms
        deep_gemm.fp8_fp4_gemm_nt(a, weights, d, device=emulator)
    finally:
        deep_gemm.set_num_sms(0)
    assert (bits(d) == bits(expected)).all()
