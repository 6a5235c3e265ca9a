"""RMS norm, embedding and the broadcast to streams against float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from certificate import BATCHES, assert_batch_invariant
from ops_cases import (
    DTYPES,
    Array,
    assert_close,
    fp8_rows,
    poisoned,
    real,
    run,
)
from reference import deepseek_v4 as ref
from reference.quantize import fp8_128, mxfp4, nvfp4

from deep_gemm import ops


@pytest.mark.parametrize("shape", [(0, 8), (1, 4), (3, 512), (2, 3, 128), (2, 1028)], ids=str)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("weighted", [True, False])
def test_rms_norm(device: Any, shape: tuple[int, ...], dtype: str, weighted: bool) -> None:
    rng = np.random.default_rng(1)
    x, weight = real(rng, shape, dtype, 3), real(rng, shape[-1:], "bf16")
    extra = {"weight": weight} if weighted else {}
    y = run(device, "rms_norm", {"y": poisoned(shape, dtype)}, x=x, **extra)["y"]
    assert_close(y, ref.rms_norm(x, weight if weighted else None, 1e-6), 1e-5)


@pytest.mark.parametrize("rule", ["up", "exact"])
def test_fp8_copy_is_what_quantize_makes(device: Any, rule: str) -> None:
    rng = np.random.default_rng(8)
    x, weight = real(rng, (3, 640), "bf16", 3), real(rng, (640,), "bf16")
    x[1, :128] = 0
    codes = np.zeros((3, 640), DTYPES["fp8_e4m3"])
    out = run(
        device,
        "rms_norm",
        {"y": poisoned((3, 640), "bf16"), "codes": codes, "scales": poisoned((3, 5))},
        x=x,
        weight=weight,
        rule=rule,
    )
    expected_codes, expected_scales = (
        fp8_rows(out["y"]) if rule == "up" else fp8_128(out["y"].astype(np.float32))
    )
    assert out["codes"].tobytes() == expected_codes.tobytes()
    assert (out["scales"] == expected_scales).all()


def fp4_copies(recipe: str, rows: int, d: int) -> dict[str, Array]:
    """What a copy goes to, poisoned."""
    bytes_of = {"codes": d // 2, "scales": d // (16 if recipe == "nvfp4" else 32)}
    out: dict[str, Array] = {name: np.full((rows, n), 0x55, np.int8) for name, n in bytes_of.items()}
    return out | ({"global_scale": poisoned((rows,))} if recipe == "nvfp4" else {})


def check_fp4_copy(out: dict[str, Array], recipe: str, rule: str = "up") -> None:
    """The bits that quantize() makes of the stored rows: its reference's."""
    y = out["y"].astype(np.float32)
    want = nvfp4(y) if recipe == "nvfp4" else mxfp4(y, rule)
    for name, expected in zip(("codes", "scales"), want, strict=False):
        assert out[name].tobytes() == np.ascontiguousarray(expected).tobytes(), name
    if recipe == "nvfp4":
        assert np.array_equal(out["global_scale"], want[2], equal_nan=True)


@pytest.mark.parametrize(("recipe", "rule"), [("mxfp4", "up"), ("mxfp4", "nearest"), ("nvfp4", "up")])
@pytest.mark.parametrize("d", [128, 1152])
def test_fp4_copies_are_what_quantize_makes(device: Any, recipe: str, rule: str, d: int) -> None:
    """Rows of zeros, with a block of zeros, in place, and alone."""
    rng = np.random.default_rng(d)
    x, weight = real(rng, (4, d), "bf16", 3), real(rng, (d,), "bf16")
    x[1, :64], x[2] = 0, 0
    x[3, 7] = 1000

    def call(rows: dict[str, Array]) -> dict[str, Array]:
        count = len(rows["x"])
        return run(
            device,
            "rms_norm",
            {"y": poisoned((count, d), "bf16")} | fp4_copies(recipe, count, d),
            x=rows["x"],
            weight=weight,
            recipe=recipe,
            rule=rule,
        )

    check_fp4_copy(call({"x": x}), recipe, rule)
    assert_batch_invariant(call, {"x": x}, sizes=BATCHES if d == 128 else (2, 3, 5))


