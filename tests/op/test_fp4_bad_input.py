"""What the FP8 x FP4 operations refuse: the sentence says what was got, what was expected, what to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import deep_gemm

N, K, M = 64, 256, 4
EMULATOR = "emulator:sm_90a"


def operands() -> dict[str, Any]:
    codes = np.zeros((1, N, K // 2), np.uint8)
    return {
        "a": np.zeros((M, K), ml_dtypes.float8_e4m3fn),
        "scales": np.ones((M, K // 128), np.float32),
        "b": deep_gemm.pack_fp4_weights(codes, np.full((1, N, K // 32), 127, np.uint8)),
        "d": np.full((M, N), 7, ml_dtypes.bfloat16),
        "c": None,
        "spec": None,
    }


def run(x: dict[str, Any]) -> None:
    deep_gemm.fp8_fp4_gemm_nt(
        (x["a"], x["scales"]), x["b"], x["d"], c=x["c"], spec=x["spec"], device=EMULATOR
    )


def two_experts() -> deep_gemm.Fp4Weights:
    return deep_gemm.pack_fp4_weights(
        np.zeros((2, N, K // 2), np.uint8), np.full((2, N, K // 32), 127, np.uint8)
    )


def odd_n() -> deep_gemm.Fp4Weights:
    return deep_gemm.pack_fp4_weights(
        np.zeros((1, 63, K // 2), np.uint8), np.full((1, 63, K // 32), 127, np.uint8)
    )


def nvfp4(label: str = "nv_single") -> deep_gemm.Fp4Weights:
    """NVFP4 weights that say they are of form `label`."""
    packed = deep_gemm.pack_fp4_weights(
        np.zeros((N, K // 2), np.uint8), np.full((N, K // 16), 0x38, np.uint8), 1.0
    )
    return deep_gemm.Fp4Weights(packed.blobs, packed.row_scales, None, 1, N, K, label)


def cut(weights: deep_gemm.Fp4Weights) -> deep_gemm.Fp4Weights:
    return weights.with_tensors(weights.blobs[:-1], weights.row_scales, None)


WIDE = deep_gemm.Fp4GemmSpec(wide=True, block_m=64, warpgroups=2, k_blocks=1, stages=4, cluster=2)


def test_a_cluster_needs_its_sms() -> None:
    x = operands()
    with pytest.raises(ValueError, match="a cluster needs more SMs than there are"):
        deep_gemm.fp8_fp4_gemm_nt(
            (x["a"], x["scales"]), x["b"], x["d"], spec=WIDE, device="emulator:sm_90a,sms=1"
        )


def far(tensor: Any, strides: tuple[int, ...]) -> Any:
    """The same shape with elements so many bytes apart; there is memory for the first alone."""
    return np.lib.stride_tricks.as_strided(tensor, tensor.shape, strides)


BAD: list[tuple[str, type[Exception], str, Callable[[dict[str, Any]], Any]]] = [
    ("b", TypeError, "pack FP4 weights once", lambda x: np.zeros((N, K // 2), np.int8)),
    (
        "b",
        ValueError,
        "expected k to be a multiple of 32 and scales",
        lambda x: (np.zeros((N, K // 2), np.int8), np.ones((N, K // 128), np.float32)),
    ),
    ("b", ValueError, "2 experts", lambda x: two_experts()),
    ("b", ValueError, "n is 63", lambda x: odd_n()),
    ("b", ValueError, "blobs of the weights has", lambda x: cut(x["b"])),
    ("b", ValueError, "has 8960 elements, expected 8448", lambda x: nvfp4("mx_e4m3")),
    ("spec", ValueError, "expected a kernel for fp4_gemm", lambda x: deep_gemm.Fp4GemmSpec(form="nv_exact")),
    (
        "a",
        ValueError,
        "a is bf16 and has scales, expected none",
        lambda x: np.zeros((M, K), ml_dtypes.bfloat16),
    ),
    ("a", ValueError, "k=256, expected 128", lambda x: x["a"][:, :128].copy()),
    ("a", ValueError, "stride 2 along K", lambda x: np.zeros((M, 2 * K), x["a"].dtype)[:, ::2]),
    ("a", ValueError, "expected multiples of 4", lambda x: np.zeros((M, K + 2), x["a"].dtype)[:, :K]),
    ("a", ValueError, "4294967296 bytes apart", lambda x: far(x["a"], (2**32, 1))),
    ("scales", ValueError, "strides 2147483648 and 1", lambda x: far(x["scales"], (2**33, 4))),
    ("scales", ValueError, "strides 1 and 2147483648", lambda x: far(x["scales"], (4, 2**33))),
    ("scales", TypeError, "scales of a is bf16", lambda x: x["scales"].astype(ml_dtypes.bfloat16)),
    ("scales", ValueError, "one scale for each row", lambda x: x["scales"][:, :1]),
    ("scales", TypeError, "unpack_ue8m0_from_int makes fp32", lambda x: x["scales"].view(np.int32)),
    ("d", TypeError, "d is fp16", lambda x: x["d"].astype(np.float16)),
    ("d", ValueError, "rows as in a", lambda x: x["d"][1:]),
    ("d", ValueError, "an even number", lambda x: np.zeros((M, N + 1), x["d"].dtype)[:, :N]),
    ("c", ValueError, "expected d's shape", lambda x: np.zeros((M, N), x["d"].dtype)[1:]),
    ("c", TypeError, "c is fp32", lambda x: np.zeros((M, N), np.float32)),
    ("spec", TypeError, "expected a deep_gemm.Fp4GemmSpec", lambda x: deep_gemm.GemmSpec()),
    ("spec", ValueError, "not a legal kernel", lambda x: deep_gemm.Fp4GemmSpec(block_m=9)),
    ("spec", ValueError, r"spec: got \[", lambda x: deep_gemm.Fp4GemmSpec(form="mx_e5m2")),
    ("spec", ValueError, "is one blob, brought by one warp", lambda x: WIDE.replace(k_blocks=2)),
    (
        "spec",
        ValueError,
        "for other weights, tokens, scales, outputs or groups",
        lambda x: WIDE.replace(groups="gathered"),
    ),
]


@pytest.mark.parametrize(("name", "kind", "words", "make"), BAD, ids=[f"{bad[0]}: {bad[2]}" for bad in BAD])
def test_bad_arguments(
    name: str, kind: type[Exception], words: str, make: Callable[[dict[str, Any]], Any]
) -> None:
    x = operands()
    before = x["d"]
    x[name] = make(x)
    with pytest.raises(kind, match=words) as raised:
        run(x)
    assert str(raised.value).startswith("fp8_fp4_gemm_nt: ")
    assert (before.astype(np.float32) == 7).all(), "nothing was launched"


@pytest.mark.parametrize("k", [0, 2, 130])
def test_a_matrix_has_whole_groups_along_k(k: int) -> None:
    """Made by hand, as the packer refuses them: a kernel would read beyond a's rows, or wait for what never comes."""
    blobs = np.zeros(N // 64 * 4224 * -(-k // 128), np.int8)
    weights = deep_gemm.Fp4Weights(blobs, np.ones(N, np.float32), None, 1, N, k, "mx_e4m3")
    a = np.zeros((M, k), ml_dtypes.float8_e4m3fn), np.ones((M, -(-k // 128)), np.float32)
    with pytest.raises(ValueError, match=f"k is {k}, expected a positive multiple of 32"):
        deep_gemm.fp8_fp4_gemm_nt(a, weights, np.zeros((M, N), np.float32), device=EMULATOR)


def test_a_flag_without_a_truth_launches_nothing() -> None:
    x = operands()
    with pytest.raises(ValueError, match="truth value"):
        deep_gemm.fp8_fp4_gemm_nt(
            (x["a"], x["scales"]), x["b"], x["d"], fast_accumulation=np.array([1, 2]), device=EMULATOR
        )
    assert (x["d"].astype(np.float32) == 7).all(), "nothing was launched"


def one_form(form: str, x: dict[str, Any]) -> Callable[[], None]:
    """A call of an operation with rows of d that overlap."""
    d = np.lib.stride_tricks.as_strided(x["d"], (128, N), (2, 2))
    rows = np.zeros((128, K), x["a"].dtype), np.ones((128, K // 128), np.float32)
    count = np.zeros(1, np.int32)
    operation = getattr(deep_gemm, form)
    given: dict[str, tuple[Any, ...]] = {
        "contiguous": (rows, x["b"], d, np.zeros(128, np.int32)),
        "masked": ((rows[0][None], rows[1][None]), x["b"], d[None], count, 4),
        "gathered": (rows, x["b"], d, np.zeros((1, 4), np.int32), np.zeros(4, np.int32)),
    }
    arguments = given.get(form.rsplit("_", 1)[-1], (rows, x["b"], d))
    return lambda: operation(*arguments, device=EMULATOR)


@pytest.mark.parametrize(
    "form",
    [
        "fp8_fp4_gemm_nt",
        "fp8_fp4_gemm_nn",
        "m_grouped_fp8_fp4_gemm_nt_contiguous",
        "m_grouped_fp8_fp4_gemm_nn_contiguous",
        "m_grouped_fp8_fp4_gemm_nt_masked",
        "m_grouped_fp8_fp4_gemm_nt_gathered",
    ],
)
def test_a_refusal_begins_with_what_was_called(form: str) -> None:
    with pytest.raises(ValueError, match=f"^{form}: rows of d are 1 elements apart but {N} long"):
        one_form(form, operands())()


def test_a_refusal_of_a_layer_names_the_matrix() -> None:
    x, w13 = np.zeros((M, K), ml_dtypes.bfloat16), two_experts()
    w2 = deep_gemm.pack_fp4_weights(
        np.zeros((2, K, N // 4), np.uint8), np.full((2, K, N // 64), 127, np.uint8)
    )
    topk = np.zeros((M, 1), np.int32), np.ones((M, 1), np.float32)
    deep_gemm.fused_moe(x, *topk, w13, w2, device=EMULATOR)
    for name, weights in (("w13", (cut(w13), w2)), ("w2", (w13, cut(w2)))):
        with pytest.raises(ValueError, match=f"^fused_moe: {name}: blobs of the weights has"):
            deep_gemm.fused_moe(x, *topk, *weights, device=EMULATOR)


def test_fp8_weights_go_to_the_fp8_operation() -> None:
    x = operands()
    b = (np.zeros((128, K), ml_dtypes.float8_e4m3fn), np.ones((1, K // 128), np.float32))
    d = np.full((M, 128), 7, ml_dtypes.bfloat16)
    deep_gemm.fp8_fp4_gemm_nt((x["a"], x["scales"]), b, d, device=EMULATOR)
    assert (d.astype(np.float32) == 0).all()
    with pytest.raises(ValueError, match=r"^fp8_fp4_gemm_nt: d has shape \[3, 128\], expected \[4, 128\]"):
        deep_gemm.fp8_fp4_gemm_nt((x["a"], x["scales"]), b, d[1:], device=EMULATOR)


def test_products_of_bf16_are_of_bf16_activations() -> None:
    x = operands()
    with pytest.raises(
        ValueError, match=r"^fp8_fp4_gemm_nt: got bf16_products with FP8 activations, expected bf16"
    ):
        deep_gemm.fp8_fp4_gemm_nt((x["a"], x["scales"]), x["b"], x["d"], bf16_products=True, device=EMULATOR)


def test_a_gathered_list_needs_its_head() -> None:
    x = operands()
    entries = np.zeros((1, 4), np.int32)
    arguments = ((x["a"], x["scales"]), x["b"], x["d"], entries)
    with pytest.raises(ValueError, match="head has 3 elements, expected 4"):
        deep_gemm.m_grouped_fp8_fp4_gemm_nt_gathered(*arguments, np.zeros(3, np.int32), device=EMULATOR)
    with pytest.raises(ValueError, match="nt_gathered: entries has 3 elements, expected 4"):
        deep_gemm.m_grouped_fp8_fp4_gemm_nt_gathered(
            *arguments[:3], np.zeros((1, 3), np.int32), np.zeros(4, np.int32), device=EMULATOR
        )
    with pytest.raises(ValueError, match="d_rows has 2 slots, expected 3"):
        deep_gemm.m_grouped_fp8_fp4_gemm_nt_gathered(
            *arguments, np.zeros(4, np.int32), np.zeros(3, np.int32), np.zeros(2, np.int32), device=EMULATOR
        )


@pytest.mark.parametrize("rows", [0, 4])
def test_nothing_to_do(rows: int) -> None:
    """No rows, or a list without entries: nothing is written."""
    x = operands()
    if rows == 0:
        x |= {"a": x["a"][:0], "scales": x["scales"][:0], "d": x["d"][:0]}
        run(x)
        return
    deep_gemm.m_grouped_fp8_fp4_gemm_nt_gathered(
        (x["a"], x["scales"]),
        x["b"],
        x["d"],
        np.zeros((1, 4), np.int32),
        np.zeros(4, np.int32),
        device=EMULATOR,
    )
    assert (x["d"].astype(np.float32) == 7).all()


def test_contiguous_rows_need_an_expert() -> None:
    """Rows of no expert become zeros, for which the kernel would have to run."""
    none = deep_gemm.pack_fp4_weights(np.zeros((0, N, K // 2), np.uint8), np.zeros((0, N, K // 32), np.uint8))
    x = operands()
    with pytest.raises(ValueError, match="the weights have no expert, expected one or more for"):
        deep_gemm.m_grouped_fp8_fp4_gemm_nt_contiguous(
            (x["a"], x["scales"]), none, x["d"], np.full(M, -1, np.int32), device=EMULATOR
        )
