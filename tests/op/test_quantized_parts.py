"""Weights into their layouts: what quantisers make of odd numbers, bit for bit as the recipes and codecs say, and tensors
of checkpoints, of which the wrong ones are refused by name.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from ptx.number_formats import E2M1, interesting

import deep_gemm
from deep_gemm import _C, fp4_formats, quantized_codecs
from deep_gemm.quantized import FORMATS, QuantizedMatrix

Array = np.ndarray[Any, np.dtype[Any]]

BF16 = ml_dtypes.bfloat16
E4M3, E5M2, E8M0 = ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, ml_dtypes.float8_e8m0fnu
from_parts = QuantizedMatrix.from_parts


def weight(n: int, k: int, seed: int = 0) -> Array:
    return (np.random.default_rng(seed).standard_normal((n, k)) * 0.5).astype(np.float32)


# ---- Codecs


def test_codecs_of_arrays_are_those_of_the_header() -> None:
    """quantized_codecs works on PyTorch tensors too and so has codecs of its own."""
    with np.errstate(all="ignore"):
        x = np.concatenate(
            [
                interesting(E2M1, np.random.default_rng(1)) * np.float32(scale)
                for scale in (1, 1 / 6, 100, 1e-2)
            ]
        )
        middles = _C.decode(np.arange(128, dtype=np.uint8), "ue4m3")
    middles = (middles[1:] + middles[:-1]) / 2
    x = np.concatenate([x, *(np.nextafter(middles, np.float32(to)) for to in (0, 1e9)), middles])
    assert (quantized_codecs.e2m1_codes(x) == _C.encode(x, "e2m1")).all()
    positive = np.abs(x[~np.isnan(x)])
    assert (quantized_codecs.ue4m3_code(positive) == _C.encode(positive, "ue4m3")).all()
    bounded = np.maximum(np.abs(x), np.float32(2.0**-126))
    for rule, name in (("ceil", "ue8m0_up"), ("round", "ue8m0_nearest")):
        assert (quantized_codecs.ue8m0_code(bounded, rule) == _C.encode(bounded, name)).all()
    ratios = np.concatenate([bounded, np.ldexp(np.float32(1.25), np.arange(-126, 128)), np.ldexp(np.float32(1), np.arange(-126, 128))])  # fmt: skip
    assert (quantized_codecs.e2m1_scale_code(ratios, "ceil") == _C.encode(ratios, "e2m1_scale_up")).all()
    codes = np.arange(256, dtype=np.uint8)
    for values, name in ((quantized_codecs.ue8m0_value, "ue8m0_up"), (quantized_codecs.ue4m3_value, "ue4m3")):
        np.testing.assert_array_equal(values(codes), _C.decode(codes, name))
    np.testing.assert_array_equal(quantized_codecs.e2m1_values(codes[:16]), _C.decode(codes[:16], "e2m1"))


@pytest.mark.parametrize("rounding", ["ceil", "round"])
def test_mxfp4_near_the_largest_of_fp32(rounding: str) -> None:
    """What is finite reads back finite: elements that only a scale of 2^126 would hold saturate, as OCP's MX has it."""
    largest = np.finfo(np.float32).max
    w = np.zeros((6, 64), np.float32)
    w[:, ::3], w[:, 40] = 2e38, -1e37
    whole = np.float32(6 * 2.0**125)
    w[:, 5] = [largest, -largest, 2.9e38, whole, np.nextafter(whole, largest), 2.55e38]
    host = deep_gemm.quantize(w, "mxfp4", scale_rounding=rounding)
    back = np.asarray(host.dequantize())
    assert np.isfinite(back).all() and (host.scales.view(np.uint8)[:, 0] == 252).all()
    assert (np.abs(back[:, 5]) == whole).all() and (np.sign(back[:, 5]) == np.sign(w[:, 5])).all()
    twin = quantized_codecs.quantize_float4(w, FORMATS["mxfp4"], rounding)
    assert twin[0].tobytes() == host.data.tobytes() and twin[1].tobytes() == host.scales.tobytes()


