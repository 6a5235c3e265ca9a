"""linear() and its relatives as a user meets them: frameworks, several matrices, epilogues, counters, bad arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from reference import gemv as reference
from reference import quant

import deep_gemm
from deep_gemm.demo.arrays import put, take
from deep_gemm.quantized import FORMATS, QuantizedMatrix

Array = np.ndarray[Any, np.dtype[Any]]

BF16 = ml_dtypes.bfloat16
HOST = {"device": "emulator:sm_90a,sms=8"}


def weight(n: int, k: int, seed: int = 0) -> Array:
    return (np.random.default_rng(seed).standard_normal((n, k)) * 0.5).astype(np.float32)


def tokens(m: int, k: int, seed: int = 1) -> Array:
    return (np.random.default_rng(seed).standard_normal((m, k)) * 0.5).astype(BF16)


def same_bits(a: Array, b: Array) -> bool:
    return a.shape == b.shape and a.tobytes() == b.tobytes()


def on(device: Any, w: QuantizedMatrix) -> QuantizedMatrix:
    parts = [None if part is None else put(device, part) for part in (w.data, w.scales, w.zeros)]
    return QuantizedMatrix(w.format, w.n, w.k, *parts, w.global_scale)


# ---- Layouts


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(("n", "k"), [(5, 200), (130, 129)])
def test_dequantize_is_the_definition(name: str, n: int, k: int) -> None:
    w = deep_gemm.quantize(weight(n, k), name)
    np.testing.assert_allclose(w.dequantize(), quant.dequantize(w), rtol=1e-6)


LIMITS = {"bf16": 0.0035, "fp16": 0.001, "fp8": 0.03, "int8": 0.01, "q8": 0.0095, "int4_128": 0.125, "int4_32": 0.098,
          "int4_zero": 0.12, "int4": 0.12, "mxfp4": 0.12, "nvfp4_32": 0.11, "nvfp4": 0.10}  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_quantisation_error(name: str) -> None:
    """|W' - W| / |W|, within what rounding to nearest leaves (an encoder that truncates has twice that)."""
    w = weight(256, 1024)
    limit = next(value for prefix, value in LIMITS.items() if name.startswith(prefix))
    error = np.linalg.norm(deep_gemm.quantize(w, name).dequantize() - w) / np.linalg.norm(w)
    assert error <= limit


def test_e2m1_ties_go_to_the_even_code() -> None:
    values = np.array(
        [[0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0, -0.25, -0.75, -5.0, 7.0, 0.2501, 0, 6, 6]], np.float32
    )
    w = deep_gemm.quantize(
        np.concatenate([values, np.zeros_like(values)], 1), "mxfp4", scale_rounding="round"
    )
    assert w.scales is not None and w.scales.view(np.uint8)[0, 0] == 127
    expected = [0, 1, 1, 2, 2, 4, 4, 6, 0, -1, -4, 6, 0.5, 0, 6, 6]
    np.testing.assert_array_equal(w.dequantize()[0, :16], expected)


@pytest.mark.parametrize("name", FORMATS)
def test_zeros_and_extremes(name: str) -> None:
    w = np.zeros((3, 256), np.float32)
    w[1] = 1e-30
    w[2, :5] = [60000, -60000, 1, -1, 0]
    values = deep_gemm.quantize(w, name).dequantize()
    assert np.isfinite(values).all()
    assert (values[0] == 0).all()
    assert values[2, 0] == pytest.approx(60000, rel=0.15)


