"""The few operations that numpy and PyTorch spell differently, so that each helper is written once.

A helper gets an array of either kind and returns the same kind, on the same device. PyTorch is imported only
when one of its tensors arrives. numpy's narrow types come from ml_dtypes.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import ml_dtypes
import numpy as np

Array = Any  # numpy.ndarray or torch.Tensor

_NUMPY_TYPES: dict[str, Any] = {
    "fp32": np.float32,
    "fp16": np.float16,
    "bf16": ml_dtypes.bfloat16,
    "fp8_e4m3": ml_dtypes.float8_e4m3fn,
    "int32": np.int32,
    "int8": np.int8,
    "uint8": np.uint8,
}
_TORCH_NAMES = {
    "fp32": "float32",
    "fp16": "float16",
    "bf16": "bfloat16",
    "fp8_e4m3": "float8_e4m3fn",
    "int32": "int32",
    "int8": "int8",
    "uint8": "uint8",
}


def is_torch(x: Array) -> bool:
    return type(x).__module__.partition(".")[0] == "torch"


def on_gpu(x: Array) -> bool:
    return is_torch(x) and bool(x.is_cuda)


def require_array(x: Array, function: str) -> None:
    if not (hasattr(x, "shape") and hasattr(x, "dtype")):
        raise TypeError(
            f"{function}: got a {type(x).__name__}, expected a numpy array or a PyTorch tensor; "
            "numpy.asarray(x, numpy.float32) makes one"
        )


def torch_for(function: str) -> Any:
    """PyTorch, which `function` cannot do without."""
    try:
        import torch
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{function}: got no PyTorch, expected it with a GPU; pip install torch", name="torch"
        ) from error
    return torch


def dtype(x: Array, name: str) -> Any:
    """The type called `name` ('fp32', 'fp8_e4m3', ...) in the library of `x`."""
    if is_torch(x):
        import torch

        return getattr(torch, _TORCH_NAMES[name])
    return np.dtype(_NUMPY_TYPES[name])


def has_type(x: Array, name: str) -> bool:
    return bool(x.dtype == dtype(x, name))


def cast(x: Array, name: str) -> Array:
    """Converts values; rounds to nearest even where the type is narrower."""
    return x.to(dtype(x, name)) if is_torch(x) else x.astype(dtype(x, name))


def bits(x: Array, name: str) -> Array:
    """Reinterprets the bytes."""
    wanted = dtype(x, name)
    if is_torch(x) and x.numel() == 0:  # whose view() looks at strides that an empty tensor has no use for
        last = x.shape[-1] * x.element_size() // wanted.itemsize
        return x.new_empty((*x.shape[:-1], last), dtype=wanted)
    return x.view(wanted)


def zeros(like: Array, shape: Sequence[int], name: str) -> Array:
    if is_torch(like):
        return like.new_zeros(tuple(shape), dtype=dtype(like, name))
    return np.zeros(tuple(shape), dtype=dtype(like, name))


def amax(x: Array, axes: tuple[int, ...], keepdims: bool = False) -> Array:
    return x.amax(dim=axes, keepdim=keepdims) if is_torch(x) else x.max(axis=axes, keepdims=keepdims)


def clamp(x: Array, low: float, high: float | None = None) -> Array:
    return x.clamp(low, high) if is_torch(x) else np.clip(x, low, high)


def divided(x: Array, divisor: float) -> Array:
    """x / divisor, rounded once: PyTorch on a GPU multiplies with the reciprocal where the divisor is a number."""
    return x / x.new_full((), divisor) if is_torch(x) else x / np.float32(divisor)


def contiguous(x: Array) -> Array:
    return x.contiguous() if is_torch(x) else np.ascontiguousarray(x)


def strides(x: Array) -> tuple[int, ...]:
    """In elements."""
    return tuple(x.stride()) if is_torch(x) else tuple(step // x.itemsize for step in x.strides)


def on_stream(like: Array, stream: int | None) -> AbstractContextManager[Any]:
    """Where `like` is of PyTorch: what is allocated within belongs to `stream` (None: the current one).

    A temporary that another stream's kernels use, allocated outside, would return to the current stream's pool while
    they run.
    """
    if not hasattr(stream, "__index__") or not on_gpu(like):
        return nullcontext()  # also for what is no stream: the operation refuses it
    import torch

    context: AbstractContextManager[Any] = torch.cuda.stream(
        torch.cuda.ExternalStream(stream, device=like.device)
    )
    return context


def empty_strided(like: Array, shape: Sequence[int], steps: Sequence[int], name: str) -> Array:
    """An uninitialised array with these strides, in elements."""
    if is_torch(like):
        import torch

        return torch.empty_strided(tuple(shape), tuple(steps), dtype=dtype(like, name), device=like.device)
    kind = dtype(like, name)
    spanned = 1 + sum((extent - 1) * step for extent, step in zip(shape, steps, strict=True))
    storage = np.empty(spanned if all(shape) else 0, dtype=kind)
    return np.lib.stride_tricks.as_strided(
        storage, tuple(shape), tuple(step * kind.itemsize for step in steps)
    )


def double(x: Array) -> Array:
    return x.double() if is_torch(x) else x.astype(np.float64)


def num_bytes(x: Array) -> int:
    return int(x.numel() * x.element_size()) if is_torch(x) else int(x.nbytes)


__all__ = [
    "Array",
    "amax",
    "bits",
    "cast",
    "clamp",
    "contiguous",
    "divided",
    "double",
    "dtype",
    "empty_strided",
    "has_type",
    "is_torch",
    "num_bytes",
    "on_gpu",
    "on_stream",
    "require_array",
    "strides",
    "torch_for",
    "zeros",
]
