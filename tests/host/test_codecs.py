"""The scalar codecs, exhaustively: every code decodes, every fp16 and bf16 value under several scales, every tie and its
neighbours encode. The host (_C.encode, _C.decode) and a kernel that includes the same header are held against a table
search in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from ptx.number_formats import E2M1, E4M3, E5M2, Target, interesting

from deep_gemm import _C
from deep_gemm.testing.device import readonly, run_kernel

Array = np.ndarray[Any, np.dtype[Any]]

FORMATS: dict[str, tuple[Target, Any]] = {
    "e2m1": (E2M1, ml_dtypes.float4_e2m1fn),
    "e4m3": (E4M3, ml_dtypes.float8_e4m3fn),
    "e5m2": (E5M2, ml_dtypes.float8_e5m2),
}
SCALES = np.float32([1.0, 1 / 6, 3.0, 2.0**-9, 448 / 6, 1e-30])


def host_encode(x: Array, name: str) -> Array:
    return _C.encode(x, name)


def device_map(device: Any, function: str, x: Array, out_type: Any) -> Array:
    """out[i] = function(x[i]) by a kernel."""
    kinds = {np.dtype(np.float32): "float", np.dtype(np.uint8): "u8", np.dtype(np.uint32): "u32"}
    out = np.zeros(x.shape, out_type)
    source = f"""
        #include <deep_gemm/ptx/base.h>
        #include <deep_gemm/spec/codec.h>
        using namespace deep_gemm;
        __global__ void apply(const {kinds[x.dtype]}* x, {kinds[out.dtype]}* out, int n) {{
            for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x)
                out[i] = codec::{function}(x[i]);
        }}"""
    run_kernel(device, source, "apply", readonly(x), out, x.size, grid=8, block=256)
    return out


def device_encode(device: Any) -> Callable[[Array, str], Array]:
    return lambda x, name: device_map(device, f"f32_to_{name}", x, np.uint8)


def inputs(target: Target) -> Array:
    rng = np.random.default_rng(1)
    with np.errstate(all="ignore"):
        return np.concatenate([interesting(target, rng) * scale for scale in SCALES])


@pytest.mark.parametrize("name", FORMATS)
def test_host_encodes(name: str) -> None:
    x = inputs(FORMATS[name][0])
    assert (host_encode(x, name) == FORMATS[name][0].encode(x, "rn", saturate=True)).all()


@pytest.mark.parametrize("name", FORMATS)
def test_device_encodes(device: Any, name: str) -> None:
    x = np.ascontiguousarray(inputs(FORMATS[name][0])[::7])
    assert (device_encode(device)(x, name) == host_encode(x, name)).all()


@pytest.mark.parametrize("name", FORMATS)
def test_all_codes_decode(device: Any, name: str) -> None:
    codes = np.arange(16 if name == "e2m1" else 256, dtype=np.uint8)
    expected = codes.view(FORMATS[name][1]).astype(np.float32)
    for got in (_C.decode(codes, name), device_map(device, f"{name}_to_f32", codes, np.float32)):
        nan = np.isnan(expected)
        assert (np.isnan(got) == nan).all()
        assert (got[~nan].view(np.uint32) == expected[~nan].view(np.uint32)).all()


def test_e2m1_ties_go_to_the_even_code() -> None:
    x = np.float32([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, -0.0, -0.25, -5.0, 7.0, np.inf, -np.inf])
    values = [0, 1, 1, 2, 2, 4, 4, 0, 0, -4, 6, 6, -6]
    codes = host_encode(x, "e2m1")
    assert _C.decode(codes, "e2m1").tolist() == values
    assert codes[7] == codes[8] == 8  # zero keeps its sign
    assert host_encode(np.float32([np.nan]), "e2m1")[0] == 7


def ue8m0(x: Array, up: bool) -> Array:
    """The exponent rule in float64, where squares of fp32 numbers are exact."""
    with np.errstate(invalid="ignore"):  # signalling NaNs
        magnitude = np.abs(x.astype(np.float64))
    exponent = np.frexp(np.where(np.isfinite(magnitude), magnitude, 1.0))[1] - 1
    with np.errstate(all="ignore"):
        above = magnitude > np.exp2(exponent) if up else magnitude**2 > np.exp2(2.0 * exponent + 1)
    code = np.where(magnitude == 0, 0, np.clip(exponent + above + 127, 0, 254))
    code = np.where(np.isinf(x), 254, code)
    return np.where(np.isnan(x), 255, code).astype(np.uint8)


def ue8m0_cases() -> Array:
    rng = np.random.default_rng(2)
    edges = np.exp2(np.arange(-149, 128.0)).astype(np.float32)
    halves = (np.exp2(np.arange(-140, 127.5) + 0.5)).astype(np.float32)
    return np.concatenate(
        [
            interesting(E4M3, rng),
            edges,
            *(np.nextafter(values, np.float32(to)) for values in (edges, halves) for to in (0, np.inf)),
            halves,
        ]
    )


@pytest.mark.parametrize("rule", ["up", "nearest"])
def test_ue8m0(device: Any, rule: str) -> None:
    x = ue8m0_cases()
    expected = ue8m0(x, rule == "up")
    assert (_C.encode(x, f"ue8m0_{rule}") == expected).all()
    assert (device_map(device, f"f32_to_ue8m0_{rule}", x, np.uint8) == expected).all()


def test_scales_of_e2m1(device: Any) -> None:
    """The exponent above, but 125 for what is finite and up to a sixth of fp32's largest: six times it is in fp32."""
    x = np.concatenate([ue8m0_cases(), np.float32([np.finfo(np.float32).max / 6, 2.0**125, np.inf, np.nan])])
    code = ue8m0(x, True)
    expected = np.where(code == 253, 252, code)
    assert (_C.encode(x, "e2m1_scale_up") == expected).all()
    assert (device_map(device, "f32_to_e2m1_scale_up", x, np.uint8) == expected).all()
    assert np.isfinite(np.float32(6) * _C.decode(expected[-4:-2], "ue8m0_up")).all()