def test_from_parts() -> None:
    """What checkpoints hold: other types of the same bytes, bf16 scales, linear nibbles, GGUF rows."""
    w, x = weight(20, 256), tokens(2, 256)
    fp8 = deep_gemm.quantize(w, "fp8")
    assert fp8.scales is not None
    rebuilt = QuantizedMatrix.from_parts("fp8_128x128", fp8.data.view(np.uint8), fp8.scales.astype(BF16))
    np.testing.assert_allclose(rebuilt.dequantize(), fp8.dequantize(), rtol=2**-8)
    codes = np.random.default_rng(0).integers(0, 16, (20, 256)).astype(np.uint8)
    packed = codes[:, ::2] | codes[:, 1::2] << 4
    scales = np.full((20, 4), 0.5, np.float16)
    int4 = QuantizedMatrix.from_parts("int4_64", packed, scales)
    np.testing.assert_array_equal(int4.dequantize(), (codes.astype(np.float32) - 8) * 0.5)
    again = QuantizedMatrix.from_parts("int4_64", int4.data, scales, k=256, interleaved=True)
    assert same_bits(deep_gemm.linear(x, again, **HOST), deep_gemm.linear(x, int4, **HOST))
    q8 = deep_gemm.quantize(w[:, :250], "q8_0")
    gguf = QuantizedMatrix.from_parts("q8_0", q8.data.view(np.uint8), k=250)
    np.testing.assert_array_equal(gguf.dequantize(), q8.dequantize())
    mx = deep_gemm.quantize(w, "mxfp4")
    assert mx.scales is not None
    typed = QuantizedMatrix.from_parts(
        "mxfp4", mx.data, mx.scales.view(ml_dtypes.float8_e8m0fnu), interleaved=True
    )
    np.testing.assert_array_equal(typed.dequantize(), mx.dequantize())
    ones = np.full((20, 8), 127, np.uint8)
    linear = QuantizedMatrix.from_parts("mxfp4", packed, ones.view(ml_dtypes.float8_e8m0fnu))
    np.testing.assert_array_equal(linear.dequantize(), quant.E2M1[codes].astype(np.float32))


# ---- Calls


def test_plain_tensors_and_leading_dimensions() -> None:
    w, x = weight(24, 64).astype(BF16), tokens(6, 64).reshape(2, 3, 64)
    y = deep_gemm.linear(x, w, **HOST)
    assert y.shape == (2, 3, 24) and y.dtype == BF16
    flat = deep_gemm.linear(x.reshape(6, 64), w, **HOST)
    assert same_bits(y.reshape(6, 24), flat)
    one = deep_gemm.linear(x[1, 2], w, out_dtype="fp32", **HOST)
    assert one.shape == (24,)
    assert same_bits(one.astype(BF16), flat[5])


@pytest.mark.parametrize("name", ["bf16", "q8_0"])
def test_bias_and_residual(device: Any, name: str) -> None:
    """(sum + bias) + residual, each addition rounded to fp32, then once to y; the residual may be y."""
    w, x = deep_gemm.quantize(weight(24, 96), name), tokens(3, 96)
    bias = np.random.default_rng(2).standard_normal(24).astype(np.float32)
    residual = np.random.default_rng(3).standard_normal((3, 24)).astype(np.float32)
    plain, both = put(device, np.zeros((3, 24), np.float32)), put(device, residual.copy())
    placed, rows = on(device, w), put(device, x)
    deep_gemm.linear(rows, placed, plain, device=device)
    deep_gemm.linear(rows, placed, both, bias=put(device, bias), residual=both, device=device)
    assert same_bits(take(both), (take(plain) + bias) + residual)


# At the second, scales are vectors and rows of Q8_0 pieces for bulk copies: x lies in shared memory.
@pytest.mark.parametrize("k", [160, 512])
@pytest.mark.parametrize("name", ["bf16", "q8_0", "fp8_128x128", "int4_zero_32", "nvfp4"])
def test_matrices_that_share_a_launch(device: Any, name: str, k: int) -> None:
    """Like separate calls, bit for bit; heights differ and are no multiples of a block."""
    x = put(device, tokens(3, k))
    matrices = [on(device, deep_gemm.quantize(weight(n, k, n), name)) for n in (33, 1, 24)]

    def outputs() -> list[Any]:
        return [put(device, np.full((3, w.n), np.nan, np.float32)) for w in matrices]

    together, apart = outputs(), outputs()
    deep_gemm.reset_dispatch_counts()
    assert len(deep_gemm.linear(x, matrices, together, device=device)) == 3
    assert sum(row["launches"] for row in deep_gemm.dispatch_counts()) == 1
    for w, out in zip(matrices, apart, strict=True):
        deep_gemm.linear(x, w, out, device=device)
    for one, other in zip(together, apart, strict=True):
        assert same_bits(take(one), take(other))


