"""Packing FP4 weights on the device: bit for bit what the packer of the host makes, its report included."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import deep_gemm
from deep_gemm import _C
from deep_gemm.demo.arrays import put, take
from deep_gemm.fp4 import pack_on_device

Array = np.ndarray[Any, np.dtype[Any]]
SHAPES = [(1, 64, 256), (2, 128, 512), (1, 1, 32), (3, 40, 160), (2, 130, 288), (1, 64, 1568)]


def pack(
    device: Any, codes: Array, scales: Array, shared: Array | None, form: str | None
) -> deep_gemm.Fp4Weights:
    """With outputs that start as poison, and one byte more of them than there are."""
    shape = (codes.shape[0], codes.shape[1], codes.shape[2] * 2)

    def empty(count: int, kind: str) -> Any:
        poison = np.empty(count, kind)
        poison.view(np.uint8)[...] = 0xA5
        return put(device, poison)

    parts = [put(device, x) if x is not None else None for x in (codes, scales, shared)]
    return pack_on_device(*parts, shape, form, empty, lambda x: put(device, x), device)


def check(device: Any, codes: Array, scales: Array, shared: Array | None, form: str | None) -> None:
    expected = deep_gemm.pack_fp4_weights(codes, scales, shared, form=form)
    got = pack(device, codes, scales, shared, form)
    assert (got.form, got.split) == (expected.form, expected.split)
    assert (take(got.blobs).view(np.uint8) == np.asarray(expected.blobs).view(np.uint8)).all()
    assert (take(got.row_scales).view(np.uint32) == np.asarray(expected.row_scales).view(np.uint32)).all()
    if expected.split:
        assert (take(got.runs) == np.asarray(expected.runs)).all()
    rms = [report.pop("rms_error", 0.0) for report in (got.report, expected.report)]
    assert np.isclose(rms[0], rms[1], rtol=1e-12, atol=0)
    without = [{key: value for key, value in x.report.items() if key != "rms_error"} for x in (got, expected)]
    assert without[0] == without[1]


@pytest.mark.parametrize("form", [None, "mx_e4m3", "mx_e5m2"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("span", [(0, 1), (110, 125), (112, 141), (100, 130), (0, 255), (253, 255)], ids=str)
def test_mxfp4(device: Any, shape: tuple[int, int, int], span: tuple[int, int], form: str | None) -> None:
    experts, n, k = shape
    rng = np.random.default_rng(3)
    codes = rng.integers(0, 256, (experts, n, k // 2), np.uint8)
    codes[rng.random(codes.shape) < 0.02] = 0x80
    check(device, codes, rng.integers(*span, (experts, n, k // 32)).astype(np.uint8), None, form)


@pytest.mark.parametrize("form", ["nv_single", "nv_exact"])
@pytest.mark.parametrize("shape", [*SHAPES, (1, 1, 16), (3, 40, 176)], ids=str)
@pytest.mark.parametrize(
    "span", [(0, 1), (1, 0x7F), (0, 0x7F), (0x30, 0x31), (1, 8), (0x28, 0x60), (0x70, 0x7F)], ids=str
)
def test_nvfp4(device: Any, shape: tuple[int, int, int], span: tuple[int, int], form: str) -> None:
    experts, n, k = shape
    rng = np.random.default_rng(4)
    codes = rng.integers(0, 256, (experts, n, k // 2), np.uint8)
    scales = rng.integers(*span, (experts, n, k // 16)).astype(np.uint8)
    check(device, codes, scales, np.exp(rng.uniform(-60, 60, (experts, n))).astype(np.float32), form)


def test_groups_of_zeros_fit_anywhere(device: Any) -> None:
    """Scales far apart whose codes are zeros of either sign, beside a row of nothing else."""
    codes = np.full((1, 64, 128), 0x21, np.uint8)
    scales = np.full((1, 64, 8), 120, np.uint8)
    codes[0, 4, :16], scales[0, 4, 0] = 0x80, 0
    codes[0, 5] = 0x08
    codes[0, 6, 16:32], scales[0, 6, 1] = 0, 254
    check(device, codes, scales, None, None)
    assert not pack(device, codes, scales, None, None).split


@pytest.mark.parametrize(
    ("wide_rows", "form", "split"), [(0, "mx_e4m3", False), (1, "mx_e4m3", True), (64, "mx_e5m2", False)]
)
def test_the_smaller_form_is_chosen(device: Any, wide_rows: int, form: str, split: bool) -> None:
    codes = np.full((1, 64 * 64, 128), 0x21, np.uint8)
    scales = np.full((1, 64 * 64, 8), 120, np.uint8)
    scales[0, : wide_rows * 64 : 64, 0] = 100
    weights = pack(device, codes, scales, None, None)
    assert (weights.form, weights.split) == (form, split)
    check(device, codes, scales, None, None)


def test_a_global_scale_of_all_rows_needs_no_copy(device: Any) -> None:
    """Strides of 0, as a framework's expand() gives."""
    rng = np.random.default_rng(5)
    codes = rng.integers(0, 256, (2, 70, 32), np.uint8)
    scales = rng.integers(0x30, 0x50, (2, 70, 4)).astype(np.uint8)
    one = np.lib.stride_tricks.as_strided(np.float32([0.3]), (2, 70), (0, 0))
    if device.emulated:
        check(device, codes, scales, one, "nv_exact")
    else:
        pytest.skip("the driver's arrays here are packed; tests/op/test_fp4_torch.py has the GPU's case")