@pytest.mark.parametrize("bad", [1.0, np.nan, np.inf])
def test_four_bit_floats_are_the_recipes(bad: float) -> None:
    """docs/formats.md: the same codes and scales as fp4_formats gives, whatever stands in a block."""
    w = weight(64, 512) * np.exp2(np.random.default_rng(2).integers(-20, 20, (64, 1))).astype(np.float32)
    w[3] = 0
    w[5, :32] = -0.0
    w[7, 40] = bad
    for rounding, rule in (("ceil", "up"), ("round", "nearest")):
        ours = deep_gemm.quantize(w, "mxfp4", scale_rounding=rounding)
        codes, scales = fp4_formats.quantize_mxfp4(w, rule=rule)
        assert (quantized_codecs.from_fragments(ours.data, 512) == nibbles(codes)).all()
        assert (ours.scales.view(np.uint8) == scales).all()
    ours = deep_gemm.quantize(w, "nvfp4")
    codes, scales, scale = fp4_formats.quantize_nvfp4(w)
    np.testing.assert_array_equal(np.float32(ours.global_scale), scale)
    assert (quantized_codecs.from_fragments(ours.data, 512) == nibbles(codes)).all()
    both = (_C.decode(one.view(np.uint8), "e4m3") for one in (ours.scales, scales))
    np.testing.assert_array_equal(*both)  # a NaN is one with either sign


def nibbles(packed: Array) -> Array:
    return np.stack([packed & 15, packed >> 4], -1).reshape(len(packed), -1)


# ---- Odd weights


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", FORMATS)
def test_a_weight_that_is_no_number_shows(name: str, bad: float) -> None:
    """In its own place and in those that share its scale (nvfp4: the matrix), never as a number, and without a warning."""
    w = weight(300, 256)
    w[2, 40] = bad
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        values = deep_gemm.quantize(w, name).dequantize()
    assert not np.isfinite(values[2, 40])
    if FORMATS[name]["has_global"]:
        return
    row = FORMATS[name]
    block = np.zeros_like(w, bool)
    k = row["block_k"] or (256 if row["scale"] != "none" else 1)
    k = 32 if row["packing"] == "blocks" else k
    first = 40 // k * k
    block[(slice(0, 128) if row["block_rows"] == 128 else slice(2, 3)), first : first + k] = True
    assert np.isfinite(values[~block]).all()
    clean = deep_gemm.quantize(weight(300, 256), name).dequantize()
    np.testing.assert_array_equal(values[~block], clean[~block])


@pytest.mark.parametrize("name", ["fp16", "q8_0", "q8_0_split", "int4_32", "int4_zero_128"])
def test_scales_beyond_fp16_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name}: a (scale|weight) is .*, expected at most 65504"):
        deep_gemm.quantize(weight(4, 128) * 1e8, name)


def test_names_and_options() -> None:
    w = weight(130, 128)
    for name, options, expected in (
        ("fp8_e4m3", {}, "fp8_128x128"), ("fp8_e4m3", {"block": 32}, "fp8_32"), ("fp8", {"block": 128}, "fp8_128x128"),
        ("int8", {}, "int8_row"), ("int4", {}, "int4_128"), ("int4", {"group": 32, "zero_point": True}, "int4_zero_32"),
        ("nvfp4", {}, "nvfp4"), ("nvfp4", {"block": 32}, "nvfp4_32"), ("mxfp4", {"scale_rounding": "round"}, "mxfp4"),
    ):  # fmt: skip
        assert deep_gemm.quantize(w, name, **options).format == expected
    for name, options, message in (
        ("fp8", {"block": 64}, "got block=64, expected 128 or 32"),
        ("q8_0", {"block": 32}, "block is an option of fp8, fp8_e4m3, nvfp4"),
        ("int4", {"block": 32}, "block is an option"),
        ("int4", {"scale_rounding": "round"}, "scale_rounding is an option of 'mxfp4'"),
    ):
        with pytest.raises(ValueError, match=message):
            deep_gemm.quantize(w, name, **options)
    for kind in (np.int32, np.int8, np.uint8, bool, complex, object):
        with pytest.raises(
            TypeError, match=r"quantize: got weights of .*, expected a float type; codes with scales"
        ):
            deep_gemm.quantize(w.astype(kind), "mxfp4")
    for kind in (np.float64, np.float16, BF16, E4M3):
        assert deep_gemm.quantize(w.astype(kind), "mxfp4").shape == w.shape


