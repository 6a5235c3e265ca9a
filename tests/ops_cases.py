"""Running a model operation on either device with numpy arrays, and the checks that all of them get."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from deep_gemm import ops
from deep_gemm.demo.arrays import put, take

Array = npt.NDArray[Any]

DTYPES = {
    "fp32": np.float32,
    "bf16": ml_dtypes.bfloat16,
    "fp8_e4m3": ml_dtypes.float8_e4m3fn,
    "ue8m0": ml_dtypes.float8_e8m0fnu,
}
# Relative rounding of an output.
OUTPUT = {"float32": 2.0**-22, "bfloat16": 2.0**-8}


def real(rng: np.random.Generator, shape: tuple[int, ...], dtype: str = "fp32", scale: float = 1.0) -> Array:
    return (rng.standard_normal(shape) * scale).astype(np.float32).astype(DTYPES[dtype])


def poisoned(shape: tuple[int, ...], dtype: str = "fp32") -> Array:
    if dtype == "int32":
        return np.full(shape, -77, np.int32)
    return np.full(shape, np.nan, np.float32).astype(DTYPES[dtype])


def run(device: Any, name: str, outputs: dict[str, Array], **arguments: Any) -> dict[str, Array]:
    """The outputs after one call; arrays of `outputs` are passed by name and start as given."""
    tensors = {key: put(device, array.copy()) for key, array in outputs.items()}
    inputs = {
        key: put(device, value) if isinstance(value, np.ndarray) else value
        for key, value in arguments.items()
    }
    getattr(ops, name)(**tensors, **inputs, device=device if device.emulated else None)
    return {key: take(tensor) for key, tensor in tensors.items()}


def assert_close(got: Array, expected: Array, tolerance: float | Array = 0.0) -> None:
    """Within the output's rounding and an absolute tolerance (what sums in fp32 may lose)."""
    assert got.shape == expected.shape
    wide = got.astype(np.float64)
    assert np.isfinite(wide).all(), "not finite"
    excess = np.abs(wide - expected) - (np.abs(expected) * OUTPUT[got.dtype.name] + tolerance)
    assert (excess <= 0).all(), f"off by {excess.max()} more than allowed, worst at {excess.argmax()}"


def fp8_rows(x: Array) -> tuple[Array, Array]:
    """Rows as E4M3 with a power of two for 128 columns: (codes, scales)."""
    groups = x.astype(np.float32).reshape(len(x), -1, 128)
    amax = np.maximum(np.abs(groups).max(2), np.float32(1e-4))
    scales = (2.0 ** np.ceil(np.log2(amax.astype(np.float64) / 448))).astype(np.float32)
    codes = (groups / scales[:, :, None]).clip(-448, 448).reshape(x.shape)
    return codes.astype(ml_dtypes.float8_e4m3fn), scales


def same_bits(a: Array, b: Array) -> bool:
    return a.shape == b.shape and a.tobytes() == b.tobytes()