def test_zeros_and_eps(device: Any) -> None:
    x = np.zeros((1, 8), np.float32)
    assert (run(device, "rms_norm", {"y": poisoned((1, 8))}, x=x)["y"] == 0).all()
    x[:] = 1e-3
    y = run(device, "rms_norm", {"y": poisoned((1, 8))}, x=x, eps=1e-6)["y"]
    assert_close(y, np.full((1, 8), 1e-3 / np.sqrt(2e-6)), 1e-6)


def test_norm_rows_are_independent(device: Any) -> None:
    x = real(np.random.default_rng(2), (4, 260))
    assert_batch_invariant(
        lambda rows: run(device, "rms_norm", {"y": poisoned(rows["x"].shape)}, **rows), {"x": x}
    )


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_embed(device: Any, dtype: str) -> None:
    table = real(np.random.default_rng(3), (11, 516), "bf16")
    tokens = np.array([3, 10, 0, -1, 11, 3], np.int32)
    x = run(device, "embed", {"x": poisoned((6, 4, 516), dtype)}, tokens=tokens, table=table)["x"]
    known = (tokens >= 0) & (tokens < 11)
    expected = np.where(known[:, None], table[tokens * known].astype(np.float32), 0)
    assert (x.astype(np.float32) == expected[:, None]).all()


def test_expand(device: Any) -> None:
    rng = np.random.default_rng(4)
    value, old = real(rng, (3, 8)), real(rng, (3, 2, 8))
    x = run(device, "expand_streams", {"x": old}, value=value, accumulate=True)["x"]
    assert (x == old + value[:, None]).all()
    x = run(device, "expand_streams", {"x": poisoned((3, 2, 8))}, value=value)["x"]
    assert (x == value[:, None]).all()

    def call(rows: dict[str, Array]) -> dict[str, Array]:
        return run(device, "expand_streams", {"x": rows["x"]}, value=rows["value"], accumulate=True)

    assert_batch_invariant(call, {"x": old, "value": value})
    assert run(device, "expand_streams", {"x": poisoned((0, 2, 8))}, value=value[:0])["x"].size == 0


def test_bad_input(emulator: Any) -> None:
    x: Array = np.zeros((2, 8), np.float32)
    with pytest.raises(TypeError, match="y is int32, expected fp32 or bf16; cast it"):
        ops.rms_norm(x, np.zeros((2, 8), np.int32), device=emulator)
    with pytest.raises(ValueError, match="x has 6 columns, expected a positive multiple of 4"):
        ops.rms_norm(np.zeros((1, 6), np.float32), np.zeros((1, 6), np.float32), device=emulator)
    y = poisoned((2, 128), "bf16")
    for recipe, rule, message in (
        ("nvfp4", "up", "global_scale is missing"),
        ("mxfp4", "exact", "scales of mxfp4 are powers of two: up or nearest"),
    ):
        copies = fp4_copies("mxfp4", 2, 128) | (
            {"scales": np.zeros((2, 8), np.int8)} if recipe == "nvfp4" else {}
        )
        with pytest.raises((ValueError, TypeError), match=message):
            ops.rms_norm(y, y, recipe=recipe, rule=rule, **copies, device=emulator)
    with pytest.raises(ValueError, match="got a global_scale, expected none for mxfp4"):
        ops.rms_norm(
            y,
            y,
            recipe="mxfp4",
            global_scale=poisoned((2,)),
            **fp4_copies("mxfp4", 2, 128),
            device=emulator,
        )
    with pytest.raises(TypeError, match="x is missing"):
        ops.embed(np.zeros(2, np.int32), x, None, device=emulator)
