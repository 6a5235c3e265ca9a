"""What binding code refuses: got, expected, remedy, in the words of the argument that is wrong."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import deep_gemm
from deep_gemm import ops

A = (np.zeros((64, 256), ml_dtypes.float8_e4m3fn), np.ones((64, 2), np.float32))
B = (np.zeros((128, 256), ml_dtypes.float8_e4m3fn), np.ones((1, 2), np.float32))
D = np.zeros((64, 128), ml_dtypes.bfloat16)
MASKED = ((A[0][None], A[1][None]), (B[0][None], B[1][None]), D[None])
WHERE = "90a:132"


def gemm(a: Any = A, b: Any = B, d: Any = D, **more: Any) -> None:
    deep_gemm.fp8_gemm_nt(a, b, d, **more)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (
            lambda: deep_gemm.m_grouped_fp8_gemm_nt_masked(*MASKED, np.array([64]), 64),
            TypeError,
            "masked_m is int64, expected int32; convert it",
        ),
        (
            lambda: gemm((A[0], A[1].astype(np.float64))),
            TypeError,
            "scales of a is float64, expected fp32",
        ),
        (lambda: gemm(d=D.astype(np.float64)), TypeError, "d is float64, expected bf16 or fp32; convert it"),
        (
            lambda: gemm((A[0].view(np.uint8), A[1])),
            TypeError,
            "a is uint8, expected fp8_e4m3; convert it, or pass deep_gemm.view_as",
        ),
        (lambda: gemm((*A, 1)), TypeError, "a is a tuple of 3, expected a pair"),
        (
            lambda: gemm(stream=2**70),
            ValueError,
            f"stream is {2**70}, expected None or the handle of a CUDA stream, an int from 0",
        ),
        (lambda: deep_gemm.plan(5), TypeError, "problem is 5, expected a str such as 'gemm m="),
        (
            lambda: deep_gemm.warmup("gemm m=1 n=2 k=3"),
            TypeError,
            "problems is 'gemm m=1 n=2 k=3', expected a list of them",
        ),
        (lambda: deep_gemm.set_pdl("x"), TypeError, "set_pdl: new_enable_pdl is 'x', expected True or False"),
        (lambda: deep_gemm.set_num_sms(2.5), TypeError, "new_num_sms is 2.5, expected an int, or 0"),
        *(
            (
                lambda recipe=recipe: deep_gemm.transform_sf_into_required_layout(A[1], 64, 256, recipe),
                ValueError,
                f"got recipe {recipe!r}, expected (rows, k) of this operand",
            )
            for recipe in ((1,), None, 128, (1, 1, 1, 128))
        ),
        (
            lambda: deep_gemm.get_mn_major_tma_aligned_tensor([1]),
            TypeError,
            "get_mn_major_tma_aligned_tensor: got a list, expected a numpy array",
        ),
        (
            lambda: deep_gemm.testing.assert_bitwise_equal([1], [1]),
            TypeError,
            "assert_bitwise_equal: got a list, expected a numpy array",
        ),
        *(
            (
                lambda cast=cast, gran_k=gran_k: getattr(deep_gemm, cast)(A[1], gran_k=gran_k),
                ValueError,
                f"{cast}: got gran_k={gran_k!r}, expected an int of at least 1",
            )
            for cast in (
                "per_token_cast_to_fp8",
                "per_block_cast_to_fp8",
                "per_channel_cast_to_fp8",
                "per_token_cast_to_fp4",
            )
            for gran_k in (0, -128, 12.5, None)
        ),
        *(
            (
                lambda explain=explain, text=text, rows=rows: explain(text, WHERE, rows=rows),
                TypeError,
                f"explain: rows is {rows!r}, expected a number of candidates",
            )
            for explain, text in (
                (deep_gemm.explain, "gemm m=64 n=64 k=64"),
                (deep_gemm.explain_fp4, "fp4_gemm m=4 n=64 k=64"),
                (deep_gemm.explain_linear, "linear w=mxfp4 m=1 n=128 k=128"),
            )
            for rows in (-1, "all")
        ),
        *(
            (
                lambda value=value: deep_gemm.set_block_size_multiple_of(value),
                ValueError,
                f"set_block_size_multiple_of: got {value!r}, expected a positive int, or two",
            )
            for value in ("abc", 0, (1, 2, 3), (1, "x"))
        ),
        *(
            (
                lambda value=value: deep_gemm.set_tc_util(value),
                ValueError,
                f"set_tc_util: got {value!r}, expected an int, 0 to 100 percent",
            )
            for value in (-1, 101, "all")
        ),
        (lambda: deep_gemm.GemmSpec(foo=3), TypeError, "no field 'foo', expected one of ab, d, scale_b"),
        (lambda: deep_gemm.Fp4GemmSpec(foo=3), TypeError, "no field 'foo', expected one of form, a"),
        (
            lambda: deep_gemm.plan("gemm masked m=64 n=128 k=128", WHERE),
            ValueError,
            "masked without groups=; expected the number of matrices of b",
        ),
        (
            lambda: deep_gemm.plan(f"gemm m={2**30 + 1} n=128 k=128", WHERE),
            ValueError,
            f"expected m and n of at most {2**30}",
        ),
        *(
            (
                lambda device=device: deep_gemm.plan("gemm m=64 n=64 k=64", device),
                ValueError,
                f"device: got '{device}', expected an architecture and its number of multiprocessors, as in 90a:132",
            )
            for device in ("90a", "90a:", "90a:many")
        ),
        (
            lambda: deep_gemm.explain("linear w=mxfp5 m=1 n=128 k=128", WHERE),
            ValueError,
            "w=mxfp5 is unknown; expected one of bf16, fp16, fp8_128x128",
        ),
        (
            lambda: deep_gemm.plan("linear w=mxfp4 m=1 n=128 k=128", WHERE),
            ValueError,
            "got a 'linear' problem, expected a 'gemm' one; deep_gemm.explain tells of all three",
        ),
    ],
)
def test_refused_in_words(call: Callable[[], object], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=re.escape(text)):
        call()


def test_explain_tells_of_every_family() -> None:
    linear, fp4 = "linear w=mxfp4 m=512 n=14336 k=4096", "fp4_gemm gathered groups=256 m=384 n=4096 k=4096"
    assert deep_gemm.explain(linear, WHERE) == deep_gemm.explain_linear(linear, WHERE)
    assert deep_gemm.explain(fp4, WHERE) == deep_gemm.explain_fp4(fp4, WHERE)


def test_explain_says_which_operands_need_padded_rows() -> None:
    assert "pad" not in deep_gemm.explain("gemm m=64 n=7168 k=2048", WHERE)
    assert "pad a (k=2047) and b (k=2047) to multiples of 16" in deep_gemm.explain(
        "gemm m=64 n=7168 k=2047", WHERE
    )
    text = "gemm m=64 n=7168 k=2047 ab=bf16 b_major=mn"
    assert "pad a (k=2047) to multiples of 8" in deep_gemm.explain(text, WHERE)


def test_devices_of_one_name_are_equal() -> None:
    one, same = (deep_gemm.Device("emulator:sm_90a", seed=3) for _ in range(2))
    assert one == same and hash(one) == hash(same) and one != deep_gemm.Device("emulator") and one != "x"
    assert eval(repr(one), {"Device": deep_gemm.Device}) == one


def test_view_as_shows_what_it_is() -> None:
    assert repr(deep_gemm.view_as(B[0], "fp8_e4m3")) == "TypedTensor(fp8_e4m3, shape=(128, 256))"


STREAM_TAKERS: dict[str, Callable[[Any], Any]] = {
    "fp8_gemm_nt": lambda stream: gemm(stream=stream),
    "project": lambda stream: ops.project(
        np.zeros((1, 32), np.float32),
        np.zeros((4, 32), np.float32),
        np.zeros((1, 4), np.float32),
        stream=stream,
    ),
    "linear": lambda stream: deep_gemm.linear(
        np.zeros((1, 32), ml_dtypes.bfloat16),
        deep_gemm.quantize(np.zeros((4, 32), np.float32), "int8"),
        stream=stream,
    ),
    "quantize_activations": lambda stream: deep_gemm.quantize_activations(
        np.zeros((1, 32), ml_dtypes.bfloat16), "fp8_32", stream=stream
    ),
    "group_tokens": lambda stream: deep_gemm.group_tokens(np.zeros((1, 1), np.int32), 1, stream=stream),
}


@pytest.mark.parametrize("name", STREAM_TAKERS)
@pytest.mark.parametrize(
    ("stream", "error", "text"),
    [
        (
            "main",
            TypeError,
            "stream is a str, expected None or the handle of a CUDA stream, an int from 0 to 2",
        ),
        (1.5, TypeError, "stream is a float, expected .*; PyTorch's streams have it as cuda_stream"),
        (True, TypeError, "stream is a bool, expected"),
        (-1, ValueError, "stream is -1, expected None or the handle of a CUDA stream, an int from 0 to 2"),
    ],
)
def test_a_stream_is_a_handle(name: str, stream: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        STREAM_TAKERS[name](stream)