def test_ue8m0_decodes(device: Any) -> None:
    codes = np.arange(256, dtype=np.uint8)
    expected = codes.view(ml_dtypes.float8_e8m0fnu).astype(np.float32)
    for got in (_C.decode(codes, "ue8m0_up"), device_map(device, "ue8m0_to_f32", codes, np.float32)):
        assert np.isnan(got[255]) and (got[:255] == expected[:255]).all() and got[0] == 2.0**-127


def test_ue4m3(device: Any) -> None:
    """Every code decodes to its definition; every value, middle and neighbour encodes to the nearest, ties to even."""
    codes = np.arange(128, dtype=np.uint8)
    values = ((1 + (codes & 7) / 8) * np.exp2((codes >> 3) - 7.0)).astype(np.float32)
    for got in (_C.decode(codes, "ue4m3"), device_map(device, "ue4m3_to_f32", codes, np.float32)):
        assert (got == values).all()
    middles = (values[1:] + values[:-1]) / 2
    near = [np.nextafter(middles, np.float32(to)) for to in (0, np.inf)]
    even = codes[:-1] + codes[:-1] % 2
    x = np.concatenate(
        [values, -values, *near, middles, np.float32([0, 1e-40, 2.0**-8, 481, 1e30, np.inf, np.nan])]
    )
    expected = np.concatenate([codes, codes, codes[:-1], codes[1:], even, [0, 0, 0, 127, 127, 127, 127]])
    assert (_C.encode(x, "ue4m3") == expected).all()
    assert (device_map(device, "f32_to_ue4m3", x, np.uint8) == expected).all()


def test_shapes_and_unknown_formats() -> None:
    assert _C.encode(np.zeros((2, 0, 3), np.float32), "e4m3").shape == (2, 0, 3)
    assert _C.decode(np.zeros((3, 2), np.uint8), "e2m1").shape == (3, 2)
    with pytest.raises(ValueError, match="got 'e3m4', expected e2m1"):
        _C.encode(np.zeros(1, np.float32), "e3m4")
