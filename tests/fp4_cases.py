"""FP8 x FP4 cases: problems, data, calls and comparisons that the kernel tests and the injected bugs share."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import ml_dtypes
import numpy as np
from reference import fp4
from reference import gemm as reference

import deep_gemm
from deep_gemm.demo.arrays import put, strided, take

Array = np.ndarray
OUTPUTS = {"bf16": ml_dtypes.bfloat16, "fp32": np.float32}
ALIGNMENT = 128


@dataclass(frozen=True)
class Case:
    """One problem. `rows`: tokens of each expert; `span`: lowest and beyond the highest scale byte."""

    n: int
    k: int
    m: int = 0  # dense: tokens; masked: room of a group
    rows: tuple[int, ...] = ()
    d: str = "bf16"
    accumulate: bool = False
    span: tuple[int, int] | None = None  # by default (116, 128) of UE8M0, (0x28, 0x58) of E4M3
    form: str | None = None
    per_token: bool = False  # one activation scale for each token
    by_32: bool = False  # one for each 32 of K, not 128
    bf16_tokens: bool = False  # activations without scales
    bf16_products: bool = False  # never as two terms
    fp32_sums: bool = False  # the device adds as CUDA cores do, not as tensor cores
    fast: bool = False  # fast_accumulation
    spec: dict[str, Any] = field(default_factory=dict, hash=False)

    def __str__(self) -> str:
        words = [f"n={self.n}", f"k={self.k}"]
        words += [f"{name}={getattr(self, name)}" for name in ("m", "rows", "form") if getattr(self, name)]
        words += [
            name
            for name in (
                "accumulate",
                "per_token",
                "by_32",
                "bf16_tokens",
                "bf16_products",
                "fp32_sums",
                "fast",
            )
            if getattr(self, name)
        ]
        if self.d != "bf16":
            words.append(self.d)
        if self.span is not None:
            words.append(f"span={self.span}")
        words += [f"{name}={value}" for name, value in self.spec.items()]
        return " ".join(words)


@dataclass
class Data:
    """The arrays of a case and what they stand for."""

    weights: deep_gemm.Fp4Weights  # in host memory
    matrices: Array  # float64 [experts, n, k]
    a: reference.Scaled | Array

    @property
    def rows(self) -> Array:
        return reference.dense_operand(self.a)


def make_weights(case: Case, rng: np.random.Generator, experts: int) -> tuple[deep_gemm.Fp4Weights, Array]:
    """Packed, and what they multiply as float64 [experts, n, k]. NVFP4 has a global scale for each expert."""
    codes = rng.integers(0, 256, (experts, case.n, case.k // 2), np.uint8)
    if case.form is None or case.form.startswith("mx"):
        scales = rng.integers(*(case.span or (116, 128)), (experts, case.n, case.k // 32)).astype(np.uint8)
        packed = deep_gemm.pack_fp4_weights(codes, scales, form=case.form)
        return packed, fp4.dequantise(codes, scales)
    scales = rng.integers(*(case.span or (0x28, 0x58)), (experts, case.n, case.k // 16)).astype(np.uint8)
    shared = np.exp2(rng.uniform(-6, 2, experts)).astype(np.float32)
    packed = deep_gemm.pack_fp4_weights(codes, scales, shared, form=case.form)
    return packed, fp4.nvfp4_of(case.form, codes, scales, shared)


def make_data(case: Case, a_shape: tuple[int, ...], seed: int = 0) -> Data:
    rng = np.random.default_rng(seed)
    experts = max(1, len(case.rows))
    weights, matrices = make_weights(case, rng, experts)
    values = (rng.standard_normal((*a_shape, case.k)) * 100).clip(-448, 448).astype(ml_dtypes.float8_e4m3fn)
    if case.bf16_tokens:
        return Data(weights, matrices, rng.standard_normal((*a_shape, case.k)).astype(ml_dtypes.bfloat16))
    block = 32 if case.by_32 else 128
    columns = -(-case.k // block)
    a_scales = np.exp2(rng.uniform(-9, -5, (*a_shape, columns))).astype(np.float32)
    if case.per_token:
        a_scales = np.lib.stride_tricks.as_strided(
            np.ascontiguousarray(a_scales[..., 0]),
            a_scales.shape,
            (*(4 * int(np.prod(a_shape[i + 1 :])) for i in range(len(a_shape))), 0),
        )
    return Data(weights, matrices, reference.Scaled(values, a_scales, 1, block))


def on_device(device: Any, weights: deep_gemm.Fp4Weights) -> deep_gemm.Fp4Weights:
    runs = None if weights.runs is None else put(device, weights.runs)
    return weights.with_tensors(put(device, weights.blobs), put(device, weights.row_scales), runs)


def poisoned(shape: tuple[int, ...], case: Case) -> Array:
    d = np.empty(shape, OUTPUTS[case.d])
    d.view(np.uint8)[...] = 0xFF
    return d


def forced_spec(case: Case, data: Data, groups: str) -> deep_gemm.Fp4GemmSpec | None:
    if not case.spec:
        return None
    fixed = {
        "form": data.weights.form,
        "split": data.weights.split,
        "d": case.d,
        "accumulate": case.accumulate,
        "per_token": case.per_token,
        "by_32": case.by_32,
        "a": "bf16" if case.bf16_tokens else "fp8_e4m3",
    }
    if case.spec.get("token_terms") == 2:
        fixed |= {"per_token": True, "a": "fp8_e4m3"}
    return deep_gemm.Fp4GemmSpec(**fixed, groups=groups, **case.spec)


def check(got: Array, left: Array, right: Array, case: Case, c: Array | None = None) -> None:
    """Element by element: weights are exact, so that only the sums round."""
    product, magnitude = left @ right.T, np.abs(left) @ np.abs(right).T
    error = magnitude * 2.0**-19  # of sums in fp32
    terms = 2 if case.form == "nv_exact" else 1
    if case.by_32:  # each group of 32 has sums of its own
        group = np.arange(left.shape[1]) // 32 % 4
        error += sum(fp4.accumulation_bound(left * (group == g), right, terms) for g in range(4))
    elif case.bf16_tokens and token_terms() == 2:
        error += fp4.two_term_bound(left, right)
    elif not (case.fp32_sums or case.bf16_tokens):
        error += fp4.accumulation_bound(left, right, terms, promoted=not case.fast)
    if c is not None:
        product = product + c.astype(np.float64)
        error += np.abs(c.astype(np.float64)) * 2.0**-19
    allowed = reference.tolerance(product, error, case.d)
    wrong = ~(np.abs(got.astype(np.float64) - product) <= allowed)  # NaN is wrong
    if wrong.any():
        place = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise AssertionError(
            f"{case}: {int(wrong.sum())} of {wrong.size} elements are off, first {place}: got {got[place]}, expected "
            f"{product[place]} +- {allowed[place]}"
        )


def token_terms() -> int:
    """Of a token in the last launch."""
    plan = deep_gemm.last_fp4_plan()
    assert plan is not None
    return int(plan["spec"].to_dict()["token_terms"])


def keywords(device: Any, case: Case, data: Data, groups: str) -> dict[str, Any]:
    return {
        "spec": forced_spec(case, data, groups),
        "device": device,
        "fast_accumulation": case.fast,
        "bf16_products": case.bf16_products,
    }


def activations(device: Any, data: Data) -> Any:
    if not isinstance(data.a, reference.Scaled):
        return put(device, data.a)
    scales = data.a.scales
    if scales.strides[-1] == 0:  # one for each token, seen as one for each block of K
        packed = put(device, np.ascontiguousarray(scales[..., 0]))
        strides = [stride // scales.itemsize for stride in scales.strides]
        return put(device, data.a.values), strided(packed, scales.shape, tuple(strides))
    return put(device, data.a.values), put(device, scales)


def run_dense(device: Any, case: Case, seed: int = 0, rows: slice = slice(None)) -> Array:
    """`rows`: of the tokens, only these are there."""
    data = make_data(case, (case.m,), seed)
    if isinstance(data.a, reference.Scaled):
        data.a = replace(data.a, values=np.ascontiguousarray(data.a.values[rows]), scales=data.a.scales[rows])
    else:
        data.a = np.ascontiguousarray(data.a[rows])
    d = poisoned((len(data.rows), case.n), case)
    c = None
    if case.accumulate:
        c = np.random.default_rng(seed).standard_normal(d.shape).astype(d.dtype)
        d[...] = c
    out = put(device, d)
    options = keywords(device, case, data, "dense") | ({"c": out} if case.accumulate else {})
    deep_gemm.fp8_fp4_gemm_nt(activations(device, data), on_device(device, data.weights), out, **options)
    check(take(out), data.rows, data.matrices[0], case, c)
    return take(out)


def run_masked(device: Any, case: Case, seed: int = 0, counts: tuple[int, ...] | None = None) -> Array:
    """`counts`: what the device is told instead of the true rows."""
    data = make_data(case, (len(case.rows), case.m), seed)
    out = put(device, poisoned((len(case.rows), case.m, case.n), case))
    deep_gemm.m_grouped_fp8_fp4_gemm_nt_masked(
        activations(device, data),
        on_device(device, data.weights),
        out,
        put(device, np.array(counts or case.rows, np.int32)),
        max(1, int(np.mean(case.rows))),
        **keywords(device, case, data, "masked"),
    )
    got = take(out)
    for group, count in enumerate(case.rows):
        check(got[group, :count], data.rows[group, :count], data.matrices[group], case)
        assert (got[group, count:].view(np.uint8) == 0xFF).all(), (
            f"{case}: rows beyond a group are not written"
        )
    return got


def run_contiguous(
    device: Any, case: Case, psum: bool = False, seed: int = 0, no_group: int = -1, beyond: int = 0
) -> Array:
    """`no_group`: the id of rows of no group; `beyond`: more rows than there are that the last group's end claims."""
    starts = np.cumsum([0, *(-(-count // ALIGNMENT) * ALIGNMENT for count in case.rows)])
    m = int(starts[-1])
    group_of_row = np.full(m, -1, np.int32)
    for group, count in enumerate(case.rows):
        group_of_row[starts[group] : starts[group] + count] = group
    layout = (starts[:-1] + np.array(case.rows)).astype(np.int32)
    layout[-1] += beyond
    if not psum:
        layout = np.where(group_of_row < 0, no_group, group_of_row).astype(np.int32)
    data = make_data(case, (m,), seed)
    out = put(device, poisoned((m, case.n), case))
    deep_gemm.m_grouped_fp8_fp4_gemm_nt_contiguous(
        activations(device, data),
        on_device(device, data.weights),
        out,
        put(device, layout),
        use_psum_layout=psum,
        **keywords(device, case, data, "psum" if psum else "contiguous"),
    )
    got = take(out)
    for group in range(len(case.rows)):
        mine = group_of_row == group
        check(got[mine], data.rows[mine], data.matrices[group], case)
    assert (got[group_of_row < 0].astype(np.float32) == 0).all(), f"{case}: rows of no group must be zeros"
    return got


def run_gathered(device: Any, case: Case, seed: int = 0, launches: int = 1, rows_of: str = "both") -> Array:
    """Experts with tokens in any order, tokens read and results written at random rows."""
    rng = np.random.default_rng(seed)
    slots = sum(case.rows)
    num_a, num_d = max(1, slots // 2 + 1), slots + 3
    a_rows = rng.integers(0, num_a, slots).astype(np.int32)
    d_rows = rng.permutation(num_d)[:slots].astype(np.int32)
    if rows_of == "none":
        num_a, num_d, a_rows = slots, slots, np.arange(slots, dtype=np.int32)
        d_rows = a_rows
    data = make_data(case, (num_a,), seed)
    entries = np.full((len(case.rows), 4), -7, np.int32)
    active = rng.permutation([expert for expert, count in enumerate(case.rows) if count > 0])
    first = 0
    for i, expert in enumerate(active):
        entries[i, :3] = expert, first, case.rows[expert]
        first += case.rows[expert]
    head = put(device, np.array([len(active), 0, 0, 0], np.int32))
    out = put(device, poisoned((num_d, case.n), case))
    index = {} if rows_of == "none" else {"a_rows": put(device, a_rows), "d_rows": put(device, d_rows)}
    left, weights, listed = activations(device, data), on_device(device, data.weights), put(device, entries)
    for _ in range(launches):
        deep_gemm.m_grouped_fp8_fp4_gemm_nt_gathered(
            left, weights, out, listed, head, **index, **keywords(device, case, data, "gathered")
        )
        assert (take(head) == [len(active), 0, 0, 0]).all(), "the counters are left at zero"
    got = take(out)
    for i in range(len(active)):
        expert, start, count = (int(x) for x in entries[i, :3])
        mine = slice(start, start + count)
        check(got[d_rows[mine]], data.rows[a_rows[mine]], data.matrices[expert], case)
    others = np.setdiff1d(np.arange(num_d), d_rows)
    assert (got[others].view(np.uint8) == 0xFF).all(), f"{case}: rows of no slot are not written"
    return got
