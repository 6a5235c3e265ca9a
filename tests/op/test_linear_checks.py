"""What linear() and quantize_activations() take and refuse: the formats of a layout's parts, rows that overlap, calls
that a form cannot serve, and matrices that share a call.
"""

from __future__ import annotations

import mmap
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from kernel.test_gemv import BF16, random_weight, random_x, same_bits
from kernel.test_weight_gemm import spec_of
from numpy.lib.stride_tricks import as_strided

import deep_gemm
from deep_gemm import _C
from deep_gemm.quantized import FORMATS, QuantizedMatrix

Array = np.ndarray[Any, np.dtype[Any]]

NO_RESERVE = 0x4000  # of Linux's mmap, which Python 3.11 has no name for
E4M3, E5M2, UE8M0 = ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, ml_dtypes.float8_e8m0fnu


def forms() -> list[str]:
    return [row["form"] for row in deep_gemm.dispatch_counts() for _ in range(row["launches"])]


def counted(call: Any) -> tuple[Any, list[str]]:
    deep_gemm.reset_dispatch_counts()
    return call(), forms()


# ---- Formats


@pytest.mark.parametrize("kind", [E4M3, E5M2, UE8M0, np.int8])
@pytest.mark.parametrize("name", [name for name in FORMATS if FORMATS[name]["element_bits"] < 16])
def test_elements_are_the_layouts_own_or_bytes(emulator: Any, name: str, kind: Any) -> None:
    """A tensor of another type of 8 bits has the right size and would be read as what it is not."""
    rng = np.random.default_rng(0)
    w, x = deep_gemm.quantize(random_weight(rng, 5, 64), name), random_x(rng, 2, 64, "bf16")
    viewed = QuantizedMatrix(name, 5, 64, w.data.view(kind), w.scales, w.zeros, w.global_scale)
    if kind is np.int8 or (kind is E4M3 and FORMATS[name]["element"] == "fp8_e4m3"):
        assert same_bits(
            deep_gemm.linear(x, viewed, device=emulator), deep_gemm.linear(x, w, device=emulator)
        )
        return
    with pytest.raises(TypeError, match=rf"w \({name}\) holds fp8_\w+, expected (int8|fp8_e4m3 \(or its)"):
        deep_gemm.linear(x, viewed, device=emulator)


@pytest.mark.parametrize("kind", [E4M3, E5M2, UE8M0])
@pytest.mark.parametrize(("name", "own"), [("mxfp4", UE8M0), ("nvfp4", E4M3), ("nvfp4_32", None), ("int4_zero_32", None)])  # fmt: skip
def test_scales_are_of_their_own_type_or_bytes(emulator: Any, name: str, own: Any, kind: Any) -> None:
    rng = np.random.default_rng(1)
    w, x = deep_gemm.quantize(random_weight(rng, 5, 64), name), random_x(rng, 2, 64, "bf16")
    parts = {"scales": w.scales, "zeros": w.zeros}
    changed = "scales" if w.zeros is None else "zeros"
    part = parts[changed]
    assert part is not None
    parts[changed] = part.view(kind)
    viewed = QuantizedMatrix(name, 5, 64, w.data, global_scale=w.global_scale, **parts)
    if kind is own:
        assert same_bits(
            deep_gemm.linear(x, viewed, device=emulator), deep_gemm.linear(x, w, device=emulator)
        )
        return
    with pytest.raises(TypeError, match=rf"of w \({name}\) are fp8_\w+, expected (int8|fp8_\w+ \(or its)"):
        deep_gemm.linear(x, viewed, device=emulator)


