"""The emulated GPU against the real one: the same generated kernel, the same inputs, the same bits.

Everything the PTX defines is IEEE arithmetic in a fixed order, and the emulated tensor core follows the published
model of Hopper's (aligned, truncated sums), so the outputs must agree bit for bit. There is no tolerance to derive: a
model that cuts one bit elsewhere moves a sum by 2^-13 of its largest term, not by a last place. A failure prints how
many outputs differ and by how much.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from gemm_cases import (
    Case,
    argument,
    check_close,
    forced_spec,
    poisoned,
    run_contiguous,
    run_dense,
    run_masked,
)
from reference import gemm as reference

import deep_gemm
from deep_gemm import _C
from deep_gemm.demo.arrays import put, take

Array = np.ndarray[Any, np.dtype[Any]]

SPECS: list[dict[str, Any]] = [
    {"block_m": 256, "block_n": 128, "warpgroups": 2, "stages": 2, "cluster_n": 2},
    {"block_m": 192, "block_n": 128, "warpgroups": 3, "stages": 3},  # as many as fit beside fp32 outputs
    {"block_m": 128, "block_n": 64, "warpgroups": 2, "stages": 6, "split_k": 2},
    {"swap_ab": True, "block_m": 16, "block_n": 64, "warpgroups": 2, "k_warpgroups": 2, "stages": 10},
    {
        "swap_ab": True,
        "block_m": 64,
        "block_n": 64,
        "warpgroups": 2,
        "k_warpgroups": 2,
        "split_k": 2,
        "stages": 8,
    },
]
ROWS, SWAPPED = SPECS[2], SPECS[4]
# Outputs wide enough to show every bit of the sums, K up to 4096.
DATA_CASES = [
    Case(70, 136, k, ab=ab, d=d, spec={"swap_ab": False, **spec})
    for ab in ("fp8_e4m3", "bf16")
    for d, k, spec in (("fp32", 4096, ROWS), ("fp32", 1040, SWAPPED), ("bf16", 4096, SWAPPED))
]


@pytest.fixture
def cuda() -> _C.Device:
    """The real GPU; the test is skipped where there is none."""
    try:
        device = _C.Device("cuda")
    except _C.Error as error:
        pytest.skip(f"no GPU to compare with: {str(error)[:80]}")
    if device.arch != "90a":
        pytest.skip(f"the GPU is sm_{device.arch}, the kernels are for sm_90a")
    return device


def places(values: Array) -> Array:
    """Numbers in the order of the floats: neighbours differ by one, and -0 is 0."""
    bits = values.view({2: np.int16, 4: np.int32}[values.dtype.itemsize]).astype(np.int64)
    lowest = -(1 << (8 * values.dtype.itemsize - 1))
    return np.where(bits < 0, lowest - bits, bits)


def check_same(emulated: Array, real: Array, what: str) -> None:
    """Bit for bit."""
    differing = (emulated.view(np.uint8) != real.view(np.uint8)).reshape(emulated.size, -1).any(axis=1)
    far = np.abs(places(emulated) - places(real)).reshape(-1)
    count = int(differing.sum())
    print(f"{what}: {count} of {emulated.size} outputs differ, by {int(far.max(initial=0))} places at most")
    if count:
        i = int(np.argmax(differing))
        raise AssertionError(
            f"{what}: {count} of {emulated.size} outputs differ, {int((far > 2).sum())} of them by more than 2 places, "
            f"{int(far.max())} at most; the first is number {i}: emulated {emulated.reshape(-1)[i]!r}, real "
            f"{real.reshape(-1)[i]!r}"
        )


# ---- Data that reaches the corners of a format


def wide_fp8(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Any E4M3 number, every code as likely: exponents from -9 to 8."""
    codes = rng.integers(0, 254, shape, np.uint8)
    return np.where(codes < 127, codes, codes + 1).astype(np.uint8).view(ml_dtypes.float8_e4m3fn)