@pytest.mark.parametrize(("k", "limit"), [(160, 0.0), (160, 1.5), (512, 1.5)])
@pytest.mark.parametrize("name", ["bf16", "q8_0", "nvfp4", "int8_row"])
def test_swiglu(device: Any, name: str, k: int, limit: float) -> None:
    """From the fp32 sums that separate calls give; a row of a batch is the row alone."""
    x = put(device, tokens(3, k))
    gate, up = (on(device, deep_gemm.quantize(weight(40, k, seed) * 0.5, name)) for seed in (5, 6))
    sums = [put(device, np.zeros((3, 40), np.float32)) for _ in range(2)]
    deep_gemm.linear(x, [gate, up], sums, device=device)
    g, u = (take(one).astype(np.float64) for one in sums)
    if limit:
        g, u = np.minimum(g, limit), np.clip(u, -limit, limit)
    out = put(device, np.full((3, 40), np.nan, np.float32))
    deep_gemm.swiglu_linear(x, gate, up, out, limit=limit, device=device)
    np.testing.assert_allclose(take(out), reference.silu(g) * u, rtol=2e-6, atol=1e-7)
    single = put(device, np.full((1, 40), np.nan, np.float32))
    deep_gemm.swiglu_linear(put(device, tokens(3, k)[2:]), gate, up, single, limit=limit, device=device)
    assert same_bits(take(single)[0], take(out)[2])


def test_counters_tell_which_kernel_ran() -> None:
    x = tokens(20, 64)
    q8, bf16 = deep_gemm.quantize(weight(8, 64), "q8_0"), deep_gemm.quantize(weight(8, 64), "bf16")
    deep_gemm.reset_dispatch_counts()
    for m in (1, 2, 3, 4, 5, 8, 20):
        deep_gemm.linear(x[:m], q8, **HOST)
    deep_gemm.linear(x, q8, strict=True, **HOST)
    deep_gemm.linear(x[:3], bf16, **HOST)
    deep_gemm.linear(x[:12], bf16, **HOST)
    counts = {(r["w"], r["x"], r["tokens"], r["strict"]): r["launches"] for r in deep_gemm.dispatch_counts()}
    assert counts == {
        ("q8_0", "q8", 1, False): 1, ("q8_0", "q8", 2, False): 1, ("q8_0", "q8", 3, False): 1,
        ("q8_0", "q8", 4, False): 1, ("q8_0", "q8", 8, False): 2, ("q8_0", "q8", 16, False): 1, ("q8_0", "q8", 1, True): 1,
        ("bf16", "bf16", 8, False): 1, ("bf16", "bf16", 16, False): 1,
    }  # fmt: skip