def test_parts_that_a_layout_has_not(emulator: Any) -> None:
    w, x = np.zeros((4, 32), BF16), np.zeros((2, 32), BF16)
    ones = np.ones((4, 1), np.float32)
    with pytest.raises(ValueError, match=r"got scales beside w \(bf16\), expected none"):
        deep_gemm.linear(x, QuantizedMatrix("bf16", 4, 32, w, ones), device=emulator)
    fp8 = w.astype(E4M3)
    with pytest.raises(ValueError, match=r"got zero points beside w \(fp8_row\), expected none"):
        deep_gemm.linear(
            x, QuantizedMatrix("fp8_row", 4, 32, fp8, ones, np.zeros((4, 1), np.int8)), device=emulator
        )
    with pytest.raises(TypeError, match="a matrix is a list, expected a tuple of 7 fields"):
        _C.linear(
            x,
            None,
            [["bf16"]],
            [np.zeros((2, 4), BF16)],
            [],
            [],
            False,
            0.0,
            False,
            False,
            None,
            emulator,
            None,
        )


@pytest.mark.parametrize("to", ["q8", "fp8_128", "fp8_32"])
@pytest.mark.parametrize("kind", [E4M3, E5M2, UE8M0, np.int8])
def test_narrow_elements_of_x_are_their_own_type_or_bytes(emulator: Any, to: str, kind: Any) -> None:
    x = random_x(np.random.default_rng(2), 3, 64, "bf16")
    values, scales = deep_gemm.quantize_activations(x, to, device=emulator)
    out = np.zeros((3, 64), kind), np.zeros_like(scales)
    if kind is np.int8 or (kind is E4M3 and to != "q8"):
        deep_gemm.quantize_activations(x, to, out, device=emulator)
        assert out[0].tobytes() == values.tobytes() and same_bits(out[1], scales)
        return
    expected = "int8" if to == "q8" else r"fp8_e4m3 \(or int8\)"
    with pytest.raises(TypeError, match=f"values are fp8_.* and scales fp32, expected {expected} and fp32"):
        deep_gemm.quantize_activations(x, to, out, device=emulator)


# ---- Rows that overlap


@pytest.mark.parametrize("apart", [0, 4])
def test_rows_of_scales_do_not_overlap(emulator: Any, apart: int) -> None:
    x = random_x(np.random.default_rng(3), 20, 64, "bf16")
    scales = as_strided(np.zeros(64, np.float32), (20, 2), (apart, 4))
    with pytest.raises(
        ValueError, match=rf"values are 64 and of scales {apart} bytes apart, expected at least 64 and 8"
    ):
        deep_gemm.quantize_activations(x, "fp8_32", (np.zeros((20, 64), np.int8), scales), device=emulator)
    values, wide = np.zeros((20, 80), np.int8), np.zeros((20, 5), np.float32)
    deep_gemm.quantize_activations(x, "fp8_32", (values[:, :64], wide[:, 1:3]), device=emulator)
    expected = deep_gemm.quantize_activations(x, "fp8_32", device=emulator)
    assert values[:, :64].tobytes() == expected[0].tobytes() and same_bits(wide[:, 1:3].copy(), expected[1])
    assert not values[:, 64:].any() and not wide[:, [0, 3, 4]].any()


