"""RMS norm, embedding and the broadcast to streams against float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from ops_cases import (
    DTYPES,
    Array,
    assert_batch_invariant,
    assert_close,
    fp8_rows,
    poisoned,
    real,
    run,
)
from reference import deepseek_v4 as ref
from reference.quantize import fp8_128

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


def test_zeros_and_eps(device: Any) -> None:
    x = np.zeros((1, 8), np.float32)
    assert (run(device, "rms_norm", {"y": poisoned((1, 8))}, x=x)["y"] == 0).all()
    x[:] = 1e-3
    y = run(device, "rms_norm", {"y": poisoned((1, 8))}, x=x, eps=1e-6)["y"]
    assert_close(y, np.full((1, 8), 1e-3 / np.sqrt(2e-6)), 1e-6)


def test_norm_rows_are_independent(device: Any) -> None:
    x = real(np.random.default_rng(2), (4, 260))
    x[1] = np.inf
    assert_batch_invariant(
        lambda rows: run(device, "rms_norm", {"y": poisoned((len(rows), 260))}, x=x[rows]), 4
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
    assert run(device, "expand_streams", {"x": poisoned((0, 2, 8))}, value=value[:0])["x"].size == 0


def test_bad_input(emulator: Any) -> None:
    x: Array = np.zeros((2, 8), np.float32)
    with pytest.raises(TypeError, match="y is int32, expected fp32 or bf16; cast it"):
        ops.rms_norm(x, np.zeros((2, 8), np.int32), device=emulator)
    with pytest.raises(ValueError, match="x has 6 columns, expected a positive multiple of 4"):
        ops.rms_norm(np.zeros((1, 6), np.float32), np.zeros((1, 6), np.float32), device=emulator)
    with pytest.raises(TypeError, match="x is missing"):
        ops.embed(np.zeros(2, np.int32), x, None, device=emulator)