BAD_SCALES = [
    (None, 255, r"expert 1, row 65, group 3 is 255 \(NaN\), expected 0 to 254"),
    (1.0, 0x7F, r"expert 1, row 65, group 3 is 127 \(NaN\), expected 0 to 126"),
    (1.0, 0xB8, r"expert 1, row 65, group 3 is 184 \(a negative number\)"),
]


@pytest.mark.parametrize(("shared", "scale", "words"), BAD_SCALES, ids=[str(bad[1]) for bad in BAD_SCALES])
def test_the_first_bad_scale_is_named(device: Any, shared: float | None, scale: int, words: str) -> None:
    group = 32 if shared is None else 16
    codes, scales = np.zeros((2, 70, 128), np.uint8), np.full((2, 70, 256 // group), 0x38, np.uint8)
    scales[1, 65, 3], scales[1, 65, 5], scales[1, 66, 0] = scale, 0xFF, 0xFF
    globals_ = None if shared is None else np.full((2, 70), shared, np.float32)
    for packer in (deep_gemm.pack_fp4_weights, lambda *x: pack(device, *x, None)):
        with pytest.raises(ValueError, match=words):
            packer(codes, scales, globals_)


@pytest.mark.parametrize("shared", [0.0, -1.0, np.nan, 1e35])
def test_the_first_bad_global_scale_is_named(device: Any, shared: float) -> None:
    codes, scales = np.zeros((2, 70, 128), np.uint8), np.full((2, 70, 16), 0xFF, np.uint8)
    globals_ = np.ones((2, 70), np.float32)
    globals_[1, 67] = globals_[1, 69] = shared
    for packer in (deep_gemm.pack_fp4_weights, lambda *x: pack(device, *x, None)):
        with pytest.raises(ValueError, match=r"global scale of expert 1, row 67 is .*, expected 2\^-100"):
            packer(codes, scales, globals_)


def test_bad_outputs_are_refused(device: Any) -> None:
    codes, scales = put(device, np.zeros((1, 64, 64), np.uint8)), put(device, np.zeros((1, 64, 4), np.uint8))
    sizes = _C.fp4_packed_sizes(1, 64, 128, "mx_e4m3")
    assert sizes == (2 * 4224, 64)

    def call(blobs: int, row_scales: int, form: str = "mx_e4m3", codes: Any = codes) -> None:
        outputs = deep_gemm.Fp4Weights(
            put(device, np.zeros(blobs, np.int8)),
            put(device, np.zeros(row_scales, np.float32)),
            None, 1, 64, 128, form,
        )  # fmt: skip
        _C.pack_fp4_on_device(codes, scales, None, outputs, True, device=device)

    call(*sizes)
    with pytest.raises(ValueError, match="got 8447 bytes of blobs and 64 row scales, expected 8448 and 64"):
        call(sizes[0] - 1, 64)
    with pytest.raises(ValueError, match="got 8448 bytes of blobs and 63 row scales"):
        call(sizes[0], 63)
    with pytest.raises(ValueError, match="scales has shape"):
        call(*sizes, form="nv_exact")
    if device.emulated:
        with pytest.raises(ValueError, match="expected a multiple of 16; copy the tensor"):
            call(*sizes, codes=np.zeros(64 * 64 + 8, np.uint8)[8:].reshape(1, 64, 64))
