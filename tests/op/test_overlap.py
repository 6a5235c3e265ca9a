"""D shares no memory with what a GEMM reads: blocks are written while others are still read. C may be D itself."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

import deep_gemm

BF16 = ml_dtypes.bfloat16
FP8 = ml_dtypes.float8_e4m3fn
M, N, K = 32, 64, 256


def pool(num_bytes: int) -> Any:
    """Zeroed memory that starts at a multiple of 16."""
    storage = np.zeros(num_bytes + 16, np.uint8)
    start = -storage.ctypes.data % 16
    return storage[start : start + num_bytes]


def fp8_arguments(emulator: Any, **changes: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "a": (np.zeros((M, K), FP8), np.ones((M, 2), np.float32)),
        "b": (np.zeros((N, K), FP8), np.ones((1, 2), np.float32)),
        "d": np.zeros((M, N), BF16),
        "device": emulator,
    }
    return arguments | changes


def refused(operation: Any, arguments: dict[str, Any], name: str) -> None:
    before = deep_gemm.last_plan()
    with pytest.raises(
        ValueError, match=rf"d is the \d+ bytes from 0x\w+, which overlap {name}, the \d+ bytes"
    ):
        operation(**arguments)
    assert deep_gemm.last_plan() == before


@pytest.mark.parametrize("name", ["a", "b", "scales of a", "scales of b"])
@pytest.mark.parametrize("shift", [0, 16])
def test_d_over_an_input(emulator: Any, name: str, shift: int) -> None:
    memory = pool(64 * 1024)
    arguments = fp8_arguments(emulator)
    arguments["d"] = memory[shift : shift + M * N * 2].view(BF16).reshape(M, N)
    operand = "a" if name.endswith("a") else "b"
    data, scales = arguments[operand]
    if name.startswith("scales"):
        scales = memory[: scales.nbytes + shift].view(np.float32)[-scales.size :].reshape(scales.shape)
    else:
        data = memory[: data.nbytes].view(FP8).reshape(data.shape)
    arguments[operand] = (data, scales)
    refused(deep_gemm.fp8_gemm_nt, arguments, name)


def test_d_over_the_groups(emulator: Any) -> None:
    memory = pool(64 * 1024)
    refused(
        deep_gemm.m_grouped_fp8_gemm_nt_contiguous,
        {
            "a": (np.zeros((128, K), FP8), np.ones((128, 2), np.float32)),
            "b": (np.zeros((2, N, K), FP8), np.ones((2, 1, 2), np.float32)),
            "d": memory[: 128 * N * 2].view(BF16).reshape(128, N),
            "grouped_layout": memory[:512].view(np.int32),
            "device": emulator,
        },
        "grouped_layout",
    )


def test_c_beside_and_over_d(emulator: Any) -> None:
    memory = pool(2 * M * N * 2)
    d, c = memory[: M * N * 2].view(BF16).reshape(M, N), memory[N * 2 :][: M * N * 2].view(BF16).reshape(M, N)
    refused(deep_gemm.fp8_gemm_nt, fp8_arguments(emulator, d=d, c=c), "c")
    d[:] = 3
    deep_gemm.fp8_gemm_nt(**fp8_arguments(emulator, d=d, c=d))
    assert (d == BF16(3)).all()


@pytest.mark.parametrize("d_first", [True, False])
def test_columns_side_by_side_are_apart(emulator: Any, d_first: bool) -> None:
    """a and d as columns of one wide tensor, as a fused projection stores them."""
    memory = pool(M * (K + N) * 2).view(BF16).reshape(M, K + N)
    d, a = (memory[:, :N], memory[:, N:]) if d_first else (memory[:, K:], memory[:, :K])
    a[:] = 1
    d[:] = 7
    deep_gemm.bf16_gemm_nt(a, np.ones((N, K), BF16), d, device=emulator)
    assert (d == BF16(K)).all()
    assert (a == BF16(1)).all()


def test_columns_that_share_some_are_refused(emulator: Any) -> None:
    memory = pool(M * (K + N) * 2).view(BF16).reshape(M, K + N)
    arguments = {
        "a": memory[:, :K],
        "b": np.ones((N, K), BF16),
        "d": memory[:, K - 8 :][:, :N],
        "device": emulator,
    }
    refused(deep_gemm.bf16_gemm_nt, arguments, "a")


def fp4_weights(experts: int = 1) -> deep_gemm.Fp4Weights:
    codes, scales = np.zeros((experts, N, K // 2), np.uint8), np.full((experts, N, K // 32), 127, np.uint8)
    return deep_gemm.pack_fp4_weights(codes, scales)


def over(memory: Any, tensor: Any) -> Any:
    """`tensor`, at the start of `memory`."""
    place = memory[: tensor.nbytes].view(tensor.dtype).reshape(tensor.shape)
    place[...] = tensor
    return place


@pytest.mark.parametrize(
    "name", ["a", "scales of a", "blobs of the weights", "row scales of the weights", "c"]
)
def test_d_over_an_input_of_an_fp4_gemm(emulator: Any, name: str) -> None:
    memory = pool(64 * 1024)
    shift = 0 if name != "c" else N * 2
    d = memory[shift : shift + M * N * 2].view(BF16).reshape(M, N)
    a, scales, b = np.zeros((M, K), FP8), np.ones((M, 2), np.float32), fp4_weights()
    blobs, row_scales, c = b.blobs, b.row_scales, np.zeros((M, N), BF16)
    if name == "a":
        a = over(memory, a)
    elif name == "scales of a":
        scales = over(memory, scales)
    elif name == "blobs of the weights":
        blobs = over(memory, blobs)
    elif name == "row scales of the weights":
        row_scales = over(memory, row_scales)
    else:
        c = over(memory, c)
    arguments = {"a": (a, scales), "b": b.with_tensors(blobs, row_scales, None), "d": d, "c": c}
    refused(deep_gemm.fp8_fp4_gemm_nt, arguments | {"device": emulator}, name)


def test_d_over_the_groups_of_an_fp4_gemm(emulator: Any) -> None:
    memory = pool(64 * 1024)
    arguments = {
        "a": (np.zeros((128, K), FP8), np.ones((128, 2), np.float32)),
        "b": fp4_weights(2),
        "d": memory[: 128 * N * 2].view(BF16).reshape(128, N),
        "grouped_layout": over(memory, np.zeros(128, np.int32)),
        "device": emulator,
    }
    refused(deep_gemm.m_grouped_fp8_fp4_gemm_nt_contiguous, arguments, "grouped_layout")


def test_c_over_d_of_an_fp4_gemm(emulator: Any) -> None:
    d = np.full((M, N), 3, BF16)
    a = (np.zeros((M, K), FP8), np.ones((M, 2), np.float32))
    deep_gemm.fp8_fp4_gemm_nt(a, fp4_weights(), d, c=d, device=emulator)
    assert (d == BF16(3)).all()