def test_explicit_names() -> None:
    x = tokens(2, 64)
    w = {
        name: deep_gemm.quantize(weight(8, 64), name)
        for name in ("bf16", "fp8_128x128", "mxfp4", "int4_32", "q8_0")
    }
    pair = deep_gemm.per_token_cast_to_fp8(x.astype(np.float32))
    calls: list[tuple[Callable[..., Any], Any, str]] = [
        (deep_gemm.gemv_bf16, x, "bf16"), (deep_gemm.gemv_w8a16, x, "fp8_128x128"),
        (deep_gemm.gemv_w8a8, pair, "fp8_128x128"), (deep_gemm.gemv_w4a16, x, "mxfp4"),
        (deep_gemm.gemv_w4a8, pair, "mxfp4"), (deep_gemm.gemv_int4, x, "int4_32"), (deep_gemm.gemv_q8_0, x, "q8_0"),
        (deep_gemm.w8a16_gemm, x, "fp8_128x128"), (deep_gemm.w4a16_gemm, x, "mxfp4"), (deep_gemm.w4a16_gemm, x, "int4_32"),
    ]  # fmt: skip
    for function, operand, name in calls:
        assert same_bits(function(operand, w[name], **HOST), deep_gemm.linear(operand, w[name], **HOST))
    with pytest.raises(ValueError, match="gemv_bf16: w is mxfp4, expected bf16"):
        deep_gemm.gemv_bf16(x, w["mxfp4"])
    with pytest.raises(TypeError, match="gemv_w8a8: x is one tensor, expected a pair"):
        deep_gemm.gemv_w8a8(x, w["fp8_128x128"])


# ---- Bad arguments: got, expected; nothing is launched