def test_the_constructor_knows_its_layout() -> None:
    with pytest.raises(ValueError, match="QuantizedMatrix: got format 'int4', expected one of bf16"):
        QuantizedMatrix("int4", 2, 32, np.zeros((2, 16), np.int8))
    ones, codes, zeros = np.ones((4, 2), np.float16), np.zeros((4, 64), np.int8), np.zeros((4, 2), np.int8)
    for parts, message in (
        (
            ("q8_0", 4, 64, codes[:, :68]),
            r"the data of w \(q8_0 of 4 x 64\) are of shape \(4, 64\), expected of shape \(4, 68\)",
        ),
        (
            ("mxfp4", 4, 64, codes[:, :16], zeros),
            r"the data of w .* of shape \(4, 16\), expected of shape \(4, 32\)",
        ),
        (("mxfp4", 4, 64, codes[:, :32]), r"the scales of w .* are none, expected of shape \(4, 2\)"),
        (
            ("mxfp4", 4, 64, codes[:, :32], zeros.repeat(2, 1)),
            r"the scales of w .* are of shape \(4, 4\), expected of shape \(4, 2\)",
        ),
        (
            ("fp8_row", 4, 64, codes, np.ones(4, np.float32)),
            r"the scales of w .* are of shape \(4,\), expected of shape \(4, 1\)",
        ),
        (
            ("bf16", 4, 64, codes.astype(BF16), ones),
            r"the scales of w .* are of shape \(4, 2\), expected none",
        ),
        (
            ("int4_zero_32", 4, 64, codes, ones),
            r"the zero points of w .* are none, expected of shape \(4, 2\)",
        ),
        (
            ("int4_32", 4, 64, codes, ones, zeros),
            r"the zero points of w .* are of shape \(4, 2\), expected none",
        ),
    ):
        with pytest.raises(ValueError, match=f"dequantize: {message}; quantize.. makes the parts"):
            QuantizedMatrix(*parts).dequantize()


# ---- The C++ twin


