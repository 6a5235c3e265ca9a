"""bf16 activations as sums of two E4M3 terms (spec/two_terms.h): what is exact, what is lost, and which plan takes them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from fp4_cases import (
    Case,
    activations,
    keywords,
    make_data,
    on_device,
    poisoned,
    run_contiguous,
    run_dense,
    run_gathered,
    run_masked,
    token_terms,
)

import deep_gemm
from deep_gemm import _C
from deep_gemm.demo.arrays import put, take

Array = np.ndarray[Any, np.dtype[Any]]
BF16 = ml_dtypes.bfloat16
FEW: dict[str, Any] = {"token_terms": 2, "block_m": 8, "k_blocks": 2, "stages": 3}
WIDE: dict[str, Any] = {
    "token_terms": 2, "wide": True, "block_m": 16, "warpgroups": 2, "k_blocks": 1, "stages": 4,
}  # fmt: skip
DENSE = [
    Case(64, 256, m=1, spec=FEW),
    Case(2, 32, m=1, spec=FEW),
    Case(66, 160, m=9, d="fp32", spec=FEW),
    Case(130, 288, m=21, accumulate=True, spec=FEW),
    Case(66, 288, m=9, span=(106, 135), spec=FEW),
    Case(66, 288, m=9, span=(106, 135), form="mx_e4m3", spec=FEW),
    Case(66, 288, m=40, span=(106, 135), form="mx_e4m3", d="fp32", spec=WIDE),
    Case(130, 288, m=70, accumulate=True, d="fp32", spec=WIDE),
]
SPECS: list[dict[str, Any]] = [
    {"block_m": 4, "k_blocks": 2, "stages": 3, "ctas_per_sm": 3},
    {"block_m": 4, "k_blocks": 1, "stages": 4, "warpgroups": 3},
    {"block_m": 8, "k_blocks": 2, "stages": 3, "warpgroups": 2, "load_warps": 4},
    {"block_m": 12, "k_blocks": 1, "stages": 3, "warpgroups": 4, "load_warps": 2},
    {"block_m": 24, "k_blocks": 2, "stages": 3, "warpgroups": 2},
    {"block_m": 56, "k_blocks": 1, "stages": 4, "warpgroups": 2, "load_warps": 2},
    {"wide": True, "block_m": 24, "warpgroups": 4, "k_blocks": 1, "stages": 4},
    {"wide": True, "block_m": 40, "warpgroups": 2, "k_blocks": 1, "stages": 4, "cluster": 2},
    {"wide": True, "block_m": 32, "warpgroups": 2, "k_blocks": 1, "stages": 4, "fragment_sets": 2},
    {"wide": True, "block_m": 72, "warpgroups": 2, "k_blocks": 1, "stages": 4, "fragment_sets": 2, "cluster": 2},
]  # fmt: skip


@pytest.mark.parametrize("case", DENSE, ids=str)
def test_dense(device: Any, case: Case) -> None:
    run_dense(device, replace(case, bf16_tokens=True))
    assert token_terms() == 2


@pytest.mark.parametrize("rows_of", ["both", "none"])
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_gathered(device: Any, spec: dict[str, Any], rows_of: str) -> None:
    rows = (5, 0, spec["block_m"] + 11, 1)
    fields = {**spec, "token_terms": 2, "queue": not spec.get("wide", False)}
    run_gathered(
        device, Case(200, 544, rows=rows, bf16_tokens=True, spec=fields), launches=2, rows_of=rows_of
    )


@pytest.mark.parametrize("spec", [FEW, WIDE], ids=["few", "wide"])
def test_masked_and_contiguous(device: Any, spec: dict[str, Any]) -> None:
    fields: dict[str, Any] = {"bf16_tokens": True, "spec": spec}
    run_masked(device, Case(66, 160, m=40, rows=(0, 40, 1, 9), **fields))
    run_contiguous(device, Case(66, 160, rows=(100, 128, 130), **fields))
    run_contiguous(device, Case(66, 128, rows=(3, 0, 5), **fields), psum=True)


def test_a_row_does_not_depend_on_its_batch_or_spec() -> None:
    emulator = _C.Device("emulator:sm_90a,sms=4")
    case = Case(2048, 1024, m=40, bf16_tokens=True)
    together = run_dense(emulator, case).view(np.uint16)
    assert token_terms() == 2
    for spec in SPECS:
        one = run_dense(emulator, replace(case, spec={**spec, "token_terms": 2}))
        assert (one.view(np.uint16) == together).all(), spec
    for count in (1, 8, 11):
        alone = run_dense(emulator, case, rows=slice(40 - count, 40))
        assert (alone.view(np.uint16) == together[-count:]).all(), count


def multiplied_by_one(device: Any, x: Array) -> Array:
    """x as its terms have it: the weights are the identity, the output is fp32, and nothing is added."""
    k = x.shape[1]
    codes = np.zeros((k, k), np.uint8)
    np.fill_diagonal(codes, 2)  # 1.0
    packed = codes[:, 0::2] | codes[:, 1::2] << 4
    weights = deep_gemm.pack_fp4_weights(packed, np.full((k, k // 32), 127, np.uint8))
    out = put(device, np.full(x.shape, np.nan, np.float32))
    spec = deep_gemm.Fp4GemmSpec(d="fp32", per_token=True, **FEW)
    deep_gemm.fp8_fp4_gemm_nt(put(device, x), on_device(device, weights), out, spec=spec, device=device)
    return take(out)


def test_what_the_terms_hold(device: Any) -> None:
    """Exact down to 2^-13.8 of a row's largest; below, off by less than 2^-21.8 of it, whatever the row's size."""
    rng = np.random.default_rng(0)
    x = (
        rng.uniform(1, 2, (12, 256))
        * np.exp2(-rng.integers(0, 40, (12, 256)))
        * rng.choice([-1, 1], (12, 256))
    )
    x[:, 7] = 1.99  # the largest
    sizes = np.exp2([0, 1, -1, 40, -40, 120, 126, -100, -118, -125, -126, -130])
    rows = (x * sizes[:, None]).astype(BF16)
    rows[10, 100:] = 0
    wide = rows.astype(np.float64)
    got = multiplied_by_one(device, rows).astype(np.float64)
    largest = np.abs(wide).max(axis=1, keepdims=True)
    off = np.abs(got - wide)
    held = np.abs(wide) >= largest * 2.0**-13.8
    assert held.any(axis=1).all() and (~held).any()
    assert (off[held] == 0).all()
    assert (off <= largest * 2.0**-21.8).all() and (off > 0).any()


def test_every_bf16_is_exact_beside_ones_of_its_size(device: Any) -> None:
    """All significands at all exponents that a row holds, either sign; the smallest and the largest of bf16 alone."""
    patterns = np.arange(256, dtype=np.uint16)  # a significand of 7 bits and a sign
    rows = []
    for exponent in range(114, 128):
        bits = (patterns & 0x7F) | (exponent << 7) | (patterns >> 7) << 15
        rows.append(bits.view(BF16))
    x = np.stack(rows)
    x[:, 0] = 1.75  # the largest that the scale lets a row have: 448 * 2^-8
    got = multiplied_by_one(device, x)
    assert (got == x.astype(np.float32)).all()
    tiny = np.zeros((2, 256), np.uint16)
    tiny[0] = np.arange(256) & 0x7F  # subnormal numbers alone
    tiny[1, 3] = 0x7F7F  # the largest finite one
    assert (multiplied_by_one(device, tiny.view(BF16)) == tiny.view(BF16).astype(np.float32)).all()


def test_infinity_and_nan_make_their_row_nan(device: Any) -> None:
    """Every element, also where the weight is zero; bf16 products give infinity where no zero or NaN meets it."""
    case = Case(64, 256, m=5, bf16_tokens=True, spec=FEW)
    clean = run_dense(device, case)
    data = make_data(case, (5,), 0)
    assert isinstance(data.a, np.ndarray)
    data.a[1, 17], data.a[3, 200] = np.inf, np.nan
    out = put(device, poisoned((5, 64), case))
    weights = on_device(device, data.weights)
    deep_gemm.fp8_fp4_gemm_nt(
        activations(device, data), weights, out, **keywords(device, case, data, "dense")
    )
    got = take(out)
    assert np.isnan(got[[1, 3]].astype(np.float32)).all()
    assert (got[[0, 2, 4]].view(np.uint16) == clean[[0, 2, 4]].view(np.uint16)).all()


FLASH = "fp4_gemm gathered groups=256 n=4096 k=4096 a=bf16"


def terms_of(problem: str) -> int:
    return int(deep_gemm.plan_fp4(problem, "90a:132")["spec"].to_dict()["token_terms"])


def test_which_plan_takes_them() -> None:
    """One form for all batches; never where sums are wanted in fp32, or bf16 products are asked for, or a weight has two terms."""
    tokens = (1, 16, 64, 256, 1024, 4096, 16384)
    assert [terms_of(f"{FLASH} m={6 * t}") for t in tokens] == [2] * len(tokens)
    for changed in ("bf16_products", "d=fp32", "form=nv_exact"):
        assert terms_of(f"{FLASH} m=384 {changed}") == 1
    small = [terms_of(f"fp4_gemm m={m} n=64 k=256 a=bf16") for m in (1, 8, 64, 4096)]
    assert small == [1] * 4, "another kernel before it costs more than it saves"


def test_products_of_bf16_can_be_asked_for(emulator: Any) -> None:
    case = Case(2048, 1024, m=3, bf16_tokens=True)
    device = _C.Device("emulator:sm_90a,sms=4")
    run_dense(device, case)
    assert token_terms() == 2
    run_dense(device, replace(case, bf16_products=True))
    assert token_terms() == 1
    run_dense(device, replace(case, d="fp32"))
    assert token_terms() == 1


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"token_terms": 3}, "one row or the sum of two"),
        ({"token_terms": 2}, "fp8_e4m3 under one scale of the token"),
        ({"token_terms": 2, "per_token": True, "a": "bf16"}, "bf16 tokens have no scales"),
        ({"token_terms": 2, "per_token": True, "form": "nv_exact"}, "multiply tokens of one"),
        ({"token_terms": 2, "per_token": True, "block_m": 128}, "64 with two terms"),
        ({"token_terms": 2, "per_token": True, "block_m": 6}, "with two terms half of that"),
        ({"token_terms": 2, "per_token": True, "wide": True, "block_m": 136}, "16 to 128 in steps of 8"),
    ],
    ids=str,
)
def test_what_is_no_kernel(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        _C.fp4_kernel_source(deep_gemm.Fp4GemmSpec(**fields))


def test_a_forced_spec_must_fit(emulator: Any) -> None:
    case = Case(64, 256, m=3, bf16_tokens=True, bf16_products=True, spec=FEW)
    with pytest.raises(ValueError, match="wants bf16 tokens multiplied as such"):
        run_dense(emulator, case)