def bad_calls() -> list[tuple[str, type[Exception], str, Callable[[], Any]]]:
    w, x = weight(8, 64), tokens(2, 64)
    q = {
        name: deep_gemm.quantize(w, name)
        for name in ("bf16", "fp16", "fp8_128x128", "fp8_32", "q8_0", "mxfp4")
    }
    pair = deep_gemm.per_token_cast_to_fp8(x.astype(np.float32))
    fine = np.zeros((2, 8), BF16)

    def call(x: Any, w: Any, out: Any = None, **options: Any) -> Callable[[], Any]:
        return lambda: deep_gemm.linear(x, w, out, **options, **HOST)

    def broken(name: str, **changes: Any) -> QuantizedMatrix:
        fields = {"n": 8, "k": 64, "data": q[name].data, "scales": q[name].scales} | changes
        return QuantizedMatrix(name, **fields)

    return [
        ("columns of x", ValueError, "x has 32 columns, expected 64", call(x[:, :32].copy(), q["bf16"])),
        ("type of x", TypeError, "x is fp32, expected bf16 beside bf16", call(x.astype(np.float32), q["bf16"], fine)),
        ("fp16 beside bf16", TypeError, "x is fp16, expected bf16", call(x.astype(np.float16), q["bf16"], fine)),
        ("bf16 beside fp16", TypeError, "x is bf16, expected fp16", call(x, q["fp16"], fine)),
        ("strided x", ValueError, "stride 2 along a row", call(np.zeros((2, 128), BF16)[:, ::2], q["bf16"], fine)),
        ("rank of x", ValueError, r"\[m, columns\]", lambda: deep_gemm._C.linear(
            np.zeros((1, 2, 64), BF16), None, [q["bf16"].parts], [fine], [], [], False, 0, False, False, None, HOST["device"], None)),
        ("shape of y", ValueError, r"y has shape \[2, 7\], expected \[2, 8\]", call(x, q["bf16"], fine[:, :7].copy())),
        ("type of y", TypeError, "y is int32", call(x, q["bf16"], np.zeros((2, 8), np.int32))),
        ("rows of y overlap", ValueError, "overlap", call(x, q["bf16"], np.lib.stride_tricks.as_strided(
            np.zeros(8, BF16), (2, 8), (0, 2)))),
        ("bias", ValueError, "bias has shape", call(x, q["bf16"], bias=np.zeros(7, BF16))),
        ("type of bias", TypeError, "bias is fp32, expected bf16", call(x, q["bf16"], bias=np.zeros(8, np.float32))),
        ("residual", ValueError, "residual has shape", call(x, q["bf16"], residual=np.zeros((1, 8), BF16))),
        ("no scales", TypeError, "scales of w", call(x, broken("mxfp4", scales=None))),
        ("scales", ValueError, r"scales of w has shape", call(x, broken("fp8_32", scales=np.ones((8, 3), np.float32)))),
        ("type of scales", TypeError, "expected fp32", call(x, broken("fp8_32", scales=np.ones((8, 2), np.float16)))),
        ("bytes of a row", ValueError, r"expected \[8, 32\]", call(x, broken("mxfp4", data=np.zeros((8, 31), np.int8)))),
        ("type of w", TypeError, "expected a QuantizedMatrix", call(x, w)),
        ("no columns", ValueError, "at least one column", call(x, broken("bf16", k=0))),
        ("fp8 beside bf16", TypeError, "x is", call((x, pair[1]), q["fp8_128x128"], fine)),
        ("fp8 for bf16 weights", ValueError, "8 or 4 bits", call(pair, q["bf16"], fine)),
        ("scales of 32 for 128", ValueError, "fp8_32", call(deep_gemm.per_token_cast_to_fp8(
            x.astype(np.float32), gran_k=32), q["fp8_128x128"], fine)),
        ("shape of x_scale", ValueError, "x_scale has shape", call((pair[0], np.ones((2, 5), np.float32)), q["fp8_32"], fine)),
        ("int8 without whole blocks", ValueError, "expected 64: whole blocks|x has", call(
            (np.zeros((2, 60), np.int8), np.ones((2, 2), np.float32)), q["q8_0"], fine)),
        ("two layouts", ValueError, "matrix 1 is mxfp4", call(x, [q["bf16"], q["mxfp4"]])),
        ("too many", ValueError, "got 5 matrices", call(x, [q["bf16"]] * 5)),
        ("x as a list", TypeError, "x is a list, expected an array", call([x, x], q["bf16"], fine)),
        ("rank of w", ValueError, r"w has shape \(64,\), expected \[n, k\]", call(x, w[0].astype(BF16))),
        ("one out for two", TypeError, "out is one tensor, expected a sequence of 2", call(x, [q["bf16"]] * 2, fine)),
        ("one bias for two", TypeError, "bias is one tensor", call(x, [q["bf16"]] * 2, bias=fine[0])),
        ("outs", ValueError, "got 1 of out, expected 2", call(x, [q["bf16"]] * 2, [fine])),
        ("rows of out", ValueError, "rows at uneven distances", call(
            x.reshape(2, 1, 64).repeat(3, 1), q["bf16"], np.zeros((2, 5, 8), BF16)[:, :3])),
        ("global scale", ValueError, "global scale of w is 2, expected 1", call(x, broken("mxfp4", global_scale=2.0))),
        ("scales of tokens turned", ValueError, r"x_scale has shape \[2, 5\], expected \[rows of x, 1\]", call(
            (pair[0], np.ones((2, 5), np.float32)), q["fp8_128x128"], fine)),
        ("limit", ValueError, "limit is -1", lambda: deep_gemm.swiglu_linear(x, q["bf16"], q["bf16"], limit=-1, **HOST)),
        ("swiglu heights", ValueError, "as many of both", lambda: deep_gemm.swiglu_linear(
            x, q["bf16"], deep_gemm.quantize(weight(9, 64), "bf16"), **HOST)),
    ]  # fmt: skip


@pytest.mark.parametrize("case", bad_calls(), ids=lambda case: case[0])
def test_bad_arguments(case: tuple[str, type[Exception], str, Callable[[], Any]]) -> None:
    _, kind, message, call = case
    deep_gemm.reset_dispatch_counts()
    with pytest.raises(kind, match=message):
        call()
    assert deep_gemm.dispatch_counts() == []


