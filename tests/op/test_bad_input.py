"""Arguments that no operation takes: each gives one sentence with what was got and expected, and launches nothing."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from gemm_cases import launched_by

import deep_gemm

BF16 = ml_dtypes.bfloat16
FP8 = ml_dtypes.float8_e4m3fn
M, N, K, GROUPS = 32, 64, 256, 2


def fp8(*shape: int) -> Any:
    return np.zeros(shape, FP8)


def scales(*shape: int) -> Any:
    return np.ones(shape, np.float32)


def out(*shape: int) -> Any:
    return np.zeros(shape, BF16)


def dense(emulator: Any, **changes: Any) -> dict[str, Any]:
    arguments = {
        "a": (fp8(M, K), scales(M, 2)),
        "b": (fp8(N, K), scales(1, 2)),
        "d": out(M, N),
        "device": emulator,
    }
    return arguments | changes


def grouped(emulator: Any, **changes: Any) -> dict[str, Any]:
    arguments = {
        "a": (fp8(128, K), scales(128, 2)),
        "b": (fp8(GROUPS, N, K), scales(GROUPS, 1, 2)),
        "d": out(128, N),
        "grouped_layout": np.zeros(128, np.int32),
        "device": emulator,
    }
    return arguments | changes


def masked(emulator: Any, **changes: Any) -> dict[str, Any]:
    arguments = {
        "a": (fp8(GROUPS, M, K), scales(GROUPS, M, 2)),
        "b": (fp8(GROUPS, N, K), scales(GROUPS, 1, 2)),
        "d": out(GROUPS, M, N),
        "masked_m": np.zeros(GROUPS, np.int32),
        "expected_m": 4,
        "device": emulator,
    }
    return arguments | changes


def misaligned(*shape: int, dtype: Any = FP8, by: int = 8) -> Any:
    """Zeros that start `by` bytes after a multiple of 16."""
    num_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    storage = np.zeros(num_bytes + 32, np.uint8)
    start = (by - storage.ctypes.data) % 16
    return storage[start : start + num_bytes].view(dtype).reshape(shape)


def read_only(array: Any) -> Any:
    array.flags.writeable = False
    return array


DENSE: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    ("a of bf16", {"a": (np.zeros((M, K), BF16), scales(M, 2))}, TypeError, "a is bf16, expected fp8_e4m3"),
    (
        "a of e5m2",
        {"a": (np.zeros((M, K), ml_dtypes.float8_e5m2), scales(M, 2))},
        TypeError,
        "a is fp8_e5m2, expected",
    ),
    (
        "a of packed fp4",
        {"a": (np.zeros((M, K // 2), np.int8), scales(M, 2))},
        ValueError,
        "a is int8, expected fp8_e4m3",
    ),
    ("a of float64", {"a": (np.zeros((M, K)), scales(M, 2))}, TypeError, "is float64, expected"),
    ("a of big-endian", {"a": (np.zeros((M, K), ">f4"), scales(M, 2))}, TypeError, "is >f4, expected"),
    (
        "scales of float16",
        {"a": (fp8(M, K), np.ones((M, 2), np.float16))},
        TypeError,
        "scales of a is fp16, expected fp32",
    ),
    (
        "packed scales",
        {"a": (fp8(M, K), np.ones((M, 2), np.int32))},
        TypeError,
        "scales of a is int32, expected fp32",
    ),
    ("d of int32", {"d": np.zeros((M, N), np.int32)}, TypeError, "d is int32, expected bf16 or fp32"),
    ("c of another type", {"c": np.zeros((M, N), np.float32)}, TypeError, "c is fp32, expected bf16"),
    ("a is no pair", {"a": fp8(M, K)}, TypeError, "a is a numpy.ndarray, expected a pair"),
    ("a is a string", {"a": ("a", "b")}, TypeError, "a is a str, expected a tensor"),
    ("a is None", {"a": None}, TypeError, "a is None, expected"),
    ("no scales", {"a": (fp8(M, K), None)}, TypeError, "scales of a is a NoneType, expected a tensor"),
    (
        "one dimension",
        {"a": (fp8(K), scales(M, 2))},
        ValueError,
        "a has shape [256], expected 2 dimensions [m, k]",
    ),
    (
        "six dimensions",
        {"a": (fp8(1, 1, 1, 1, M, K), scales(M, 2))},
        ValueError,
        "a has 6 dimensions, expected at most 4",
    ),
    (
        "other k",
        {"b": (fp8(N, 128), scales(1, 1))},
        ValueError,
        "b has shape [64, 128], expected k=256 as in a",
    ),
    ("d of other shape", {"d": out(M, N + 1)}, ValueError, "d has shape [32, 65], expected [32, 64]"),
    (
        "c of other shape",
        {"c": out(M, N + 1)},
        ValueError,
        "c has shape [32, 65], expected d's shape [32, 64]",
    ),
    (
        "c of other strides",
        {"c": out(N, M).T},
        ValueError,
        "c has stride 1 along dimension 0, expected d's stride 64",
    ),
    (
        "few scales of a",
        {"a": (fp8(M, K), scales(M, 1))},
        ValueError,
        "scales of a has shape [32, 1], expected [32, 2]",
    ),
    (
        "few scales of b",
        {"b": (fp8(N, K), scales(2, 1))},
        ValueError,
        "scales of b has shape [2, 1], expected [1, 2]",
    ),
    (
        "row scales of b",
        {"b": (fp8(N, K), scales(N, 2))},
        ValueError,
        "for one for each row pass recipe (1, 1, 128)",
    ),
    ("a along m", {"a": (fp8(K, M).T, scales(M, 2))}, ValueError, "a has stride 32 along K, expected 1"),
    (
        "a with gaps",
        {"a": (fp8(M, 2 * K)[:, ::2], scales(M, 2))},
        ValueError,
        "a has stride 2 along K, expected 1",
    ),
    (
        "rows at odd places",
        {"a": (fp8(M, K + 8)[:, :K], scales(M, 2))},
        ValueError,
        "rows of a are 264 bytes apart",
    ),
    (
        "rows that overlap",
        {"a": (np.broadcast_to(fp8(1, K), (M, K)), scales(M, 2))},
        ValueError,
        "do not overlap",
    ),
    (
        "backward rows",
        {"a": (fp8(M, K)[::-1], scales(M, 2))},
        ValueError,
        "a has stride -256 along dimension 0",
    ),
    ("misaligned a", {"a": (misaligned(M, K), scales(M, 2))}, ValueError, "expected a multiple of 16 bytes"),
    ("misaligned b", {"b": (misaligned(N, K), scales(1, 2))}, ValueError, "b starts at 0x"),
    (
        "misaligned scales of a",
        {"a": (fp8(M, K), misaligned(M, 2, dtype=np.float32, by=2))},
        ValueError,
        "scales of a starts at 0x",
    ),
    (
        "misaligned scales of b",
        {"b": (fp8(N, K), misaligned(1, 2, dtype=np.float32, by=1))},
        ValueError,
        "expected a multiple of 4 bytes",
    ),
    ("misaligned d", {"d": misaligned(M, N, dtype=BF16, by=1)}, ValueError, "d starts at 0x"),
    ("misaligned c", {"c": misaligned(M, N, dtype=BF16, by=3)}, ValueError, "c starts at 0x"),
    (
        "k of 24",
        {"a": (fp8(M, 24), scales(M, 1)), "b": (fp8(N, 24), scales(1, 1))},
        ValueError,
        "rows of a are 24 bytes apart, expected multiples of 16; pad K to a multiple of 16 elements",
    ),
    ("d by columns", {"d": out(N, M).T}, ValueError, "d has stride 32 along N, expected 1"),
    ("read-only d", {"d": read_only(out(M, N))}, ValueError, "d is read-only"),
    ("recipe of 64", {"recipe": (1, 128, 64)}, ValueError, "got scales per (1, 64) of a and (128, 64) of b"),
    ("recipe of two", {"recipe": (1, 128)}, ValueError, "recipe is (1, 128), expected 3 integers"),
    ("half a recipe", {"recipe_a": (1, 128)}, ValueError, "expected both"),
    ("two recipes", {"recipe": (1, 128, 128), "recipe_a": (1, 128)}, ValueError, "expected one or the other"),
    ("no such argument", {"scale": 1}, TypeError, "has no argument 'scale'"),
    ("spec of a string", {"spec": "fast"}, TypeError, "spec is a str, expected a deep_gemm.GemmSpec"),
    ("device of a number", {"device": 3}, TypeError, "device is a int, expected a deep_gemm.Device"),
    (
        "stream of a string",
        {"stream": "s"},
        TypeError,
        "stream is a str, expected None or the handle of a CUDA stream",
    ),
]
GROUPED: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    (
        "short layout",
        {"grouped_layout": np.zeros(127, np.int32)},
        ValueError,
        "has shape [127], expected [128]",
    ),
    (
        "long layout",
        {"grouped_layout": np.zeros(129, np.int32)},
        ValueError,
        "has shape [129], expected [128]",
    ),
    ("layout of int64", {"grouped_layout": np.zeros(128, np.int64)}, TypeError, "is int64, expected"),
    ("layout of fp32", {"grouped_layout": scales(128)}, TypeError, "grouped_layout is fp32, expected int32"),
    (
        "layout with gaps",
        {"grouped_layout": np.zeros(256, np.int32)[::2]},
        ValueError,
        "has stride 2, expected 1",
    ),
    (
        "misaligned layout",
        {"grouped_layout": misaligned(128, dtype=np.int32, by=2)},
        ValueError,
        "grouped_layout starts at 0x",
    ),
    ("no layout", {"grouped_layout": None}, TypeError, "grouped_layout is None"),
    ("one matrix", {"b": (fp8(N, K), scales(1, 2))}, ValueError, "expected 3 dimensions [groups, n, k]"),
    ("psum of rows", {"use_psum_layout": True}, ValueError, "has shape [128], expected [2]"),
    ("stray expected_m", {"expected_m_for_psum_layout": 3}, ValueError, "only with use_psum_layout=True"),
    (
        "shared matrix",
        {"b": (np.broadcast_to(fp8(1, N, K), (GROUPS, N, K)), scales(GROUPS, 1, 2))},
        ValueError,
        "groups of b are 0 elements apart",
    ),
]
MASKED: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    ("short counts", {"masked_m": np.zeros(1, np.int32)}, ValueError, "masked_m has shape [1], expected [2]"),
    (
        "other groups",
        {"b": (fp8(3, N, K), scales(3, 1, 2))},
        ValueError,
        "b has 3 groups, expected 2 as in a",
    ),
    (
        "misaligned counts",
        {"masked_m": misaligned(GROUPS, dtype=np.int32, by=1)},
        ValueError,
        "masked_m starts at 0x",
    ),
    ("negative expected_m", {"expected_m": -1}, ValueError, "expected_m is -1"),
    ("expected_m of a string", {"expected_m": "4"}, TypeError, "expected_m is a str, expected an int"),
    ("two dimensions", {"a": (fp8(M, K), scales(M, 2))}, ValueError, "expected 3 dimensions [groups, m, k]"),
    ("d of two dimensions", {"d": out(M, N)}, ValueError, "d has shape [32, 64], expected 3 dimensions"),
]


REMEDY = re.compile(r"expected .*[;:(]")  # what to do, or what the expected extents mean


def check(
    operation: Callable[..., None], arguments: dict[str, Any], error: type[Exception], sentence: str
) -> None:
    def call() -> None:
        with pytest.raises(error) as raised:
            operation(**arguments)
        text = str(raised.value)
        assert sentence in text
        assert REMEDY.search(text) or " must be " in text or "has no argument" in text, text

    assert launched_by(call) is None


def ids(cases: list[tuple[str, dict[str, Any], type[Exception], str]]) -> list[str]:
    return [case[0] for case in cases]


@pytest.mark.parametrize(("name", "changes", "error", "sentence"), DENSE, ids=ids(DENSE))
def test_dense(emulator: Any, name: str, changes: Any, error: Any, sentence: str) -> None:
    check(deep_gemm.fp8_gemm_nt, dense(emulator, **changes), error, sentence)


@pytest.mark.parametrize(("name", "changes", "error", "sentence"), GROUPED, ids=ids(GROUPED))
def test_contiguous(emulator: Any, name: str, changes: Any, error: Any, sentence: str) -> None:
    check(deep_gemm.m_grouped_fp8_gemm_nt_contiguous, grouped(emulator, **changes), error, sentence)


@pytest.mark.parametrize(("name", "changes", "error", "sentence"), MASKED, ids=ids(MASKED))
def test_masked(emulator: Any, name: str, changes: Any, error: Any, sentence: str) -> None:
    check(deep_gemm.m_grouped_fp8_gemm_nt_masked, masked(emulator, **changes), error, sentence)


def test_good_arguments_launch(emulator: Any) -> None:
    """What the tables start from is right, and a launch would be seen."""
    for operation, arguments in (
        (deep_gemm.fp8_gemm_nt, dense(emulator)),
        (deep_gemm.m_grouped_fp8_gemm_nt_contiguous, grouped(emulator)),
        (deep_gemm.m_grouped_fp8_gemm_nt_masked, masked(emulator)),
    ):
        assert launched_by(partial(operation, **arguments)) is not None


def test_k_of_4_for_the_bf16_operation(emulator: Any) -> None:
    arguments = {"a": out(M, 4), "b": out(N, 4), "d": out(M, N), "device": emulator}
    check(
        deep_gemm.bf16_gemm_nt,
        arguments,
        ValueError,
        "rows of a are 8 bytes apart, expected multiples",
    )


def test_fp8_for_the_bf16_operation(emulator: Any) -> None:
    arguments = {"a": fp8(M, K), "b": fp8(N, K), "d": out(M, N), "device": emulator}
    check(deep_gemm.bf16_gemm_nt, arguments, TypeError, "a is fp8_e4m3, expected bf16")


def test_number_of_arguments(emulator: Any) -> None:
    with pytest.raises(TypeError, match="is missing the argument 'd'"):
        deep_gemm.fp8_gemm_nt(1, 2)
    with pytest.raises(TypeError, match="takes 9 positional arguments but 10 were given"):
        deep_gemm.fp8_gemm_nt(*range(10))
    with pytest.raises(TypeError, match="got two values for the argument 'a'"):
        deep_gemm.fp8_gemm_nt(1, 2, 3, a=1)


def test_spec_for_another_problem(emulator: Any) -> None:
    spec = deep_gemm.GemmSpec(d="fp32")
    check(
        deep_gemm.fp8_gemm_nt,
        dense(emulator, spec=spec),
        ValueError,
        "spec: got fp8_e4m3 x per_128x128 -> fp32, dense, a_major=k, b_major=k, accumulate=false, swap_ab=false, split_k=1, expected a kernel for gemm m=32",
    )
    spec = deep_gemm.GemmSpec(block_m=100)
    check(deep_gemm.fp8_gemm_nt, dense(emulator, spec=spec), ValueError, "block_m must be a multiple of 64")


def test_transposed_fp8_is_told_how_to_be_stored(emulator: Any) -> None:
    a, d, b_scales = (fp8(M, K), scales(M, 2)), out(M, N), scales(1, 2)
    with pytest.raises(ValueError, match=r"_nn, _tn, _tt\) b\.mT\.contiguous\(\)\.mT"):
        deep_gemm.fp8_gemm_nn(a, (fp8(K, N), b_scales.T), d, device=emulator)
    stored = np.ascontiguousarray(fp8(K, N).mT).mT
    deep_gemm.fp8_gemm_nn(a, (stored, b_scales.T), d, device=emulator)


def test_sides_beyond_what_blocks_are_counted_for(emulator: Any) -> None:
    """Views of memory that is not there: refused before anything reads them."""
    wide, few, k = 2**30 + 8, 64, 64
    bf16 = np.zeros((few, k), ml_dtypes.bfloat16)
    long = np.lib.stride_tricks.as_strided(bf16, (wide, k), (2 * k, 2))
    for a, b, d in ((bf16, long, (few, wide)), (long, bf16, (wide, few))):
        view = np.lib.stride_tricks.as_strided(bf16, d, (2 * d[1], 2))
        with pytest.raises(ValueError, match=rf"d has {d[0]} x {d[1]} elements, expected at most 2\^30"):
            deep_gemm.bf16_gemm_nt(a, b, view, device=emulator)