def odd_weight(n: int, k: int) -> Array:
    """Rows of every size, zeros, a tail of the last block."""
    rng = np.random.default_rng(3)
    w = weight(n, k, 3) * np.exp2(rng.integers(-30, 12, (n, 1))).astype(np.float32)
    w[1], w[2, : k // 2] = 0, 0
    w[3] = np.abs(w[3])
    w[4] = -np.abs(w[4])
    return w


def raw(part: Array | None) -> Array:
    return np.zeros(0, np.uint8) if part is None else np.ascontiguousarray(part).view(np.uint8).reshape(-1)


@pytest.mark.parametrize("name", FORMATS)
def test_the_twin_gives_the_same_bytes(name: str) -> None:
    for n, k in ((133, 257), (6, 31), (5, 1)):
        w = odd_weight(n, k)
        ours = deep_gemm.quantize(w, name)
        data, scales, zeros, scale = _C.quantize_weights(w, name)
        assert scale == np.float32(ours.global_scale)
        for part, theirs in ((ours.data, data), (ours.scales, scales), (ours.zeros, zeros)):
            assert (raw(part) == theirs).all()
        values = _C.dequantize_weights(name, n, k, data, scales, zeros, scale)
        assert values.tobytes() == ours.dequantize().tobytes()
    if name == "mxfp4":
        nearest = deep_gemm.quantize(w, name, scale_rounding="round")
        assert (raw(nearest.scales) == _C.quantize_weights(w, name, True)[1]).all()
    bad = weight(3, 300)
    bad[0, 5], bad[1, 7], bad[2, 0] = np.nan, np.inf, -np.inf
    values = _C.dequantize_weights(name, 3, 300, *_C.quantize_weights(bad, name))
    np.testing.assert_array_equal(values, deep_gemm.quantize(bad, name).dequantize())


@pytest.mark.parametrize("where", ["cpu", "cuda"])
def test_torch_gives_the_same_bytes(where: str) -> None:
    torch = pytest.importorskip("torch")
    if where == "cuda" and not torch.cuda.is_available():
        pytest.skip("PyTorch sees no GPU")
    w = odd_weight(133, 257)
    w[6, 100] = np.nan
    for name in FORMATS:
        ours, theirs = deep_gemm.quantize(w, name), deep_gemm.quantize(torch.from_numpy(w).to(where), name)
        np.testing.assert_array_equal(np.float32(ours.global_scale), np.float32(theirs.global_scale))
        np.testing.assert_array_equal(theirs.dequantize().cpu().numpy(), ours.dequantize(), err_msg=name)


@pytest.mark.parametrize("name", FORMATS)
def test_subnormal_rows_in_python_and_in_the_twin(name: str) -> None:
    """Rows that decayed to subnormals: a scale is rounded by so much that a quotient passes the largest code. Finite
    weights stay finite, and both give the same bytes.
    """
    smallest = np.float32(1e-45)
    steps = np.random.default_rng(5).integers(0, 4500, (160, 64)).astype(np.float32) * smallest
    steps[:, 0] = np.arange(1, 161) * 29 * smallest
    steps[:, 1:] = np.minimum(steps[:, 1:], steps[:, :1])
    w = np.where(np.random.default_rng(6).integers(0, 2, steps.shape) == 0, steps, -steps)
    w[0, :4] = 6.5e-43, 1e-43, 0, 0
    ours = deep_gemm.quantize(w, name)
    data, scales, zeros, scale = _C.quantize_weights(w, name)
    assert scale == np.float32(ours.global_scale)
    for part, theirs in ((ours.data, data), (ours.scales, scales), (ours.zeros, zeros)):
        assert (raw(part) == theirs).all()
    assert np.isfinite(ours.dequantize()).all()


def test_weights_further_apart_than_fp32_are_refused() -> None:
    """high - low is infinite where both are not: no scale of fp16 says that."""
    w = np.full((1, 64), 3e38, np.float32)
    w[0, 0] = -3e38
    for call in (
        lambda: deep_gemm.quantize(w, "int4", zero_point=True),
        lambda: _C.quantize_weights(w, "int4_zero_128"),
    ):
        with pytest.raises(
            ValueError, match=r"further apart than the largest of fp32, expected a scale of at most 65504"
        ):
            call()
    w[0, 1] = np.inf  # which takes its group with it, as everywhere
    assert not np.isfinite(deep_gemm.quantize(w, "int4", zero_point=True).scales).any()


def test_codes_and_refusals_of_the_twin() -> None:
    nibbles = np.random.default_rng(4).integers(0, 256, (5, 100)).astype(np.uint8)
    for name in ("int4_64", "mxfp4"):
        packed = _C.pack_codes(nibbles, 5, 199, name)
        scales = np.ones((5, _C.scale_columns(name, 199)), np.float16 if name == "int4_64" else np.int8)
        assert (packed == raw(from_parts(name, nibbles, scales, k=199).data)).all()
    with pytest.raises(ValueError, match="expected a layout of 4 bits"):
        _C.pack_codes(nibbles, 5, 200, "fp8_row")
    with pytest.raises(ValueError, match="got 500 bytes, expected 5 rows of 32"):
        _C.pack_codes(nibbles, 5, 64, "mxfp4")
    with pytest.raises(ValueError, match=r"a scale of q8_0 is .*, expected at most 65504"):
        _C.quantize_weights(weight(2, 32) * 1e8, "q8_0")
    with pytest.raises(ValueError, match="expected at least one column"):
        _C.quantize_weights(np.zeros((2, 0), np.float32), "q8_0")
    for call in (lambda: _C.dequantize_weights("q8_0", 1 << 32, 1 << 32, [], [], [], 1),
                 lambda: _C.pack_codes([], 1 << 32, 1 << 33, "mxfp4")):  # fmt: skip
        with pytest.raises(
            ValueError, match="expected extents below 2\\^31; pass slices"
        ):  # a product wraps to 0
            call()
    with pytest.raises(ValueError, match="which are not those of 2 x 32 of q8_0"):
        _C.dequantize_weights("q8_0", 2, 32, np.zeros(67, np.uint8), [], [], 1)


# ---- Tensors of checkpoints


def test_orders_and_types() -> None:
    w = weight(300, 256)
    for name in ("bf16", "fp8_128x128", "int8_row"):
        made = deep_gemm.quantize(w, name)
        data = made.data if name == "bf16" else made.data.view(np.uint8)
        for source in (data, np.ascontiguousarray(data.T).T, np.repeat(data, 2, 1)[:, ::2]):
            np.testing.assert_array_equal(
                from_parts(name, source, made.scales).dequantize(), made.dequantize()
            )
        turned = from_parts(name, np.ascontiguousarray(data.T), made.scales, data_order="kn")
        np.testing.assert_array_equal(turned.dequantize(), made.dequantize())
    codes = np.random.default_rng(0).integers(0, 16, (8, 256)).astype(np.uint8)
    packed = codes[:, ::2] | codes[:, 1::2] << 4
    scales = np.full((8, 8), 0.5, np.float32)
    expected = (codes.astype(np.float32) - 8) * 0.5
    for data, options in (
        (packed, {}),
        (packed.view(np.int32), {}),
        (np.ascontiguousarray(packed.T), {"data_order": "kn"}),
        (np.ascontiguousarray(packed.view(np.int32).T), {"data_order": "kn"}),
        (np.pad(packed, ((0, 0), (0, 5)), constant_values=0x77), {"k": 256}),
    ):
        np.testing.assert_array_equal(from_parts("int4_32", data, scales, **options).dequantize(), expected)
    odd = from_parts("mxfp4", packed[:, :16], np.full((8, 1), 127, np.uint8), k=31)
    np.testing.assert_array_equal(odd.dequantize(), _C.decode(codes[:, :31], "e2m1"))
    assert quantized_codecs.from_fragments(odd.data, 32)[:, 31].max() == 0
    powers = np.exp2(np.arange(-3.0, 3)).astype(np.float32).reshape(3, 2)
    fp8 = from_parts("fp8_128x128", np.ones((300, 256), E4M3), powers.astype(E8M0))
    np.testing.assert_array_equal(fp8.scales, powers)
    assert (
        from_parts(
            "nvfp4", packed, np.ones((8, 16), E4M3), global_scale=np.full(1, 2, np.float32)
        ).global_scale
        == 2
    )


def bad_parts() -> list[tuple[str, type[Exception], str, Callable[[], Any]]]:
    data, ones = np.zeros((256, 512), np.int8), np.ones((256, 1), np.float32)
    half, zeros = np.zeros((2, 16), np.int8), np.full((2, 1), 7, np.int8)
    scale, fp16 = np.full((2, 1), 127, np.uint8), np.ones((2, 1), np.float16)

    def call(*arguments: Any, **options: Any) -> Callable[[], Any]:
        return lambda: from_parts(*arguments, **options)

    return [
        ("turned scales", ValueError, r"\(4, 2\), expected \(2, 4\); scale_order='kn' turns them",
         call("fp8_128x128", data, np.ones((4, 2), np.float32))),
        ("codes that are not packed", ValueError, r"shape \(2, 1\), expected \(2, 2\), as k is 64; pass those of this matrix",
         call("int4_32", np.zeros((2, 32), np.int8), fp16)),
        ("flat scales", ValueError, r"\(8,\), expected \(2, 4\)", call("fp8_128x128", data, np.ones(8, np.float32))),
        ("bytes for fp32", TypeError, "viewed as float8_e8m0fnu", call("fp8_128x128", data, np.full((2, 4), 127, np.uint8))),
        ("e4m3 for ue8m0", TypeError, "scales are float8_e4m3fn.*powers of two are cast to float8_e8m0fnu", call("mxfp4", half, np.ones((2, 1), E4M3))),
        ("ue8m0 for e4m3", TypeError, "scales are float8_e8m0fnu", call("nvfp4", half, np.ones((2, 2), E8M0))),
        ("e5m2", TypeError, "data are float8_e5m2", call("fp8_row", np.zeros((2, 32), E5M2), ones[:2])),
        ("e4m3 for int8", TypeError, "data are float8_e4m3fn", call("int8_row", np.zeros((2, 32), E4M3), ones[:2])),
        ("wide data", TypeError, "data are float32", call("bf16", np.zeros((2, 32), np.float32))),
        ("scales of none", ValueError, "got scales, expected none", call("bf16", np.zeros((2, 32), BF16), ones[:2])),
        ("zeros of none", ValueError, "got zero points, expected none", call("int4_32", half, fp16, zeros)),
        ("large zeros", ValueError, "zero point is 200, expected 0 to 15",
         call("int4_zero_32", half, fp16, np.full((2, 1), 200, np.uint8))),
        ("type of zeros", TypeError, "zero points are float16", call("int4_zero_32", half, fp16, fp16)),
        ("shape of zeros", ValueError, "zero points have shape", call("int4_zero_32", half, fp16, zeros[:1])),
        ("large scales", ValueError, "a scale is 1e.09, expected at most 65504", call("int4_32", half, ones[:2] * 1e9)),
        ("global of none", ValueError, "global_scale is 2.0, expected 1", call("mxfp4", half, scale, global_scale=2.0)),
        ("negative global", ValueError, "global_scale is -1.0, expected a positive number",
         call("nvfp4", half, np.ones((2, 2), E4M3), global_scale=-1.0)),
        ("global of 0", ValueError, "global_scale is 0.0, expected", call("nvfp4", half, np.ones((2, 2), E4M3), global_scale=0)),
        ("NaN global", ValueError, "global_scale is nan, expected",
         call("nvfp4", half, np.ones((2, 2), E4M3), global_scale=np.nan)),
        ("NaN of ue8m0", ValueError, r"a scale is the byte 255 \(NaN\), expected 0 to 254",
         call("mxfp4", half, np.array([[127], [255]], np.uint8))),
        ("NaN of e8m0", ValueError, "a scale is the byte 255", call("mxfp4", half, np.full((2, 1), np.nan, E8M0))),
        ("NaN of e4m3", ValueError, r"a scale is the byte 127 \(NaN\), expected 0 to 126",
         call("nvfp4", half, np.full((2, 2), 127, np.int8))),
        ("sign of e4m3", ValueError, r"a scale is the byte 184 \(a negative number\)", call("nvfp4", half, -np.ones((2, 2), E4M3))),
        ("sign of ue4m3", ValueError, r"a scale is the byte 129 \(a negative number\), expected 0 to 127",
         call("nvfp4_32", half, np.full((2, 1), 129, np.uint8))),
        ("several globals", ValueError, r"global_scale has shape \(2,\)",
         call("nvfp4", half, np.ones((2, 2), E4M3), global_scale=np.ones(2))),
        ("k below 1", ValueError, "k is -1", call("fp8_row", data, ones, k=-1)),
        ("k no integer", TypeError, "k is a float", call("fp8_row", data, ones, k=512.0)),
        ("k of bf16", ValueError, "expected 31 as k", call("bf16", np.zeros((2, 32), BF16), k=31)),
        ("parts of blocks", ValueError, "expected whole blocks of 34", call("q8_0", np.zeros((2, 33), np.int8))),
        ("turned blocks", ValueError, "blocks of a row stand together", call("q8_0", data[:34], data_order="kn")),
        ("order", ValueError, "data_order: got 'n'", call("bf16", np.zeros((2, 32), BF16), data_order="n")),
        ("list", TypeError, "got a list", call("bf16", [[1, 2]])),
        ("rank", ValueError, r"expected \[n, row\]", call("q8_0", np.zeros(68, np.int8))),
    ]  # fmt: skip


@pytest.mark.parametrize("case", bad_parts(), ids=lambda case: case[0])
def test_bad_parts(case: tuple[str, type[Exception], str, Callable[[], Any]]) -> None:
    _, kind, message, call = case
    with pytest.raises(kind, match=message):
        call()


@pytest.mark.parametrize("name", ["bf16", "fp8_128x128", "int8_row", "q8_0", "q8_0_split"])
def test_only_four_bits_are_interleaved(name: str) -> None:
    w = deep_gemm.quantize(weight(4, 64), name)
    bits = 16 if name == "bf16" else 8
    with pytest.raises(
        ValueError, match=f"{name}: got interleaved=True, expected it for 4 bits alone: elements of {bits}"
    ):
        from_parts(name, w.data, w.scales, interleaved=True)