def test_what_y_may_not_share(emulator: Any) -> None:
    """Rows are written while others are still read: y over x, over W, over another y, beside its own residual."""
    w, pool = weight(16, 16).astype(BF16), np.zeros((8, 64), BF16)
    pool[:, :16] = tokens(8, 16)
    x, y, after, wide = pool[:4, :16], pool[:4, 16:32], pool[1:5, 16:32], pool[:4, 32:48]
    expected = deep_gemm.linear(x.copy(), w, device=emulator)
    cases: list[tuple[str, Any, Any, dict[str, Any]]] = [
        ("x", w, x, {}),
        ("x", w, pool[2:6, :16], {}),
        ("w", w, w[:4], {}),
        ("y of another matrix", [w, w], [y, y], {}),
        ("residual in part", w, y, {"residual": after}),
        ("residual of another", [w, w], [y, wide], {"residual": [wide, y]}),
        ("bias", w, y, {"bias": y[0]}),
    ]
    for name, matrix, out, options in cases:
        before = pool.copy()
        with pytest.raises(ValueError, match=rf"y is the \d+ bytes from 0x\w+, which overlap {name}, the"):
            deep_gemm.linear(x, matrix, out, device=emulator, **options)
        assert same_bits(pool, before)
    # Columns of one buffer share its rows and none of their bytes.
    deep_gemm.linear(x, [w, w], [y, wide], device=emulator)
    assert same_bits(y.copy(), expected) and same_bits(wide.copy(), expected)
    with pytest.raises(ValueError, match="x, values and scales share memory"):
        deep_gemm.quantize_activations(
            x, "fp8_32", (x.view(np.int8)[:, :16], np.zeros((4, 1), np.float32)), device=emulator
        )


@pytest.mark.parametrize("kind", ["q8", "fp8_128"])
def test_tokens_of_any_rank(kind: str) -> None:
    x, w = tokens(6, 64), deep_gemm.quantize(weight(8, 64), "q8_0" if kind == "q8" else "fp8_row")
    flat = deep_gemm.quantize_activations(x, kind, **HOST)
    deep = deep_gemm.quantize_activations(x.reshape(2, 3, 64), kind, **HOST)
    for a, b in zip(flat, deep, strict=True):
        assert b.shape[:2] == (2, 3) and same_bits(b.reshape(a.shape), a)
    one = deep_gemm.quantize_activations(x[4], kind, **HOST)
    assert all(same_bits(a[4], b) for a, b in zip(flat, one, strict=True))
    y = deep_gemm.linear(flat, w, **HOST)
    assert same_bits(deep_gemm.linear(deep, w, **HOST).reshape(6, 8), y)
    assert same_bits(deep_gemm.linear(one, w, **HOST), y[4])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("int5",), "got 'int5'"),
        (("int4", 48), "int4_48"),
        (("q8_0", 32), "options of 'int4'"),
    ],
    ids=str,
)
def test_bad_formats(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        deep_gemm.quantize(weight(4, 32), arguments[0], group=arguments[1] if len(arguments) > 1 else None)


def test_bad_parts() -> None:
    with pytest.raises(ValueError, match="scales are missing"):
        QuantizedMatrix.from_parts("mxfp4", np.zeros((2, 16), np.int8))
    with pytest.raises(ValueError, match="zero points are missing"):
        QuantizedMatrix.from_parts("int4_zero_32", np.zeros((2, 16), np.int8), np.ones((2, 1), np.float16))
    with pytest.raises(ValueError, match="30 bytes in a row, expected 32"):
        QuantizedMatrix.from_parts("mxfp4", np.zeros((2, 30), np.int8), np.ones((2, 2), np.int8), k=64)


# ---- PyTorch


def test_torch_gives_the_same_bits() -> None:
    torch = pytest.importorskip("torch")
    w, x = weight(40, 288), tokens(3, 288)
    x_torch = torch.from_numpy(x.astype(np.float32)).to(torch.bfloat16)
    for name in FORMATS:
        if name == "fp16":
            continue
        ours, theirs = deep_gemm.quantize(w, name), deep_gemm.quantize(torch.from_numpy(w), name)
        np.testing.assert_array_equal(theirs.dequantize().numpy(), ours.dequantize())
        y = deep_gemm.linear(x_torch, theirs, out_dtype="fp32", **HOST)
        assert same_bits(y.numpy(), deep_gemm.linear(x, ours, out_dtype="fp32", **HOST)), name
