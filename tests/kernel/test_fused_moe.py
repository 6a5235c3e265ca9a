"""The whole mixture of experts against float64, and the certificate that a token's bits do not depend on its batch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from certificate import BATCHES, assert_batch_invariant
from fp4_cases import on_device
from reference import fp4
from reference import moe as reference

import deep_gemm
from deep_gemm import _C
from deep_gemm.demo.arrays import put, take

Array = np.ndarray[Any, np.dtype[Any]]
BF16 = ml_dtypes.bfloat16
FP8 = ml_dtypes.float8_e4m3fn


@dataclass(frozen=True)
class Case:
    tokens: int
    top_k: int
    experts: int
    hidden: int = 128
    channels: int = 128
    limit: float | None = None
    shared: bool = False
    before: bool = True  # routing weight before the down product
    skip: float = 0.0
    first_expert: int = 0
    out: str = "bf16"
    fp4: bool = False
    form: str | None = None  # of FP4 weights
    bf16: bool = False  # activations
    products: bool = False  # of bf16, never two terms
    per_token: bool = False  # FP8 scales


def fp8_weights(rng: np.random.Generator, experts: int, n: int, k: int) -> tuple[Array, Array]:
    """Small integers and powers of two: the first product is exact, whatever the order of its sums."""
    values = rng.integers(-2, 3, (experts, n, k)).astype(np.float32).astype(FP8)
    scales = np.exp2(rng.integers(-5, -2, (experts, -(-n // 128), -(-k // 128)))).astype(np.float32)
    return values, scales


def fp4_weights(rng: np.random.Generator, experts: int, n: int, k: int) -> tuple[Array, Array]:
    """Any codes, and exponents that keep the first product exact."""
    codes = rng.integers(0, 256, (experts, n, k // 2), np.uint8)
    return codes, rng.integers(123, 126, (experts, n, k // 32)).astype(np.uint8)


def nvfp4_weights(rng: np.random.Generator, experts: int, n: int, k: int, form: str) -> tuple[Array, Array]:
    """Any codes, and scales whose products one term holds exactly (1.5 is two thirds of a power of two's), or two."""
    codes = rng.integers(0, 256, (experts, n, k // 2), np.uint8)
    scales = rng.choice(
        np.uint8([0x2C, 0x34] if form == "nv_single" else [0x28, 0x30]), (experts, n, k // 16)
    )
    return codes, scales


def wide(values: Array, scales: Array) -> Array:
    if scales.dtype == np.uint8 and scales.shape[-1] * 8 == values.shape[-1]:
        return fp4.dequantise_nvfp4(values, scales, 1.0)
    if values.dtype == np.uint8:
        return fp4.dequantise(values, scales)
    by_row = np.repeat(scales.astype(np.float64), 128, axis=-2)[..., : values.shape[-2], :]
    return values.astype(np.float64) * np.repeat(by_row, 128, axis=-1)[..., : values.shape[-1]]


def activations(rng: np.random.Generator, tokens: int, hidden: int) -> Array:
    """Integers with a 7 in every 128: their scale is 1 / 64, and FP8 holds them exactly."""
    x = rng.integers(-7, 8, (tokens, hidden)).astype(np.float32)
    x[:, ::128] = 7
    return x.astype(BF16)


@dataclass
class Layer:
    case: Case
    x: Array
    ids: Array
    weights: Array
    w13: tuple[Array, Array]
    w2: tuple[Array, Array]
    shared: Array | None

    def put_weights(self, device: Any) -> tuple[Any, Any]:
        if self.case.fp4:
            nvfp4 = {} if self.case.form is None else {"global_scale": 1.0, "form": self.case.form}
            up, down = (deep_gemm.pack_fp4_weights(*w, **nvfp4) for w in (self.w13, self.w2))
            return on_device(device, up), on_device(device, down)
        up, down = (tuple(put(device, part) for part in w) for w in (self.w13, self.w2))
        return up, down

    def run(self, device: Any, rows: Any = slice(None), **changes: Any) -> Array:
        """fused_moe on some of the tokens, into NaN."""
        x, ids, weights = (np.ascontiguousarray(part[rows]) for part in (self.x, self.ids, self.weights))
        out = np.full(x.shape, np.nan, np.float32).astype(np.float32 if self.case.out == "fp32" else BF16)
        target = put(device, out)
        shape = (max(len(x), 1), self.case.top_k, self.case.experts, self.case.hidden, self.case.channels)
        workspace = deep_gemm.moe_workspace(x, *shape, fp4=self.case.fp4, bf16_activations=self.case.bf16)
        workspace[...] = 0x7F  # NaN wherever something is not written
        arguments: dict[str, Any] = {
            "workspace": put(device, workspace),
            "shared": None if self.shared is None else put(device, np.ascontiguousarray(self.shared[rows])),
            "swiglu_limit": self.case.limit,
            "first_expert": self.case.first_expert,
            "weight_before_down": self.case.before,
            "bf16_activations": self.case.bf16,
            "bf16_products": self.case.products,
            "per_token": self.case.per_token,
        }
        deep_gemm.fused_moe(
            put(device, x), put(device, ids), put(device, weights), *self.put_weights(device), target, device=device, **(arguments | changes),
        )  # fmt: skip
        return take(target)


def make(case: Case, seed: int = 0, random: bool = False) -> Layer:
    rng = np.random.default_rng(seed)
    names = case.first_expert + case.experts + 2
    ids = (
        np.stack([rng.permutation(max(names, case.top_k))[: case.top_k] for _ in range(case.tokens)])
        if case.tokens
        else np.zeros((0, case.top_k))
    )
    ids = np.where(rng.random(ids.shape) < case.skip, -1, ids).astype(np.int32)
    x = activations(rng, case.tokens, case.hidden)
    if case.form is not None:
        make_weights = partial(nvfp4_weights, form=case.form)
    else:
        make_weights = partial(fp4_weights if case.fp4 else fp8_weights)
    w13 = make_weights(rng, case.experts, 2 * case.channels, case.hidden)
    w2 = make_weights(rng, case.experts, case.hidden, case.channels)
    if random:
        x = rng.standard_normal(x.shape).astype(BF16)
    return Layer(
        case, x, ids, rng.random(ids.shape).astype(np.float32), w13, w2,
        rng.standard_normal(x.shape).astype(BF16) if case.shared else None,
    )  # fmt: skip


CASES = [
    Case(1, 1, 1),
    Case(1, 6, 8, limit=2.0, shared=True),
    Case(5, 2, 4, hidden=256, channels=144, out="fp32"),
    Case(9, 3, 4, hidden=144, channels=256, skip=0.3, before=False, shared=True),
    Case(40, 8, 12, skip=0.2, limit=1.5),
    Case(6, 2, 3, first_expert=2),
    Case(3, 2, 4, skip=1.0, shared=True),  # nothing for any expert
    Case(1, 6, 8, fp4=True, limit=2.0),
    Case(9, 3, 4, hidden=160, channels=96, fp4=True, skip=0.3, before=False, shared=True),
    Case(40, 4, 6, hidden=256, channels=160, fp4=True, skip=0.2, out="fp32"),
    Case(3, 2, 4, skip=1.0, shared=True, fp4=True),
    Case(1, 6, 8, fp4=True, form="nv_single", limit=2.0),
    Case(9, 3, 4, hidden=144, channels=112, fp4=True, form="nv_single", skip=0.3, before=False, shared=True),
    Case(40, 4, 6, hidden=256, channels=160, fp4=True, form="nv_exact", skip=0.2, out="fp32"),
    Case(1, 6, 8, fp4=True, bf16=True, limit=2.0),
    Case(9, 3, 4, hidden=160, channels=96, fp4=True, bf16=True, skip=0.3, before=False, shared=True),
    Case(40, 4, 6, hidden=256, channels=160, fp4=True, bf16=True, form="nv_exact", skip=0.2, out="fp32"),
    Case(6, 2, 3, first_expert=2, fp4=True, bf16=True),
    Case(3, 2, 4, skip=1.0, shared=True, fp4=True, bf16=True),
    Case(9, 3, 4, hidden=1024, channels=512, fp4=True, bf16=True, skip=0.3, shared=True),
    Case(9, 3, 4, hidden=1024, channels=512, fp4=True, bf16=True, products=True, skip=0.3, shared=True),
    Case(1, 6, 8, fp4=True, per_token=True, limit=2.0),
    Case(9, 3, 4, hidden=288, channels=2080, fp4=True, per_token=True, skip=0.3, before=False, shared=True),
    Case(40, 4, 6, hidden=256, channels=160, fp4=True, per_token=True, form="nv_exact", skip=0.2, out="fp32"),
    Case(3, 2, 4, skip=1.0, shared=True, fp4=True, per_token=True),
]


def check(got: Array, layer: Layer) -> None:
    """Within the roundings of each expert's output and of the sum, and a sixteenth of the former for what the second
    product's short sums cut off; everything before is exact.
    """
    case = layer.case
    w13, w2 = wide(*layer.w13), wide(*layer.w2)
    options: dict[str, Any] = {
        "limit": case.limit, "first_expert": case.first_expert, "weight_before_down": case.before,
        "quantise": reference.bf16 if case.bf16 else reference.fp8_row if case.per_token else reference.fp8,
    }  # fmt: skip
    expected = reference.fused(layer.x, layer.ids, layer.weights, w13, w2, shared=layer.shared, **options)
    magnitude = reference.fused_magnitude(layer.x, layer.ids, layer.weights, w13, w2, **options)
    step = 2.0**-8 if case.out == "bf16" else 2.0**-22
    allowed = magnitude * (2.0**-12 + 2.0**-8) + np.abs(expected) * step + 1e-6
    error = np.abs(got.astype(np.float64) - expected)
    assert (error <= allowed).all(), f"{case}: {(error / allowed).max():.2f} of what is allowed"


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("invariant", [False, True], ids=["free", "invariant"])
def test_against_float64(device: Any, case: Case, invariant: bool) -> None:
    layer = make(case)
    check(layer.run(device, invariant=invariant), layer)


def test_no_tokens(emulator: Any) -> None:
    assert make(Case(0, 2, 4)).run(emulator).shape == (0, 128)
    assert make(Case(0, 2, 4, fp4=True, bf16=True)).run(emulator).shape == (0, 128)


@pytest.mark.parametrize(
    "case", [Case(140, 1, 3), Case(140, 1, 3, fp4=True), Case(140, 1, 3, fp4=True, bf16=True)], ids=str
)
def test_all_tokens_to_one_expert(device: Any, case: Case) -> None:
    layer = make(case)
    layer.ids[...] = 1
    check(layer.run(device), layer)


def test_workspace_and_output_are_made(emulator: Any) -> None:
    layer = make(Case(4, 2, 4))
    out = deep_gemm.fused_moe(layer.x, layer.ids, layer.weights, layer.w13, layer.w2, device=emulator)
    assert out.dtype == BF16 and (out.view(np.uint16) == layer.run(emulator).view(np.uint16)).all()


@pytest.mark.parametrize(
    "case",
    [
        Case(2, 3, 6, hidden=256, channels=384, shared=True, before=False),
        Case(3, 4, 4, hidden=1152, channels=256, limit=1.0, skip=0.3, first_expert=1, out="fp32"),
        Case(2, 2, 2, hidden=2304),  # more chunks than a warp has in flight
        Case(1, 8, 9, channels=1152),
        Case(2, 3, 6, hidden=384, channels=128, shared=True, before=False, fp4=True),
        Case(3, 4, 4, hidden=1280, channels=640, limit=1.0, skip=0.3, first_expert=1, out="fp32", fp4=True),
    ],
    ids=str,
)
def test_few_pairs_have_the_bits_of_grouped_ones(
    device: Any, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = make(case, random=True)
    results = []
    fused = _C.fused_moe_into
    for grouped in (False, True):
        monkeypatch.setattr(_C, "fused_moe_into", partial(fused, grouped=grouped))
        results.append(layer.run(device, invariant=True).astype(np.float32))
    assert np.isfinite(results[0]).all() and np.abs(results[0]).max() > 0.1
    assert (results[0].view(np.uint32) == results[1].view(np.uint32)).all()


@pytest.mark.parametrize(
    ("form", "bf16"),
    [
        ("fp8", False),
        (None, False),
        ("nv_single", False),
        ("nv_exact", False),
        (None, True),
        ("nv_exact", True),
    ],
    ids=str,
)
def test_a_token_has_the_same_bits_in_any_batch(device: Any, form: str | None, bf16: bool) -> None:
    """Alone, in part of the batch, in another order, next to NaN, twice. The whole batch is grouped, a few tokens are
    not."""
    fp4 = form != "fp8"
    case = Case(45, 3, 6, hidden=256, channels=128, shared=True, before=not fp4, fp4=fp4, bf16=bf16)
    layer = make(replace(case, form=form if fp4 else None), random=True)
    whole = layer.run(device, invariant=True).view(np.uint16)
    assert (layer.run(device, invariant=True).view(np.uint16) == whole).all()
    for rows in ([44], list(range(8)), list(reversed(range(45)))):
        assert (layer.run(device, rows, invariant=True).view(np.uint16) == whole[rows]).all(), rows

    def call(rows: dict[str, Array]) -> dict[str, Array]:
        return {"y": replace(layer, **rows).run(device, invariant=True)}

    poison = replace(layer, x=layer.x.copy())
    poison.x[1::2] = np.nan
    assert np.isnan(poison.run(device, invariant=True)[1::2].astype(np.float32)).all()
    few = {name: getattr(layer, name)[:5] for name in ("x", "ids", "weights", "shared")}
    assert_batch_invariant(call, few, sizes=BATCHES if form == "fp8" else (2, 3, 5, 16))


@pytest.mark.parametrize(
    ("form", "bf16"), [(None, False), ("nv_single", False), ("nv_exact", False), (None, True)], ids=str
)
def test_many_tokens_take_the_wide_kernel(form: str | None, bf16: bool) -> None:
    """Its bits are those of the kernel for few tokens, which `invariant` chooses for any batch."""
    device = _C.Device("emulator:sm_90a,sms=4")
    case = Case(150, 2, 3, hidden=1024, channels=512, fp4=True, form=form, skip=0.2, bf16=bf16)
    layer = make(case, random=True)
    size = _C.moe_workspace_bytes(150, 2, 3, 1024, 512, True, bf16)
    memory = np.full(size + 1024, 0x5A, np.int8)
    start = -memory.ctypes.data % 128
    free = layer.run(device, workspace=memory[start : start + size])
    plan = deep_gemm.last_fp4_plan()
    assert plan is not None and plan["spec"].to_dict()["wide"]
    assert (memory[:start] == 0x5A).all() and (memory[start + size :] == 0x5A).all()
    invariant = layer.run(device, invariant=True)
    plan = deep_gemm.last_fp4_plan()
    assert plan is not None and not plan["spec"].to_dict()["wide"]
    assert (free.view(np.uint16) == invariant.view(np.uint16)).all()


def test_memory_that_may_be_shared_and_that_may_not(emulator: Any) -> None:
    """In place of x or of the shared expert's output; never in the workspace, nor over what is read meanwhile."""
    layer = make(Case(4, 2, 4, shared=True))
    expected = layer.run(emulator).view(np.uint16)
    assert layer.shared is not None
    for out, shared in ((layer.x.copy(), layer.shared), (layer.shared.copy(), None)):
        arguments = (
            out if shared is not None else layer.x,
            layer.ids,
            layer.weights,
            layer.w13,
            layer.w2,
            out,
        )
        got = deep_gemm.fused_moe(*arguments, shared=out if shared is None else shared, device=emulator)
        assert (got.view(np.uint16) == expected).all()
    memory = deep_gemm.moe_workspace(layer.x, 4, 2, 4, 128, 128)
    inside = memory[128 : 128 + 4 * 256].view(BF16).reshape(4, 128)
    wide = np.full((5, 128), 7, BF16)
    ids = wide.reshape(-1)[:16].view(np.int32).reshape(4, 2)
    for changes, text in (
        ({"x": inside}, "which overlap x,"),
        ({"out": inside}, "which overlap out,"),
        ({"shared": inside}, "which overlap shared,"),
        ({"out": wide[:4], "shared": wide[1:]}, "out is the 1024 bytes from .* which overlap shared,"),
        ({"out": wide[:4], "topk_ids": ids}, "which overlap topk_ids,"),
        ({"out": layer.w2[0].reshape(-1).view(BF16)[:512].reshape(4, 128)}, "which overlap the weights,"),
    ):
        given: dict[str, Any] = {
            "x": layer.x, "topk_ids": layer.ids, "topk_weights": layer.weights, "w13": layer.w13, "w2": layer.w2,
            "out": np.full((4, 128), 7, BF16), "workspace": memory,
        }  # fmt: skip
        with pytest.raises(ValueError, match=text):
            deep_gemm.fused_moe(**(given | changes), device=emulator)
    assert (wide == 7).all()


@pytest.mark.parametrize("invariant", [False, True])
def test_bf16_activations_are_two_terms_in_both_products(emulator: Any, invariant: bool) -> None:
    """On a GPU of few SMs, whose plan takes them: the activation's are made by the SwiGLU itself. Products of bf16 are as near."""
    case = Case(9, 3, 4, hidden=1024, channels=672, fp4=True, bf16=True, skip=0.3, shared=True)
    layer = make(case, random=True)
    got = layer.run(emulator, invariant=invariant).astype(np.float64)
    plan = deep_gemm.last_fp4_plan()
    assert plan is not None and plan["spec"].to_dict()["token_terms"] == 2
    direct = layer.run(emulator, invariant=invariant, bf16_products=True).astype(np.float64)
    plan = deep_gemm.last_fp4_plan()
    assert plan is not None and plan["spec"].to_dict()["token_terms"] == 1
    assert (got != direct).any()
    assert np.sqrt(np.mean((got - direct) ** 2) / np.mean(direct**2)) < 2.0**-8


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"bf16_products": True}, "got bf16_products without bf16_activations"),
        ({"per_token": True, "bf16_activations": True}, "got per_token with bf16_activations"),
    ],
    ids=str,
)
def test_options_that_do_not_go_together(emulator: Any, options: dict[str, bool], text: str) -> None:
    layer = make(Case(2, 2, 4, fp4=True))
    with pytest.raises(ValueError, match=text):
        layer.run(emulator, **options)
    with pytest.raises(ValueError, match="got per_token with FP8 weights"):
        make(Case(2, 2, 4)).run(emulator, per_token=True)


@pytest.mark.parametrize("seed", [1, 2])
def test_any_schedule_gives_the_same_bits(seed: int) -> None:
    layer = make(Case(20, 3, 5, limit=4.0), random=True)
    one, other = (layer.run(_C.Device(f"emulator:sm_90a,sms=4,seed={s}")) for s in (0, seed))
    assert (one.view(np.uint16) == other.view(np.uint16)).all()


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"x": np.zeros((4, 120), BF16)}, ValueError, "x has 120 columns, expected a multiple of 16"),
        ({"x": np.zeros(128, BF16)}, ValueError, "expected [T, K] and [T, k]"),
        ({"topk_ids": np.zeros((4, 2), np.float32)}, TypeError, "topk_ids is fp32, expected int32"),
        ({"topk_weights": np.zeros((4, 3), np.float32)}, ValueError, "topk_weights has shape [4, 3], expected [4, 2]"),
        ({"w13": np.zeros((4, 256, 128), FP8)}, TypeError, "expected (fp8 tensor [E, 2 I, K], fp32 scales)"),
        ({"w2": np.zeros((4, 128, 128), FP8)}, TypeError, "w2 a numpy.ndarray, expected (fp8 tensor, fp32 scales)"),
        ({"w2": (np.zeros((4, 128, 64), FP8), np.ones((4, 1, 1), np.float32))}, ValueError, "w2 has shape [4, 128, 64]"),
        ({"shared": np.zeros((4, 64), BF16)}, ValueError, "shared has shape [4, 64], expected [4, 128]"),
        ({"workspace": np.zeros(256, np.int8)}, ValueError, "workspace has 256 bytes"),
        ({"bf16_activations": True}, ValueError, "x of bf16 and FP8 weights, expected x of bf16 and FP4 weights"),
        ({"first_expert": -1}, ValueError, "first_expert is -1, expected 0 to 2147483647"),
        ({"swiglu_limit": -1.0}, ValueError, "limit is -1, expected a positive number"),
        ({"out": np.full((3, 128), 7, np.float32)}, ValueError, "out has shape [3, 128], expected [4, 128]"),
        ({"w2": (np.zeros((4, 128, 128), FP8), np.ones((4, 1, 2), np.float32))}, ValueError, "scales of b has shape"),
    ],
)  # fmt: skip
def test_bad_input(emulator: Any, changes: dict[str, Any], error: type[Exception], text: str) -> None:
    layer = make(Case(4, 2, 4))
    out = np.full((4, 128), 7, np.float32)
    arguments = {
        "x": layer.x, "topk_ids": layer.ids, "topk_weights": layer.weights, "w13": layer.w13, "w2": layer.w2, "out": out,
    }  # fmt: skip
    with pytest.raises(error) as raised:
        deep_gemm.fused_moe(**(arguments | changes), device=emulator)
    assert text in str(raised.value)
    assert (out == 7).all()
