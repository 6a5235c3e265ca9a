"""WgmmaRs: every shape and format that ptx/wgmma_rs_shapes.h has, A in registers as its comment says they hold it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

Array = np.ndarray[Any, np.dtype[Any]]
HEADER = Path(__file__).parents[2] / "deep_gemm_include/deep_gemm/ptx/wgmma_rs_shapes.h"
SHAPES = [(name, int(n)) for name, n in re.findall(r"WgmmaRs<Format::(\w+), (\d+)>", HEADER.read_text())]
DTYPES = {"fp8_e4m3": ml_dtypes.float8_e4m3fn, "fp8_e5m2": ml_dtypes.float8_e5m2}
STEPS, K = 4, 128

BODY = """
const u32 tile = dynamic_smem(), thread = threadIdx.x;
for (u32 i = thread; i < {n} * 8; i += 128)  // chunk i % 8 of row i / 8, swizzled
    st_shared_v4_u32(tile + i / 8 * 128 + (i % 8 ^ i / 8 % 8) * 16, ld_global_v4_u32(p.b + i * 16));
fence_proxy_async();
sync_threads();
u32 a[16];
for (u32 i = 0; i < 16; ++i) a[i] = p.a[thread * 16 + i];
wgmma_keep(a);
float d[{n} / 2];
for (u32 i = 0; i < {n} / 2; ++i) d[i] = p.out[thread * ({n} / 2) + i];
wgmma_keep(d);
wgmma_fence();
for (u32 step = 0; step < 4; ++step)
    WgmmaRs<Format::{format}, {n}>::mma(d, a + 4 * step, wgmma_descriptor(tile) + 2 * step, step > 0 || {accumulate});
wgmma_commit();
wgmma_wait<0>();
wgmma_keep(d);
for (u32 i = 0; i < {n} / 2; ++i) p.out[thread * ({n} / 2) + i] = d[i];
"""


def fragments_of(a: Array) -> Array:
    """[64, 128] bytes -> [128 threads, 4 steps * 4 registers] words: row 16 w + l / 4 + 8 (i % 2), k 16 (i / 2) + 4 (l % 4)."""
    # [w, upper row, l / 4, step, i / 2, l % 4, byte] -> [w, l / 4, l % 4, step, i / 2, upper row, byte]
    tiles = a.reshape(4, 2, 8, STEPS, 2, 4, 4).transpose(0, 2, 5, 3, 4, 1, 6)
    return np.ascontiguousarray(tiles).view(np.uint32).reshape(128, 16)


def accumulators_of(d: Array) -> Array:
    """[64, n] -> [128 threads, n / 2]: accumulator 4 j + 2 r + b is row 16 w + l / 4 + 8 r, column 8 j + 2 (l % 4) + b."""
    n = d.shape[1]
    tiles = d.reshape(4, 2, 8, n // 8, 4, 2).transpose(0, 2, 4, 3, 1, 5)
    return np.ascontiguousarray(tiles).reshape(128, n // 2)


@pytest.mark.parametrize("accumulate", [0, 1])
@pytest.mark.parametrize(("format", "n"), SHAPES, ids=lambda value: str(value))
def test_every_shape(run: Any, rng: np.random.Generator, format: str, n: int, accumulate: int) -> None:
    """Small integers, exact in the short accumulator. What was in the registers counts only where it is asked to."""
    a = rng.integers(-3, 4, (64, K)).astype(np.float32).astype(DTYPES[format])
    b = rng.integers(-3, 4, (n, K)).astype(np.float32).astype(ml_dtypes.float8_e4m3fn)
    before = rng.integers(-100, 100, (64, n)).astype(np.float32)
    out = accumulators_of(before).copy()
    run(
        BODY.format(n=n, format=format, accumulate=accumulate),
        {"a": fragments_of(a.view(np.uint8)), "b": b.view(np.uint8), "out": out},
        block=128, smem_bytes=n * 128, prelude="#include <deep_gemm/ptx/global.h>\n#include <deep_gemm/ptx/wgmma_rs_shapes.h>",
    )  # fmt: skip
    product = a.astype(np.float64) @ b.astype(np.float64).T + before * accumulate
    np.testing.assert_array_equal(out, accumulators_of(product).astype(np.float32))


def test_there_are_shapes() -> None:
    assert {format for format, _ in SHAPES} == set(DTYPES) and {8, 16, 128} <= {n for _, n in SHAPES}
