"""Helpers of deep_gemm.utils and deep_gemm.testing refuse what they cannot mean, in words."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import deep_gemm
from deep_gemm import testing, utils

X = np.arange(24, dtype=np.float32).reshape(2, 3, 4)


@pytest.mark.parametrize("dims", [(2,), (-1,)])
def test_custom_dims_count_from_the_end_too(dims: tuple[int, ...]) -> None:
    values, scale = utils.per_custom_dims_cast_to_fp8(X, dims)
    assert scale.shape == (4,)
    np.testing.assert_allclose(scale, X.max(axis=(0, 1)) / 448, rtol=1e-6)
    assert np.abs(values.astype(np.float32) * scale - X).max() < 1


@pytest.mark.parametrize("dims", [(5,), (-4,), (0, 0), (2, -1)])
def test_custom_dims_that_are_not_there(dims: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"got dims .* of an array of shape \(2, 3, 4\), expected different"):
        utils.per_custom_dims_cast_to_fp8(X, dims)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: utils.align(3, 0), ValueError, "align: got multiples of 0, expected at least 1"),
        (lambda: utils.ceil_div(3, -1), ValueError, "ceil_div: got a divisor of -1"),
        (lambda: utils.per_token_cast_to_fp8([[1, 2]]), TypeError, "got a list, expected a numpy array"),
        (lambda: deep_gemm.quantize([[1.0]], "mxfp4"), TypeError, "quantize: got a list, expected a numpy"),
        (lambda: testing.calc_diff(X, X[0]), ValueError, "got shapes (2, 3, 4) and (3, 4), expected one"),
        (
            lambda: deep_gemm.runtime.Tokenizer.encode(object.__new__(deep_gemm.runtime.Tokenizer), 5),
            TypeError,
            "encode: got text of type int, expected a str",
        ),
    ],
)
def test_refused_in_words(call: Callable[[], Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=re.escape(text)):
        call()


def test_without_pytorch_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(ModuleNotFoundError, match="get_arch_major: got no PyTorch, expected it with a GPU"):
        testing.get_arch_major()
