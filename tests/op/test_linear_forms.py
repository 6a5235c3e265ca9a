"""The two forms of linear() as a caller meets them: which one runs, what is promised of each, what is refused."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from certificate import assert_batch_invariant
from kernel.test_gemv import BF16, PLAIN, WITH_FP8, on, placed, random_weight, random_x, run, same_bits
from kernel.test_weight_gemm import spec_of, ulps_of_bf16
from reference import quant

import deep_gemm
from deep_gemm import _C, WeightGemmSpec
from deep_gemm.demo.arrays import put, take
from deep_gemm.quantized import QuantizedMatrix

Array = np.ndarray[Any, np.dtype[Any]]


def forms() -> list[str]:
    return [row["form"] for row in deep_gemm.dispatch_counts()]


def test_the_plan_decides(device: Any) -> None:
    """Above 16 rows the large-batch form where it is cheaper; the counters tell, and both agree."""
    rng = np.random.default_rng(0)
    w = deep_gemm.quantize(random_weight(rng, 320, 512), "mxfp4")
    x = random_x(rng, 64, 512, "bf16")
    expected = "large" if "large-batch form" in deep_gemm.explain_linear(
        "linear w=mxfp4 m=64 n=320 k=512", device
    ).splitlines()[0] else "small"  # fmt: skip
    deep_gemm.reset_dispatch_counts()
    chosen = run(device, x, w, "bf16")
    assert forms() == [expected]
    assert expected == "large" or not device.emulated  # a GPU has more SMs for the small form
    deep_gemm.reset_dispatch_counts()
    small = run(device, x, w, "bf16", invariant=True)
    assert forms() == ["small"]
    deep_gemm.reset_dispatch_counts()
    first = run(device, x[:16], w, "bf16")
    assert forms() == ["small"] and same_bits(first, small[:16])
    magnitude = np.abs(quant.activations(x)) @ np.abs(quant.dequantize(w)).T
    assert ulps_of_bf16(chosen, small, magnitude * 2.0**-20) <= 1


def test_fp8_times_fp8_is_the_gemm(device: Any) -> None:
    """Many rows of x in FP8 beside 128 x 128 blocks: gemm(), with its bits, residual and all; what it lacks goes on in
    passes of 16 rows.
    """
    rng = np.random.default_rng(10)
    w = deep_gemm.quantize(random_weight(rng, 200, 384), "fp8_128x128")
    x = random_x(rng, 40, 384, "fp8_128")
    residual = rng.standard_normal((40, 200)).astype(np.float32)
    out, expected = put(device, residual.copy()), put(device, np.full((40, 200), np.nan, np.float32))
    tokens, matrix = on(device, x), placed(device, w)
    deep_gemm.reset_dispatch_counts()
    deep_gemm.linear(tokens, matrix, out, residual=out, device=device)
    assert forms() == ["large"]
    deep_gemm.fp8_gemm_nt(
        tokens, (matrix.data, matrix.scales), expected, c=put(device, residual), device=device
    )
    assert same_bits(take(out), take(expected))
    exact = run(device, x, w, invariant=True)
    magnitude = np.abs(quant.activations(x)) @ np.abs(quant.dequantize(w)).T
    assert (np.abs(take(out) - residual - exact) <= magnitude * 2.0**-11).all()
    bias = put(device, np.ones(200, np.float32))
    for options in ({"bias": bias}, {"strict": True}, {"invariant": True}):
        deep_gemm.reset_dispatch_counts()
        deep_gemm.linear(tokens, matrix, out, device=device, **options)
        assert forms() == ["small"]
    assert "FP8 GEMM" in deep_gemm.explain_linear(
        "linear w=fp8_128x128 x=fp8_128 m=40 n=200 k=384", "90a:132"
    )


def test_swiglu_has_both_forms(device: Any) -> None:
    """Above 16 rows one launch of either; `invariant` keeps the bits that a row has alone."""
    rng = np.random.default_rng(9)
    gate, up = (placed(device, deep_gemm.quantize(random_weight(rng, 70, 256), "mxfp4")) for _ in range(2))
    x = random_x(rng, 300, 256, "bf16")

    def swiglu(tokens: Array, **options: Any) -> Array:
        out = put(device, np.full((len(tokens), 70), np.nan, np.float32))
        deep_gemm.swiglu_linear(on(device, tokens), gate, up, out, device=device, **options)
        return take(out)

    deep_gemm.reset_dispatch_counts()
    large = swiglu(x, spec=spec_of("mxfp4", 256).replace(epilogue="swiglu"))
    assert forms() == ["large"] and deep_gemm.dispatch_counts()[0]["launches"] == 1
    deep_gemm.reset_dispatch_counts()
    invariant, alone = swiglu(x, invariant=True), swiglu(x[200:201])
    assert set(forms()) == {"small"} and same_bits(invariant[200:201], alone)
    np.testing.assert_allclose(large, invariant, rtol=1e-4, atol=1e-4)
    spec = spec_of("mxfp4", 256)
    with pytest.raises(ValueError, match="the forced spec has epilogue none, expected swiglu"):
        swiglu(x, spec=spec)
    with pytest.raises(ValueError, match="swiglu needs two warpgroups"):
        swiglu(x, spec=spec.replace(epilogue="swiglu", warpgroups=1))


def test_strict_is_the_kernel_of_one_row(device: Any) -> None:
    rng = np.random.default_rng(1)
    w = deep_gemm.quantize(random_weight(rng, 320, 512), "nvfp4")
    x = random_x(rng, 40, 512, "bf16")
    deep_gemm.reset_dispatch_counts()
    strict = run(device, x, w, strict=True)
    assert forms() == ["small"] and deep_gemm.dispatch_counts()[0]["strict"]
    assert same_bits(strict, run(device, x, w, invariant=True))


@pytest.mark.parametrize("w", ["bf16", "fp8_128x128", "q8_0", "int4_64", "mxfp4", "nvfp4"])
def test_rows_are_independent(device: Any, w: str) -> None:
    """The certificate of the small-batch form, up to a size of prefill."""
    rng = np.random.default_rng(2)
    matrix = deep_gemm.quantize(random_weight(rng, 24, 288), w)
    x = rng.standard_normal((5, 288)).astype(BF16)
    assert_batch_invariant(lambda rows: {"y": run(device, rows["x"], matrix, invariant=True)}, {"x": x})


@pytest.mark.parametrize(
    ("name", "kind", "m", "options"),
    [("fp8_128x128", "bf16", 40, {}), ("mxfp4", "bf16", 40, {}), ("int4_32", "bf16", 40, {})]
    + [("fp8_128x128", "bf16", 40, {"invariant": True})]
    + [
        (name, kind, 5, {})
        for name, kind in (
            ("bf16", "bf16"),
            ("fp8_128x128", "fp8_128"),
            ("fp8_32", "fp8_32"),
            ("int8_row", "bf16"),
            ("q8_0", "q8"),
            ("q8_0_split", "q8"),
            ("int4_zero_32", "bf16"),
            ("mxfp4", "bf16"),
            ("nvfp4", "fp8_128"),
        )
    ],
    ids=str,
)
def test_fifty_repeats_and_a_graph(
    device: Any, name: str, kind: str, m: int, options: dict[str, Any]
) -> None:
    """The same bits every time; captured and replayed where there are graphs."""
    rng = np.random.default_rng(3)
    n = 160 if m > 16 else 40
    w = placed(device, deep_gemm.quantize(random_weight(rng, n, 512), name))
    x = on(device, random_x(rng, m, 512, kind))
    out = put(device, np.full((m, n), np.nan, BF16))
    deep_gemm.linear(x, w, out, device=device, **options)
    first = take(out)
    for _ in range(50):
        deep_gemm.linear(x, w, out, device=device, **options)
        assert same_bits(take(out), first)
    if device.name.startswith("emulated"):
        return
    torch = pytest.importorskip("torch")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        deep_gemm.linear(x, w, out, **options)
    for _ in range(3):
        graph.replay()
        torch.cuda.synchronize()
        assert same_bits(take(out), first)


def test_what_tma_cannot_read_goes_to_the_other_form(emulator: Any) -> None:
    """Odd K, unaligned rows: the small-batch kernel, with its bits."""
    rng = np.random.default_rng(4)
    deep_gemm.reset_dispatch_counts()
    for k in (1, 15, 129):
        w = deep_gemm.quantize(random_weight(rng, 33, k), "fp8_row")
        x = random_x(rng, 40, k, "bf16")
        assert same_bits(run(emulator, x, w), run(emulator, x, w, strict=True))
    assert set(forms()) == {"small"}


@pytest.mark.parametrize("n", [1, 7, 9, 15, 17])
@pytest.mark.parametrize("k", [1, 15, 16, 31, 33, 127, 129, 4095])
def test_shapes_that_kernels_of_this_kind_get_wrong(emulator: Any, n: int, k: int) -> None:
    """Rows beyond N that skip a barrier, K tails dropped or read past, unaligned vector loads: every N and K is right, in
    the form that the plan takes, with canaries around y.
    """
    rng = np.random.default_rng(n * 5000 + k)
    for name, m in (("fp8_128x128", 3), ("int4_32", 20)):
        w = deep_gemm.quantize(random_weight(rng, n, k), name)
        x = random_x(rng, m, k, "bf16")
        wide = np.full((m + 2, n + 2), -7, np.float32)
        deep_gemm.linear(x, w, wide[1:-1, 1:-1], device=emulator)
        assert (wide[[0, -1]] == -7).all() and (wide[:, [0, -1]] == -7).all()
        expected = quant.activations(x) @ quant.dequantize(w).T
        magnitude = np.abs(quant.activations(x)) @ np.abs(quant.dequantize(w)).T
        assert (
            np.abs(wide[1:-1, 1:-1] - expected) <= magnitude * 2.0**-19 + np.abs(expected) * 2.0**-23
        ).all()


@pytest.mark.parametrize("k", [29568, 131072])
def test_long_k(device: Any, k: int) -> None:
    """Nothing is staged whole: K is limited by memory alone."""
    rng = np.random.default_rng(5)
    w = deep_gemm.quantize(rng.standard_normal((3, k)).astype(np.float32), "fp8_128x128")
    for m in (1, 17):
        x = random_x(rng, m, k, "bf16")
        got = run(device, x, w)
        expected = quant.activations(x) @ quant.dequantize(w).T
        assert np.linalg.norm(got - expected) <= k / 16 * 2.0**-24 * np.linalg.norm(expected)


def test_scales_of_either_order() -> None:
    """FP8 checkpoints store the 128 x 128 scales by [n, k] or by [k, n]."""
    rng = np.random.default_rng(6)
    w = deep_gemm.quantize(random_weight(rng, 300, 512), "fp8")
    assert w.scales is not None
    turned = QuantizedMatrix.from_parts(
        "fp8_128x128", w.data, np.ascontiguousarray(w.scales.T), scale_order="kn"
    )
    np.testing.assert_array_equal(turned.scales, w.scales)
    same = QuantizedMatrix.from_parts("fp8_128x128", w.data, w.scales, scale_order="nk")
    np.testing.assert_array_equal(same.scales, w.scales)
    with pytest.raises(ValueError, match="scale_order: got 'n', expected 'nk' or 'kn'"):
        QuantizedMatrix.from_parts("fp8_128x128", w.data, w.scales, scale_order="n")
    with pytest.raises(ValueError, match=r"scales have shape \(3, 4\), expected \(4, 3\)"):
        QuantizedMatrix.from_parts("fp8_128x128", w.data, w.scales, scale_order="kn")


# ---- What is refused


def refused(words: str, x: Any, w: QuantizedMatrix, spec: WeightGemmSpec, kind: type[Exception] = ValueError, **options: Any) -> None:  # fmt: skip
    out = np.full(((x[0] if isinstance(x, tuple) else x).shape[0], w.n), -7, np.float32)
    with pytest.raises(kind, match=words):
        deep_gemm.linear(x, w, out, spec=spec, device="emulator:sm_90a,sms=8", **options)
    assert (out == -7).all()


def test_forced_kernels_that_do_not_fit() -> None:
    rng = np.random.default_rng(7)
    w = deep_gemm.quantize(random_weight(rng, 40, 256), "fp8_row")
    x = random_x(rng, 20, 256, "bf16")
    spec = spec_of("fp8_row", 256)
    refused("not a legal kernel: a block has 16, 32, 64", x, w, spec.replace(block_m=48))
    refused("not a legal kernel: stages do not fit", x, w, spec.replace(block_m=256, token_stages=12))
    refused(
        "for int8_row weights, bf16 tokens and fp32 outputs, expected fp8_row",
        x,
        w,
        spec.replace(w="int8_row"),
    )
    refused("strict: every row", x, w, spec, strict=True)
    refused("invariant: every row", x, w, spec, invariant=True)
    refused("multiples of 16 bytes", np.zeros((20, 260), BF16)[:, 2:258], w, spec)
    scaled = x.astype(ml_dtypes.float8_e4m3fn), np.ones((20, 2), np.float32)
    refused("tokens must be bf16", scaled, w, spec)
    uneven = deep_gemm.quantize(random_weight(rng, 40, 288), "fp8_32")
    tail = random_x(rng, 20, 288, "bf16")
    refused("use whole_scales=False", tail, uneven, spec_of("fp8_32", 288, whole_scales=True))
    with pytest.raises(
        TypeError, match=r"WeightGemmSpec has no field 'block', expected one of w, x, y, epilogue, block_m"
    ):
        WeightGemmSpec(block=3)
    with pytest.raises(
        ValueError, match=r"WeightGemmSpec: w: got 'int5', expected one of bf16, fp16, fp8_128x128"
    ):
        WeightGemmSpec(w="int5")


@pytest.mark.parametrize(("w", "x"), PLAIN + WITH_FP8, ids=lambda name: name)
def test_other_architectures_have_the_small_form(w: str, x: str) -> None:
    """With its bits, whatever an architecture converts by instructions and copies ahead."""
    rng = np.random.default_rng(8)
    matrix = deep_gemm.quantize(random_weight(rng, 40, 320), w)
    tokens = random_x(rng, 20, 320, x)
    expected = run(_C.Device("emulator:sm_90a,sms=4"), tokens, matrix, invariant=True)
    for arch in ("80", "89", "100a", "120a"):
        deep_gemm.reset_dispatch_counts()
        got = run(_C.Device(f"emulator:sm_{arch},sms=4"), tokens, matrix)
        assert forms() == ["small"] and same_bits(got, expected)


@pytest.mark.parametrize("arch", ["80", "89", "100a", "121a"])
def test_plans_of_other_architectures_are_explained(arch: str) -> None:
    """The small-batch form needs no cost model; what an architecture lacks shows in the spec."""
    text = deep_gemm.explain_linear("linear w=mxfp4 m=300 n=4096 k=512", f"{arch}:20")
    assert f"on sm_{arch}, 20 SMs: small-batch form" in text and "large-batch kernels are for sm_90a" in text
    assert f"dependent_launch={'true' if len(arch) > 2 else 'false'}" in text
    assert f"native_fp8={'false' if arch == '80' else 'true'}" in text
    assert text == deep_gemm.explain_linear(
        "linear w=mxfp4 m=300 n=4096 k=512", _C.Device(f"emulator:sm_{arch},sms=20")
    )
    with pytest.raises(ValueError, match="no cost model for sm_75"):
        deep_gemm.explain_linear("linear w=mxfp4 m=3 n=4096 k=512", "75:40")