@pytest.mark.parametrize("name", ["fp8_128x128", "mxfp4"])
def test_rows_of_x_may_overlap(emulator: Any, name: str) -> None:
    """The same row again and again, and windows: the form that reads rows anywhere, at any number of rows."""
    rng = np.random.default_rng(4)
    w = deep_gemm.quantize(random_weight(rng, 520, 256), name)
    line = random_x(rng, 1, 4096, "bf16")[0]
    windows = as_strided(line, (40, 256), (64, 2))
    once = as_strided(line, (40, 256), (0, 2))
    scales = np.full((40, 2), 0.25, np.float32)
    narrow = line.astype(E4M3)
    for rows in (windows, once):
        x: Any = (
            rows
            if name == "mxfp4"
            else (as_strided(narrow, (40, 256), [s // 2 for s in rows.strides]), scales)
        )
        copy: Any = rows.copy() if name == "mxfp4" else (np.ascontiguousarray(x[0]), scales)
        got, ran = counted(lambda x=x: deep_gemm.linear(x, w, device=emulator))
        assert ran == ["small"]
        assert same_bits(got, deep_gemm.linear(copy, w, invariant=True, device=emulator))
        assert counted(lambda copy=copy: deep_gemm.linear(copy, w, device=emulator))[1] == ["large"]
    with pytest.raises(
        ValueError, match="int8 tokens are for the large-batch form alone: TMA needs rows of x that do not"
    ):
        deep_gemm.linear((as_strided(np.zeros(512, np.int8), (20, 256), (0, 1)), np.ones((20, 1), np.float32)),
                         deep_gemm.quantize(random_weight(rng, 8, 256), "int8_row"), device=emulator)  # fmt: skip


# ---- Matrices that share a call


def test_a_matrix_is_multiplied_as_it_is_alone() -> None:
    """Beyond 16 rows: each takes its own form, so that its bits are those of a call of its own."""
    rng = np.random.default_rng(5)
    small, big = (deep_gemm.quantize(random_weight(rng, n, 1024), "mxfp4") for n in (16, 520))
    unaligned = QuantizedMatrix(
        "mxfp4", 520, 1024, np.zeros(520 * 512 + 1, np.int8)[1:].reshape(520, 512), big.scales
    )
    unaligned.data[...] = big.data
    x, device = random_x(rng, 17, 1024, "bf16"), "emulator:sm_90a,sms=8"
    matrices = [small, big, small, unaligned]
    alone, ran = zip(*(counted(lambda w=w: deep_gemm.linear(x, w, out_dtype="fp32", device=device)) for w in matrices), strict=True)  # fmt: skip
    assert list(ran) == [["small"], ["large"], ["small"], ["small"]]
    together, shared = counted(lambda: deep_gemm.linear(x, matrices, out_dtype="fp32", device=device))
    assert sorted(shared) == ["large", "small"]  # one launch of all that go that way
    for one, other in zip(alone, together, strict=True):
        assert same_bits(one, other)


@pytest.mark.parametrize("name", ["bf16", "fp8_128x128", "int4_32", "mxfp4"])
def test_the_large_form_has_one_order_for_all_sizes(name: str) -> None:
    """Rows of W and of x among fewer and more, and beside NaN: the same bits wherever that form is taken."""
    rng = np.random.default_rng(13)
    weight, device = random_weight(rng, 1100, 1024), "emulator:sm_90a,sms=8"
    w, head = (deep_gemm.quantize(weight[:n], name) for n in (1100, 640))  # scales of 128 rows are the same
    x = random_x(rng, 200, 1024, "bf16")
    few, more = x[:17], x.copy()
    more[17:] = np.nan
    calls = [(few, w), (few, head), (more, w), (x, head)]
    results = [
        counted(lambda x=x, w=w: deep_gemm.linear(x, w, out_dtype="fp32", device=device)) for x, w in calls
    ]
    assert [ran for _, ran in results] == [["large"]] * 4
    for y, _ in results[1:]:
        assert same_bits(y[:17, :640].copy(), results[0][0][:, :640].copy())


def test_pairs_of_fp8_beside_a_bias(emulator: Any) -> None:
    """The FP8 GEMM has none: that matrix alone goes the other way."""
    rng = np.random.default_rng(6)
    w = deep_gemm.quantize(random_weight(rng, 40, 256), "fp8_128x128")
    x, bias = random_x(rng, 20, 256, "fp8_128"), np.ones(40, BF16)
    (first, second), ran = counted(lambda: deep_gemm.linear(x, [w, w], bias=[bias, None], device=emulator))
    assert sorted(ran) == ["large", "small"]
    assert same_bits(first, deep_gemm.linear(x, w, bias=bias, device=emulator))
    assert same_bits(second, deep_gemm.linear(x, w, device=emulator))


def test_everything_is_checked_before_a_launch(emulator: Any) -> None:
    """A spec that serves the first of two matrices, and not the second."""
    rng = np.random.default_rng(7)
    whole = deep_gemm.quantize(random_weight(rng, 40, 256), "fp8_32")
    scales = np.zeros(40 * 8 + 1, np.float32)[1:].reshape(40, 8)
    odd = QuantizedMatrix("fp8_32", 40, 256, whole.data, scales)
    spec = spec_of("fp8_32", 256, whole_scales=True).replace(y="fp32")
    outs = [np.full((20, 40), -7, np.float32) for _ in range(2)]
    with pytest.raises(ValueError, match="use whole_scales=False"):
        deep_gemm.linear(random_x(rng, 20, 256, "bf16"), [whole, odd], outs, spec=spec, device=emulator)
    assert all((out == -7).all() for out in outs)


def test_rows_of_y_far_apart(emulator: Any) -> None:
    """2^31 elements from one to the next, which the FP8 GEMM does not take: the other form does."""
    gap = (1 << 33) + 64
    space = mmap.mmap(-1, 17 * gap, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NO_RESERVE)
    far = as_strided(np.frombuffer(space, np.float32, 1), (17, 8), (gap, 4), writeable=True)
    rng = np.random.default_rng(8)
    w = deep_gemm.quantize(random_weight(rng, 8, 128), "fp8_128x128")
    x, near = random_x(rng, 17, 128, "fp8_128"), np.zeros((17, 8), np.float32)
    assert counted(lambda: deep_gemm.linear(x, [w, w], [near, far], device=emulator))[1] == ["small", "large"]
    assert same_bits(far.copy(), deep_gemm.linear(x, w, out_dtype="fp32", invariant=True, device=emulator))


def test_more_rows_than_a_grid_holds(emulator: Any) -> None:
    """65535 blocks along y: the rows beyond are a launch of their own, in every operand."""
    rng = np.random.default_rng(9)
    m = 65535 + 3
    w = deep_gemm.quantize(random_weight(rng, 8, 32), "q8_0")
    x = np.tile(random_x(rng, 1, 32, "bf16"), (m, 1))
    x[-3:] = random_x(rng, 3, 32, "bf16")
    residual = np.zeros((m, 8), BF16)
    residual[-2:] = 3
    y, ran = counted(lambda: deep_gemm.linear(x, w, strict=True, residual=residual, device=emulator))
    assert ran == ["small"] * 2
    expected = deep_gemm.linear(x[-4:], w, residual=residual[-4:], device=emulator)
    assert same_bits(y[-4:], expected) and (y[:-3] == y[0]).all()


# ---- Nothing at all, and options


@pytest.mark.parametrize("name", FORMATS)
def test_a_matrix_without_rows(emulator: Any, name: str) -> None:
    """Quantised, read back, multiplied alone and beside another, with x of any rank."""
    none = deep_gemm.quantize(np.zeros((0, 288), np.float32), name)
    some = deep_gemm.quantize(random_weight(np.random.default_rng(10), 5, 288), name)
    data, scales, zeros, scale = _C.quantize_weights(np.zeros((0, 288), np.float32), name)
    assert data.size == scales.size == zeros.size == 0 and scale == none.global_scale == 1
    assert none.dequantize().shape == (0, 288)
    for part, other in ((none.data, some.data), (none.scales, some.scales), (none.zeros, some.zeros)):
        assert (part is None) == (other is None)
        assert part is None or (part.dtype == other.dtype and part.shape == (0, *other.shape[1:]))
    x = random_x(np.random.default_rng(11), 4, 288, "fp16" if name == "fp16" else "bf16").reshape(2, 2, 288)
    assert deep_gemm.linear(x, none, device=emulator).shape == (2, 2, 0)
    y, empty = deep_gemm.linear(x, [some, none], device=emulator)
    assert empty.shape == (2, 2, 0) and same_bits(y, deep_gemm.linear(x, some, device=emulator))
    if FORMATS[name]["packing"] != "blocks":
        four_bits = {"interleaved": True} if name.startswith(("int4", "mxfp4", "nvfp4")) else {}
        again = QuantizedMatrix.from_parts(name, none.data, none.scales, none.zeros, k=288, **four_bits)
        assert again.n == 0


def test_out_dtype_beside_out(emulator: Any) -> None:
    w, x = np.zeros((4, 32), BF16), np.zeros((2, 32), BF16)
    out = np.zeros((2, 4), np.float32)
    assert deep_gemm.linear(x, w, out, out_dtype="fp32", device=emulator) is out
    with pytest.raises(
        ValueError, match="out_dtype: got 'bf16' beside an out of float32, expected the type of out"
    ):
        deep_gemm.linear(x, w, out, out_dtype="bf16", device=emulator)
    with pytest.raises(ValueError, match="out_dtype: got 'nonsense', expected bf16, fp16 or fp32"):
        deep_gemm.swiglu_linear(x, w, w, out, out_dtype="nonsense", device=emulator)


def test_names_and_messages(emulator: Any) -> None:
    rng = np.random.default_rng(12)
    x, pair = random_x(rng, 2, 128, "bf16"), random_x(rng, 2, 128, "fp8_128")
    for function, operand, name in (
        (deep_gemm.gemv_w4a16, x, "int4_128"), (deep_gemm.gemv_w4a8, pair, "int4_64"), (deep_gemm.gemv_w8a8, pair, "int8_row"),
    ):  # fmt: skip
        w = deep_gemm.quantize(random_weight(rng, 8, 128), name)
        assert same_bits(function(operand, w, device=emulator), deep_gemm.linear(operand, w, device=emulator))
    with pytest.raises(ValueError, match=r"data and scales of quantize\(x, 'int8_row'\)"):
        deep_gemm.quantize_activations(x, "int8_row", device=emulator)
    with pytest.raises(TypeError, match="float64, expected fp8_e4m3, bf16, fp16, fp32, int8 or int32"):
        deep_gemm.quantize_activations(x.astype(np.float64), "q8", (np.zeros((2, 128), np.int8), np.zeros((2, 4), np.float32)), device=emulator)  # fmt: skip
    for alias, name in (("int4", "int4_128"), ("fp8", "fp8_128x128"), ("int8", "int8_row")):
        w = deep_gemm.quantize(random_weight(rng, 8, 128), alias)
        made = QuantizedMatrix.from_parts(alias, w.data, w.scales, interleaved=alias == "int4")
        assert made.format == name
        np.testing.assert_array_equal(made.dequantize(), w.dequantize())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strict": "no"}, "strict is 'no' of type str, expected True or False"),
        ({"invariant": None}, "invariant is None of type NoneType, expected True or False"),
        ({"spec": 3}, "spec is a int, expected a WeightGemmSpec or None"),
    ],
)
def test_options_of_other_types(emulator: Any, options: dict[str, Any], message: str) -> None:
    w, x = deep_gemm.quantize(np.ones((4, 32), np.float32), "q8_0"), np.ones((2, 32), ml_dtypes.bfloat16)
    with pytest.raises(TypeError, match=f"^linear: {message}"):
        deep_gemm.linear(x, w, device=emulator, **options)
    with pytest.raises(TypeError, match=f"^swiglu_linear: {message}"):
        deep_gemm.swiglu_linear(x, w, w, device=emulator, **options)
    for limit in ("1", None, True, [1.0]):
        with pytest.raises(
            TypeError, match=r"^swiglu_linear: limit is a \w+, expected 0 \(none\) or a positive number"
        ):
            deep_gemm.swiglu_linear(x, w, w, limit=limit, device=emulator)


def test_explained_rows_are_packed() -> None:
    """A k that leaves rows off multiples of 16 bytes goes to the form that takes it, as the call does."""
    problem = "linear w=fp8_row m=40 n=14336 k=4097"
    assert "small-batch form" in deep_gemm.explain_linear(problem, "90a:132").splitlines()[0]
    assert "large-batch form" in deep_gemm.explain_linear(f"{problem} padded", "90a:132").splitlines()[0]
    assert "vector=false" in deep_gemm.explain_linear("linear w=bf16 m=1 n=64 k=12", "90a:132")
    assert "vector=true" in deep_gemm.explain_linear("linear w=mxfp4 m=1 n=64 k=4100", "90a:132")
