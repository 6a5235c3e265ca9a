"""Hyper-connections against float64: coefficients, mixing with the folded norm, the way back, the head."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from certificate import assert_batch_invariant
from kernel.test_norm import check_fp4_copy, fp4_copies
from ops_cases import (
    DTYPES,
    Array,
    assert_close,
    fp8_rows,
    poisoned,
    real,
    run,
    same_bits,
)
from reference import deepseek_v4 as ref

from deep_gemm import ops


@pytest.fixture
def emulator_name() -> str:
    """With SMs for the sixteen CTAs of hc_few."""
    return "emulator:sm_90a,sms=16"


def case(rows: int, h: int, d: int, dtype: str = "fp32") -> dict[str, Any]:
    rng = np.random.default_rng(d + h)
    mixes = (2 + h) * h
    return {
        "x": real(rng, (rows, h, d), dtype, 2),
        "fn": real(rng, (mixes, h * d), scale=(h * d) ** -0.5),
        "base": real(rng, (mixes,)),
        "scale": np.array([0.7, 1.3, 1.9], np.float32),
        "weight": real(rng, (d,), "bf16"),
    }


def outputs(rows: int, h: int, d: int, dtype: str = "fp32") -> dict[str, Array]:
    return {"y": poisoned((rows, d), dtype), "post": poisoned((rows, h)), "comb": poisoned((rows, h, h))}


@pytest.mark.parametrize(("h", "d"), [(4, 256), (4, 4), (2, 100), (4, 600)])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("normed", [True, False])
def test_pre(device: Any, h: int, d: int, dtype: str, normed: bool) -> None:
    c = case(3, h, d, dtype)
    if not normed:
        del c["weight"]
    out = run(device, "hc_pre", outputs(3, h, d, dtype), **c)
    for t in range(3):
        pre, post, comb = ref.hyper_connection(c["x"][t], c["fn"], c["base"], c["scale"], 20, 1e-6, 1e-6)
        u = pre @ c["x"][t].astype(np.float64)
        if normed:
            u = ref.rms_norm(u, c["weight"], 1e-6)
        assert_close(out["post"][t], post, 2e-6)
        assert_close(out["comb"][t], comb, 2e-6)
        assert_close(out["y"][t], u, 3e-6 * (1 + np.abs(u).max()))
        assert np.abs(out["comb"][t].sum(0) - 1).max() < 1e-5


def test_iterations_count(device: Any) -> None:
    c = case(1, 4, 32)
    for iterations in (1, 2, 5):
        out = run(device, "hc_pre", outputs(1, 4, 32), **c, sinkhorn_iterations=iterations)
        _, _, comb = ref.hyper_connection(c["x"][0], c["fn"], c["base"], c["scale"], iterations, 1e-6, 1e-6)
        assert_close(out["comb"][0], comb, 2e-6)


@pytest.mark.parametrize(("h", "d", "dtype"), [(4, 256, "fp32"), (4, 520, "bf16"), (2, 8, "fp32")])
def test_post(device: Any, h: int, d: int, dtype: str) -> None:
    rng = np.random.default_rng(3)
    x, y = real(rng, (3, h, d), dtype), real(rng, (3, d))
    post, comb = real(rng, (3, h)), real(rng, (3, h, h))
    out = run(device, "hc_post", {"out": poisoned((3, h, d), dtype)}, x=x, y=y, post=post, comb=comb)["out"]
    wide = [a.astype(np.float64) for a in (x, y, post, comb)]
    expected = wide[2][:, :, None] * wide[1][:, None] + np.einsum("tab,tad->tbd", wide[3], wide[0])
    assert_close(out, expected, 1e-5)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize(("h", "d"), [(4, 600), (2, 64), (4, 4608)])
def test_pre_takes_the_last_output_in(device: Any, h: int, d: int, dtype: str) -> None:
    """The same bits as hc_post and then hc_pre."""
    rng = np.random.default_rng(4)
    c, y = case(3, h, d, dtype), real(rng, (3, d), dtype)
    post, comb = real(rng, (3, h)), real(rng, (3, h, h))
    x = c.pop("x")
    after = run(device, "hc_post", {"out": poisoned(x.shape, dtype)}, x=x, y=y, post=post, comb=comb)["out"]
    expected = run(device, "hc_pre", outputs(3, h, d, dtype), x=after, **c)
    out = run(
        device, "hc_pre", {"x": x, "y": poisoned((3, d), dtype), "post": post, "comb": comb}, add=y, **c
    )
    assert same_bits(out["x"], after)
    for name in ("y", "post", "comb"):
        assert same_bits(out[name], expected[name]), name


def test_fp8_copy_is_what_quantize_makes(device: Any) -> None:
    c = case(2, 4, 1024, "bf16")
    copies = {"codes": np.zeros((2, 1024), DTYPES["fp8_e4m3"]), "scales": poisoned((2, 8))}
    out = run(device, "hc_pre", outputs(2, 4, 1024, "bf16") | copies, **c)
    codes, scales = fp8_rows(out["y"])
    assert out["codes"].tobytes() == codes.tobytes() and (out["scales"] == scales).all()


@pytest.mark.parametrize("rows", [2, 18])
@pytest.mark.parametrize("recipe", ["mxfp4", "nvfp4"])
def test_fp4_copies_are_what_quantize_makes(device: Any, recipe: str, rows: int) -> None:
    """Of one token of a cluster at a time, and of rounds of them; alone too, and beside a NaN."""
    c = case(rows, 4, 1024, "bf16")
    x = c.pop("x")
    x[1] *= 50
    if rows > 2:
        x[3] = np.nan

    def call(some: Array) -> dict[str, Array]:
        made = outputs(len(some), 4, 1024, "bf16") | fp4_copies(recipe, len(some), 1024)
        return run(device, "hc_pre", made, x=x[some], recipe=recipe, **c)

    whole = call(np.arange(rows))
    check_fp4_copy(whole, recipe)
    for name, value in call(np.array([rows - 1])).items():
        assert same_bits(np.ascontiguousarray(whole[name][-1:]), value), name


@pytest.mark.parametrize("normed", [True, False])
def test_head(device: Any, normed: bool) -> None:
    c = case(3, 4, 256)
    fn, base, scale = c["fn"][:4].copy(), c["base"][:4].copy(), c["scale"][:1].copy()
    extra = {"weight": c["weight"]} if normed else {}
    out = run(device, "hc_head", {"y": poisoned((3, 256))}, x=c["x"], fn=fn, base=base, scale=scale, **extra)[
        "y"
    ]
    for t in range(3):
        mix = fn.astype(np.float64) @ ref.rms_norm(c["x"][t].reshape(-1), None, 1e-6)
        u = (ref.sigmoid(mix * scale + base) + 1e-6) @ c["x"][t].astype(np.float64)
        if normed:
            u = ref.rms_norm(u, c["weight"], 1e-6)
        assert_close(out[t], u, 1e-5)


def test_rows_are_independent(device: Any) -> None:
    c = case(5, 4, 64)
    x = c.pop("x")
    head = {"fn": c["fn"][:4].copy(), "base": c["base"][:4].copy(), "scale": c["scale"][:1].copy()}

    def call(rows: dict[str, Array]) -> dict[str, Array]:
        count = len(rows["x"])
        out = run(device, "hc_pre", outputs(count, 4, 64), **rows, **c)
        post = run(device, "hc_post", {"out": poisoned((count, 4, 64))}, **rows, **out)
        last = run(device, "hc_head", {"y": poisoned((count, 64))}, **rows, **head)
        return {**out, **post, "head": last["y"]}

    assert_batch_invariant(call, {"x": x})


@pytest.mark.parametrize(("rows", "dtype"), [(35, "bf16"), (139, "bf16"), (35, "fp32")])
def test_many_rows_are_independent(device: Any, rows: int, dtype: str) -> None:
    """Of bf16 streams, CTAs have sixteen at a time; of others, clusters four. The last ones have fewer."""
    rng = np.random.default_rng(6)
    h, d = 4, 1024
    c = case(rows, h, d, dtype)
    add, post, comb = real(rng, (rows, d), "bf16"), real(rng, (rows, h)), real(rng, (rows, h, h))
    x = c.pop("x")
    x[2] = np.nan

    def call(some: Array) -> dict[str, Array]:
        outputs = {
            "x": x[some],
            "y": poisoned((len(some), d), "bf16"),
            "post": post[some],
            "comb": comb[some],
        }
        copies = {
            "codes": np.zeros((len(some), d), DTYPES["fp8_e4m3"]),
            "scales": poisoned((len(some), d // 128)),
        }
        return run(device, "hc_pre", outputs | copies, add=add[some], **c)

    whole = call(np.arange(rows))
    for few in ([0, rows - 1], [3, 4, 5], list(range(8, 18))):
        for name, value in call(np.array(few)).items():
            assert same_bits(np.ascontiguousarray(whole[name][few]), value), (name, few)


@pytest.mark.parametrize(
    ("d", "weight", "add", "recipe"),
    [
        (1024, "bf16", True, "fp8_128"),
        (1024, None, True, "mxfp4"),
        (1024, "fp32", False, "nvfp4"),
        (1024, None, True, "nvfp4"),
        (4096, "fp32", True, "fp8_128"),
        (4224, "bf16", True, None),  # 33 slices of 128 channels: a third for the first CTA
        (7168, "bf16", True, "nvfp4"),
        (128, None, False, None),
    ],
)
def test_few_rows_have_the_bits_of_many(
    device: Any, d: int, weight: str | None, add: bool, recipe: str | None
) -> None:
    """Up to seven rows, one launch, against twelve, two launches; a row of NaN touches no other."""
    rng = np.random.default_rng(8)
    c = case(12, 4, d, "bf16")
    del c["weight"]
    if weight:
        c["weight"] = real(rng, (d,), weight)
    taken = {"post": real(rng, (12, 4)), "comb": real(rng, (12, 4, 4)), "x": c.pop("x")}
    y = real(rng, (12, d), "bf16")
    taken["x"][1] = np.nan
    if recipe:
        c["recipe"] = recipe

    def call(some: Array) -> dict[str, Array]:
        rows = len(some)
        made = {"y": poisoned((rows, d), "bf16")} | {name: value[some] for name, value in taken.items()}
        if recipe == "fp8_128":
            made |= {
                "codes": np.zeros((rows, d), DTYPES["fp8_e4m3"]),
                "scales": poisoned((rows, d // 128)),
            }
        elif recipe:
            made |= fp4_copies(recipe, rows, d)
        return run(device, "hc_pre", made, **c, **({"add": y[some]} if add else {}))

    whole = call(np.arange(12))
    for rows in range(1, 9):
        some = (np.arange(rows) * 5 + rows) % 12
        for name, value in call(some).items():
            assert same_bits(np.ascontiguousarray(whole[name][some]), value), (name, rows)


def test_coefficients_that_no_vector_reaches(emulator: Any) -> None:
    """post and comb where no 16-byte load goes: the same bits, by the two launches."""
    rng = np.random.default_rng(9)
    c = case(2, 4, 256, "bf16")
    x, add, post, comb = c.pop("x"), real(rng, (2, 256), "bf16"), real(rng, (2, 4)), real(rng, (2, 4, 4))
    made = {"x": x, "y": poisoned((2, 256), "bf16"), "post": post, "comb": comb}
    expected = run(emulator, "hc_pre", made, add=add, **c)
    wide = np.concatenate([np.zeros(1, np.float32), post.ravel(), comb.ravel()])
    made |= {"x": x.copy(), "post": wide[1:9].reshape(2, 4), "comb": wide[9:].reshape(2, 4, 4)}
    ops.hc_pre(**made, **c, add=add, device=emulator)
    for name, value in expected.items():
        assert same_bits(made[name], value), name


def test_bad_input(emulator: Any) -> None:
    c = case(2, 4, 8)
    with pytest.raises(ValueError, match=r"fn has shape \[23, 32\], expected \[24, 32\]"):
        ops.hc_pre(**{**c, "fn": c["fn"][:23]}, **outputs(2, 4, 8), device=emulator)
    with pytest.raises(ValueError, match="x has 3 streams, expected 2 or 4"):
        ops.hc_pre(**{**c, "x": c["x"][:, :3]}, **outputs(2, 4, 8), device=emulator)
    copies = {"codes": np.zeros((2, 8), DTYPES["fp8_e4m3"]), "scales": poisoned((2, 1))}
    with pytest.raises(ValueError, match="got a fp8_128 copy of fp32"):
        ops.hc_pre(**c, **outputs(2, 4, 8), **copies, device=emulator)
    with pytest.raises(ValueError, match="got 0 sinkhorn_iterations"):
        ops.hc_pre(**c, **outputs(2, 4, 8), sinkhorn_iterations=0, device=emulator)


def test_streams_that_shared_memory_has_no_room_for() -> None:
    x, fn = np.zeros((1, 4, 256), np.float32), np.zeros((24, 1024), np.float32)
    outputs = {"y": poisoned((1, 256)), "post": poisoned((1, 4)), "comb": poisoned((1, 4, 4))}
    with pytest.raises(ValueError, match=r"got fp32 streams, .* expected at most the 101376 of"):
        ops.hc_pre(
            x,
            fn,
            np.zeros(24, np.float32),
            np.zeros(3, np.float32),
            **outputs,
            device="emulator:sm_120a,sms=8",
        )
