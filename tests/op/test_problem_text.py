"""Problem texts that make no sense: refused with what is wrong, not planned as something else; and arguments that are
neither true nor false, or no integers.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

import deep_gemm
from deep_gemm import _C

DEVICE = "90a:132"
SHAPE = "gemm m=64 n=256 k=512"
NONSENSE = [
    (f"{SHAPE} m=128", "m is given twice"),
    (f"{SHAPE} masked psum groups=2", "group mode is given twice"),
    (f"{SHAPE} groups=8", "without a group mode"),
    (f"{SHAPE} expected_m=7", "without a group mode"),
    (f"{SHAPE} a=fp8_e4m3 b=bf16", "got a=fp8_e4m3 and b=bf16, expected one format for both"),
    (f"{SHAPE} b=bf16 a=fp8_e4m3", "got a=fp8_e4m3 and b=bf16, expected one format for both"),
    (f"{SHAPE} a=bf16 ab=fp8_e4m3", "got ab=fp8_e4m3 and a=bf16, expected one format for both"),
    ("gemm m=5000000000 n=256 k=512", "m=5000000000 is too large; expected less than 2\\^32"),
    ("gemm m=-5 n=256 k=512", "m=-5 is not a count; expected a whole number of at least 0"),
    (f"{SHAPE} scale_b=none", "expected scales for fp8_e4m3"),
    (f"{SHAPE} a=bf16 scale_b=per_row_128", "none for bf16"),
]


@pytest.mark.parametrize(("text", "sentence"), NONSENSE, ids=[text for text, _ in NONSENSE])
def test_nonsense(text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        _C.plan(text, DEVICE)


@pytest.mark.parametrize("words", ["b=bf16 a=bf16", "a=bf16 b=bf16", "b=bf16", "b=bf16 ab=bf16", "a=bf16"])
def test_one_format_in_any_order(words: str) -> None:
    assert _C.plan(f"{SHAPE} {words}", DEVICE)["spec"] == _C.plan(f"{SHAPE} ab=bf16", DEVICE)["spec"]


FP4_NONSENSE = [
    ("fp4_gemm m=5000000000 n=64 k=64", "m=5000000000 is too large"),
    ("fp4_gemm m=8 n=64 k=48", "k=48 is no multiple of 32, the group of mx_e4m3"),
    ("fp4_gemm m=8 n=64 k=40 form=nv_exact", "k=40 is no multiple of 16, the group of nv_exact"),
    ("fp4_gemm m=8 n=63 k=64", "n=63 is odd"),
    ("fp4_gemm m=8 n=64 k=64 form=fp4", "form=fp4 is unknown"),
    ("fp4_gemm m=8 n=64 k=64 m=9", "m is given twice"),
    ("fp4_gemm masked gathered groups=2 m=8 n=64 k=64", "group mode is given twice"),
    ("fp4_gemm m=8 n=64 k=64 split split", "split is given twice"),
    ("fp4_gemm m=8 n=64 k=64 bf16_products", "got bf16_products with FP8 activations, expected a=bf16"),
    ("fp4_gemm m=8 n=64 k=64 by_32 per_token", "got by_32 and per_token, expected one of them"),
    ("fp4_gemm m=8 n=64 k=64 a=bf16 per_token", "got per_token with a=bf16, expected FP8 activations"),
    ("fp4_gemm m=8 n=64 k=64 a=bf16 by_32", "got by_32 with a=bf16, expected FP8 activations"),
]


@pytest.mark.parametrize(("text", "sentence"), FP4_NONSENSE, ids=[text for text, _ in FP4_NONSENSE])
def test_fp4_nonsense(text: str, sentence: str) -> None:
    """What packing or a call refuses has no plan."""
    for ask in (deep_gemm.plan_fp4, deep_gemm.explain_fp4):
        with pytest.raises(ValueError, match=sentence):
            ask(text, DEVICE)
    assert deep_gemm.plan_fp4("fp4_gemm m=8 n=64 k=48 form=nv_single", DEVICE)


@pytest.mark.parametrize("twice", ["w=q8_0", "m=4", "strict strict", "padded padded"])
def test_linear_says_each_thing_once(twice: str) -> None:
    with pytest.raises(
        ValueError, match=f"{twice.split('=')[0].split()[0]} is given twice; expected it once"
    ):
        deep_gemm.explain_linear(f"linear w=mxfp4 m=3 n=64 k=64 {twice}", DEVICE)


def test_the_text_of_a_call_plans_the_same_kernel(emulator: Any) -> None:
    """n = 130 gives BF16 rows that TMA cannot write: the text has to say so."""
    m, n, k = 4, 130, 256
    a = np.zeros((m, k), ml_dtypes.float8_e4m3fn), np.ones((m, 2), np.float32)
    b = np.zeros((n, k), ml_dtypes.float8_e4m3fn), np.ones((2, 2), np.float32)
    deep_gemm.fp8_gemm_nt(a, b, np.zeros((m, n), ml_dtypes.bfloat16), device=emulator)
    ran = deep_gemm.last_plan()
    assert "unaligned_d" in ran["problem"]
    assert _C.plan(ran["problem"], emulator)["spec"] == ran["spec"]


def grouped_call(emulator: Any, layout: Any, **options: Any) -> None:
    rows = len(layout)
    a = np.zeros((rows, 128), ml_dtypes.float8_e4m3fn), np.ones((rows, 1), np.float32)
    b = np.zeros((2, 64, 128), ml_dtypes.float8_e4m3fn), np.ones((2, 1, 1), np.float32)
    d = np.zeros((rows, 64), ml_dtypes.bfloat16)
    deep_gemm.m_grouped_fp8_gemm_nt_contiguous(a, b, d, layout, device=emulator, **options)


def test_groups_that_share_128_rows(emulator: Any) -> None:
    with pytest.raises(ValueError, match="row 0 to group 0 and row 64 to group 1"):
        grouped_call(emulator, np.repeat(np.arange(2, dtype=np.int32), 64))


def test_a_flag_that_is_neither(emulator: Any) -> None:
    with pytest.raises(ValueError, match="ambiguous"):
        grouped_call(emulator, np.zeros(128, np.int32), use_psum_layout=np.array([1, 2]))


def test_a_recipe_without_a_length(emulator: Any) -> None:
    with pytest.raises(ValueError, match="expected 3 integers"):
        grouped_call(emulator, np.zeros(128, np.int32), recipe=np.array(3))


@pytest.mark.parametrize("count", [-2, 1025, 100000])
def test_numbers_of_multiprocessors(count: int) -> None:
    with pytest.raises(ValueError, match="expected a number up to 1024, or 0 for all"):
        deep_gemm.set_num_sms(count)


@pytest.mark.parametrize("device", ["90a:xyz", "90a:", "90a:132x", "90a:-1", "90a:0", "90a:99999999999"])
def test_a_device_that_is_not_here_is_an_architecture_and_a_number(device: str) -> None:
    with pytest.raises(ValueError, match=f"device: got '{device}', expected an architecture and its number"):
        deep_gemm.plan("gemm m=64 n=64 k=128", device)