def subnormal_fp8(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Mostly subnormal E4M3, zeros and the smallest normal numbers among them."""
    codes = rng.integers(0, 10, shape, np.uint8) | rng.integers(0, 2, shape, np.uint8) << 7
    return codes.astype(np.uint8).view(ml_dtypes.float8_e4m3fn)


def wide_bf16(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Magnitudes over 2^40: most terms of a sum lie below the last bit of the largest."""
    signs = rng.choice([-1.0, 1.0], shape)
    return (signs * np.exp2(rng.uniform(-20, 20, shape))).astype(ml_dtypes.bfloat16)


def subnormal_bf16(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Subnormal BF16 in every other column, numbers near 2^100 in the rest: products are normal fp32 numbers."""
    small = rng.integers(0, 128, shape).astype(np.uint16) | rng.integers(0, 2, shape).astype(np.uint16) << 15
    large = (rng.standard_normal(shape) * 2.0**100).astype(ml_dtypes.bfloat16)
    return np.where(np.arange(shape[-1]) % 2 == 0, small.astype(np.uint16).view(ml_dtypes.bfloat16), large)


def operands(case: Case, kind: str) -> tuple[Any, Any]:
    rng = np.random.default_rng(5)
    if case.ab == "bf16":
        a, b = (
            (wide_bf16 if kind == "wide" else subnormal_bf16)(rng, (rows, case.k))
            for rows in (case.m, case.n)
        )
        # A column is subnormal in one operand at most.
        return a, (np.roll(b, 1, axis=1) if kind == "subnormal" else b)
    make = wide_fp8 if kind == "wide" else subnormal_fp8
    blocks = -(-case.k // reference.SCALE_BLOCK)
    pair = []
    for rows, rows_per_scale in ((case.m, 1), (case.n, reference.SCALE_BLOCK)):
        exponents = rng.uniform(-20, 20, (-(-rows // rows_per_scale), blocks))
        scales = np.exp2(exponents).astype(np.float32)
        pair.append(reference.Scaled(make(rng, (rows, case.k)), scales, rows_per_scale))
    return pair[0], pair[1]


def run_data(device: Any, case: Case, kind: str) -> Array:
    """D of this kind of data on a device, checked against float64."""
    a, b = operands(case, kind)
    out = put(device, poisoned((case.m, case.n), case))
    operation = deep_gemm.bf16_gemm_nt if case.ab == "bf16" else deep_gemm.fp8_gemm_nt
    operation(argument(device, a), argument(device, b), out, spec=forced_spec(case, "dense"), device=device)
    got = take(out)
    check_close(got, reference.gemm(a, b), case)
    return got


@pytest.mark.parametrize("kind", ["wide", "subnormal"])
@pytest.mark.parametrize("case", DATA_CASES, ids=str)
def test_corners_against_float64(emulator: _C.Device, case: Case, kind: str) -> None:
    got = run_data(emulator, case, kind)
    assert (got != 0).mean() > 0.9, "the data must not vanish"


@pytest.mark.parametrize("kind", ["wide", "subnormal"])
@pytest.mark.parametrize("case", DATA_CASES, ids=str)
def test_corners(emulator: _C.Device, cuda: _C.Device, case: Case, kind: str) -> None:
    check_same(run_data(emulator, case, kind), run_data(cuda, case, kind), f"{case} {kind}")


@pytest.mark.parametrize("ab", ["fp8_e4m3", "bf16"])
@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: " ".join(f"{k}={v}" for k, v in spec.items()))
def test_dense(emulator: _C.Device, cuda: _C.Device, spec: dict[str, Any], ab: str) -> None:
    case = Case(150, 200, 1040, ab=ab, spec={"swap_ab": False, **spec})
    for each in (case, replace(case, k=4096, d="fp32")):
        check_same(run_dense(emulator, each), run_dense(cuda, each), str(each))


# One of each form, operand layout and epilogue that the specs above leave out; the plan chooses their kernels.
FORMS = {
    "row scales": (run_dense, Case(150, 200, 640, d="fp32", scale_b="per_row_128")),
    "transposed scales": (run_dense, Case(150, 200, 640, scale_layout="mn_major")),
    "accumulation": (run_dense, Case(150, 200, 640, d="fp32", accumulate=True)),
    "accumulation in bf16": (run_dense, Case(150, 200, 640, ab="bf16", accumulate=True)),
    "rows of d that TMA cannot store": (
        run_dense,
        Case(150, 131, 640, d_padding=3, spec={"swap_ab": False, "block_m": 64, "block_n": 64, "warpgroups": 1, "stages": 2, "split_k": 2}),
    ),
    "operands along their rows": (run_dense, Case(152, 200, 640, ab="bf16", majors="mm")),
    "one along its rows": (run_dense, Case(152, 200, 640, ab="bf16", d="fp32", majors="km")),
    "clusters along m": (
        run_dense,
        Case(300, 200, 640, spec={"block_m": 128, "block_n": 128, "warpgroups": 2, "stages": 3, "cluster_m": 2}),
    ),
    "prefix sums": (partial(run_contiguous, psum=True), Case(0, 136, 640, rows=(100, 0, 128, 130), spec=SPECS[1])),
    "prefix sums of bf16": (
        partial(run_contiguous, psum=True),
        Case(0, 136, 320, ab="bf16", d="fp32", rows=(100, 128, 5)),
    ),
    "contiguous bf16": (run_contiguous, Case(0, 136, 320, ab="bf16", rows=(100, 128, 130), spec=SPECS[1])),
    "contiguous with row scales": (run_contiguous, Case(0, 136, 640, scale_b="per_row_128", rows=(100, 128, 7))),
    "masked bf16": (run_masked, Case(70, 136, 320, ab="bf16", d="fp32", rows=(70, 70, 70))),
    "masked with row scales": (run_masked, Case(70, 136, 640, scale_b="per_row_128", rows=(70, 70, 70))),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_forms(emulator: _C.Device, cuda: _C.Device, form: str) -> None:
    run, case = FORMS[form]
    check_same(run(emulator, case), run(cuda, case), f"{form}: {case}")


@pytest.mark.parametrize("d", ["bf16", "fp32"])
def test_grouped(emulator: _C.Device, cuda: _C.Device, d: str) -> None:
    contiguous = Case(0, 136, 640, rows=(100, 128, 130), d=d)
    check_same(run_contiguous(emulator, contiguous), run_contiguous(cuda, contiguous), str(contiguous))
    masked = Case(70, 136, 640, rows=(70, 70, 70), d=d)
    check_same(run_masked(emulator, masked), run_masked(cuda, masked), str(masked))


def test_a_difference_is_counted() -> None:
    same = np.array([1.0, -0.0, 2.0], np.float32)
    check_same(same, same.copy(), "the same")
    other = same.copy()
    other[2] = np.nextafter(other[2], np.float32(3))
    with pytest.raises(
        AssertionError, match="1 of 3 outputs differ, 0 of them by more than 2 places, 1 at most"
    ):
        check_same(same, other, "another")
    assert list(places(np.array([0.0, -0.0, 1e-45, -1e-45], np.float32))) == [0, 0, 1, -1]
