"""The GEMM cases: problems, edges first, and the data, calls and comparisons that every family shares."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
from reference import gemm as reference

import deep_gemm
from deep_gemm import _C
from deep_gemm.demo.arrays import put, strided, take

Array = npt.NDArray[Any]

OUTPUTS = {"bf16": ml_dtypes.bfloat16, "fp32": np.float32}
ALIGNMENT = 128


@dataclass(frozen=True)
class Case:
    """One problem. `rows` of the grouped forms: the rows of each group."""

    m: int
    n: int
    k: int
    ab: str = "fp8_e4m3"
    d: str = "bf16"
    scale_b: str = "per_128x128"
    accumulate: bool = False
    rows: tuple[int, ...] = ()
    scale_layout: str = "row_major"  # row_major, mn_major (TMA aligned), padded (rows further apart)
    d_padding: int = 0  # columns between rows of d
    majors: str = "kk"  # contiguous dimension of a and of b: k, or m for their rows
    spec: dict[str, Any] = field(default_factory=dict, hash=False)

    def __str__(self) -> str:
        words = [f"m={self.m}", f"n={self.n}", f"k={self.k}", self.ab, self.d]
        if self.ab == "fp8_e4m3" and self.scale_b != "per_128x128":
            words.append(self.scale_b)
        if self.accumulate:
            words.append("accumulate")
        if self.rows:
            words.append("rows=" + ",".join(map(str, self.rows)))
        if self.scale_layout != "row_major":
            words.append(self.scale_layout)
        if self.d_padding:
            words.append(f"d_padding={self.d_padding}")
        if self.majors != "kk":
            words.append(f"majors={self.majors}")
        words += [f"{name}={value}" for name, value in self.spec.items()]
        return " ".join(words)


def random_operand(
    rng: np.random.Generator, shape: tuple[int, ...], case: Case, rows_per_scale: int
) -> reference.Scaled | Array:
    """Normal values; FP8 with scales that differ by block, so that a misplaced scale shows."""
    if case.ab == "bf16":
        return rng.standard_normal(shape).astype(ml_dtypes.bfloat16)
    values = (rng.standard_normal(shape) * 100).clip(-448, 448).astype(ml_dtypes.float8_e4m3fn)
    *groups, rows, k = shape
    scale_shape = (*groups, -(-rows // rows_per_scale), -(-k // reference.SCALE_BLOCK))
    scales = np.exp2(rng.uniform(-9, -5, scale_shape)).astype(np.float32)
    return reference.Scaled(values, scales, rows_per_scale)


def lay_out(scales: Array, layout: str) -> Array:
    """The same scales at other strides."""
    if layout == "mn_major":
        return deep_gemm.get_mn_major_tma_aligned_tensor(scales)
    if layout == "padded":
        wide = np.full((*scales.shape[:-1], scales.shape[-1] + 3), np.nan, np.float32)
        wide[..., : scales.shape[-1]] = scales
        return wide[..., : scales.shape[-1]]
    return scales


def along_rows(device: Any, matrix: Array) -> Any:
    """The matrix as a tensor that is contiguous along its rows; NaN where these are padded to multiples of 16 bytes."""
    *groups, rows, k = matrix.shape
    pitch = -(-rows // 8) * 8
    stored = np.full((*groups, k, pitch), np.nan, matrix.dtype)
    stored[..., :rows] = matrix.swapaxes(-1, -2)
    return strided(put(device, stored), matrix.shape, (*[k * pitch for _ in groups], 1, pitch))


def argument(
    device: Any, operand: reference.Scaled | Array, layout: str = "row_major", major: str = "k"
) -> Any:
    """What an operation takes: a tensor, or a pair of values and scales."""
    if major == "m":
        return along_rows(device, operand)
    if isinstance(operand, reference.Scaled):
        return put(device, operand.values), put(device, lay_out(operand.scales, layout))
    return put(device, operand)


def poisoned(shape: tuple[int, ...], case: Case) -> Array:
    """An output full of NaN, `d_padding` columns wider than it looks."""
    wide = np.empty((*shape[:-1], shape[-1] + case.d_padding), OUTPUTS[case.d])
    wide.view(np.uint8)[...] = 0xFF
    return wide[..., : shape[-1]]


def forced_spec(case: Case, groups: str) -> deep_gemm.GemmSpec | None:
    if not case.spec:
        return None
    scale_b = case.scale_b if case.ab == "fp8_e4m3" else "none"
    a_major, b_major = ("mn" if major == "m" else "k" for major in case.majors)
    return deep_gemm.GemmSpec(
        ab=case.ab,
        d=case.d,
        scale_b=scale_b,
        groups=groups,
        accumulate=case.accumulate,
        a_major=a_major,
        b_major=b_major,
        **case.spec,
    )


def check_spec_ran(case: Case, groups: str, device: Any) -> None:
    """The plan that was launched is for this problem, on this device, and the forced one where there is one."""
    last = deep_gemm.last_plan()
    assert last is not None
    assert last["device"] == device.name
    assert last["spec"].groups == groups
    majors = last["spec"].a_major, last["spec"].b_major
    assert majors == tuple("mn" if major == "m" else "k" for major in case.majors)
    forced = forced_spec(case, groups)
    assert forced is None or last["spec"] == forced


def launched_by(call: Callable[[], Any]) -> Any:
    """The plan of the GEMM that a call launched, None where it launched none: a new thread has no last plan."""
    with ThreadPoolExecutor(1) as thread:
        thread.submit(call).result()
        return thread.submit(deep_gemm.last_plan).result()


def unchecked(device: Any) -> Any:
    """The device, but that an emulated one launches whatever numbers a layout holds, as a GPU does."""
    return _C.Device("emulator:sm_90a,sms=8,inputs=off") if device.emulated else device


def check_close(got: Array, expected: tuple[Array, Array], case: Case) -> None:
    """Element by element, within what rounding explains."""
    d, sum_error = expected
    error = np.abs(got.astype(np.float64) - d)
    allowed = reference.tolerance(d, sum_error, case.d)
    wrong = ~(error <= allowed)  # NaN is wrong
    if wrong.any():
        place = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise AssertionError(
            f"{case}: {int(wrong.sum())} of {wrong.size} elements are off, first {place}: got {got[place]}, expected "
            f"{d[place]} +- {allowed[place]}"
        )


def dense_operands(rng: np.random.Generator, case: Case) -> tuple[Any, Any]:
    rows_per_scale = 1 if case.scale_b == "per_row_128" else reference.SCALE_BLOCK
    a = random_operand(rng, (case.m, case.k), case, 1)
    return a, random_operand(rng, (case.n, case.k), case, rows_per_scale)


def run_dense(device: Any, case: Case, seed: int = 0) -> Array:
    """Runs and checks a dense case; returns d."""
    rng = np.random.default_rng(seed)
    a, b = dense_operands(rng, case)
    d = poisoned((case.m, case.n), case)
    c = rng.standard_normal((case.m, case.n)).astype(d.dtype) if case.accumulate else None
    if c is not None:
        d[...] = c
    out = put(device, d)
    keywords: dict[str, Any] = {"spec": forced_spec(case, "dense"), "device": device}
    if c is not None:
        keywords["c"] = out
    if case.ab == "bf16":
        left, right = argument(device, a, major=case.majors[0]), argument(device, b, major=case.majors[1])
        deep_gemm.bf16_gemm_nt(left, right, out, **keywords)
    else:
        recipe = (1, 1, 128) if case.scale_b == "per_row_128" else None
        left = argument(device, a, case.scale_layout)
        deep_gemm.fp8_gemm_nt(left, argument(device, b), out, recipe=recipe, **keywords)
    if case.m and case.n and case.k:
        check_spec_ran(case, "dense", device)
    check_close(take(out), reference.gemm(a, b, c), case)
    if case.d_padding and device.emulated:
        assert (d.base.view(np.uint8).reshape(case.m, -1)[:, d.strides[-1] * case.n :] == 0xFF).all()
    return take(out)


def group_rows(rows: tuple[int, ...]) -> tuple[Array, int]:
    """m_indices of groups with these rows, each padded to the alignment with -1, and their number."""
    parts = []
    for group, count in enumerate(rows):
        part = np.full(-(-count // ALIGNMENT) * ALIGNMENT, -1, np.int32)
        part[:count] = group
        parts.append(part)
    indices = np.concatenate(parts) if parts else np.zeros(0, np.int32)
    return indices, len(indices)


def run_contiguous(
    device: Any, case: Case, psum: bool = False, seed: int = 0, holes: Sequence[int] = ()
) -> Array:
    """`holes`: rows of no group between those of one."""
    rng = np.random.default_rng(seed)
    indices, m = group_rows(case.rows)
    indices[list(holes)] = -1
    per_row = case.scale_b == "per_row_128"
    a = random_operand(rng, (m, case.k), case, 1)
    shape = (len(case.rows), case.n, case.k)
    b = random_operand(rng, shape, case, 1 if per_row else reference.SCALE_BLOCK)
    layout = indices
    if psum:
        starts = np.cumsum([0, *(-(-count // ALIGNMENT) * ALIGNMENT for count in case.rows[:-1])])
        layout = (starts + np.array(case.rows)).astype(np.int32)
    out = put(device, poisoned((m, case.n), case))
    groups = "psum" if psum else "contiguous"
    keywords: dict[str, Any] = {"use_psum_layout": psum, "spec": forced_spec(case, groups), "device": device}
    if psum:
        keywords["expected_m_for_psum_layout"] = max(1, int(np.mean(case.rows)))
    if case.ab == "bf16":
        left, right = argument(device, a, major=case.majors[0]), argument(device, b, major=case.majors[1])
        deep_gemm.m_grouped_bf16_gemm_nt_contiguous(left, right, out, put(device, layout), **keywords)
    else:
        left, right = argument(device, a, case.scale_layout), argument(device, b)
        keywords["recipe"] = (1, 1, 128) if per_row else None
        deep_gemm.m_grouped_fp8_gemm_nt_contiguous(left, right, out, put(device, layout), **keywords)
    check_spec_ran(case, groups, device)
    got = take(out)
    group_of_row = reference.groups_of_psum(layout, m) if psum else layout
    expected = reference.contiguous(a, b, group_of_row)
    valid = group_of_row >= 0
    check_close(got[valid], (expected[0][valid], expected[1][valid]), case)
    assert (got[~valid].astype(np.float32) == 0).all(), f"{case}: rows of no group must be zeros"
    return got


def run_masked(device: Any, case: Case, seed: int = 0) -> Array:
    rng = np.random.default_rng(seed)
    num_groups = len(case.rows)
    per_row = case.scale_b == "per_row_128"
    a = random_operand(rng, (num_groups, case.m, case.k), case, 1)
    shape = (num_groups, case.n, case.k)
    b = random_operand(rng, shape, case, 1 if per_row else reference.SCALE_BLOCK)
    out = put(device, poisoned((num_groups, case.m, case.n), case))
    rows = put(device, np.array(case.rows, np.int32))
    expected_m = max(1, int(np.mean(case.rows)))
    keywords: dict[str, Any] = {"spec": forced_spec(case, "masked"), "device": device}
    if case.ab == "bf16":
        left, right = argument(device, a, major=case.majors[0]), argument(device, b, major=case.majors[1])
        deep_gemm.m_grouped_bf16_gemm_nt_masked(left, right, out, rows, expected_m, **keywords)
    else:
        left, right = argument(device, a, case.scale_layout), argument(device, b)
        keywords["recipe"] = (1, 1, 128) if per_row else None
        deep_gemm.m_grouped_fp8_gemm_nt_masked(left, right, out, rows, expected_m, **keywords)
    check_spec_ran(case, "masked", device)
    got = take(out)
    d, error = reference.masked(a, b, np.array(case.rows))
    for group, count in enumerate(case.rows):
        check_close(got[group, :count], (d[group, :count], error[group, :count]), case)
    return got
