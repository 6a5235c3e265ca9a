"""y = x W^T, W in any layout of deep_gemm.quantized: bit-equal rows whatever the batch, as long as it is small.

    w = deep_gemm.quantize(weight, "q8_0")
    y = deep_gemm.linear(x, w)

Up to 16 rows, or with `invariant` at any number, row i of y depends on row i of x and on W alone, bit for bit. With
more, the plan may take a form made for many rows, for each matrix as for that matrix alone; what other rows hold
changes nothing in either.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np

from deep_gemm import _C
from deep_gemm._C import WeightGemmSpec, explain_linear
from deep_gemm.quantized import FORMATS, QuantizedMatrix
from deep_gemm.utils import arrays
from deep_gemm.utils.arrays import Array

Matrix = QuantizedMatrix | Array
Activations = Array | tuple[Array, Array]


def _matrix_of(w: Matrix) -> QuantizedMatrix:
    if isinstance(w, QuantizedMatrix):
        return w
    name = str(getattr(w, "dtype", type(w).__name__)).rpartition(".")[2]
    if name not in ("bfloat16", "float16"):
        raise TypeError(
            f"linear: w is {name}, expected a QuantizedMatrix or a bf16 or fp16 tensor; deep_gemm.quantize makes one"
        )
    if len(w.shape) != 2:
        raise ValueError(f"linear: w has shape {tuple(w.shape)}, expected [n, k]; reshape it")
    return QuantizedMatrix("bf16" if name == "bfloat16" else "fp16", int(w.shape[0]), int(w.shape[1]), w)


KINDS = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


def _type_name(x: Array) -> str:
    return str(x.dtype).rpartition(".")[2]


def _empty(like: Array, shape: tuple[int, ...], name: str | None) -> Array:
    """An uninitialised tensor of the library and device of `like`; name None: like its type, bf16 if that is narrow."""
    own = _type_name(like)
    wanted = KINDS[name] if name else own if own in KINDS.values() else "bfloat16"
    if arrays.is_torch(like):
        import torch

        return like.new_empty(shape, dtype=getattr(torch, wanted))
    if type(like).__module__.partition(".")[0] == "cupy":
        import cupy

        return cupy.empty(shape, dtype=wanted)
    return np.empty(shape, dtype=getattr(ml_dtypes, wanted, None) or np.dtype(wanted))


def _outputs(
    x: Array, paired: bool, heights: Sequence[int], outs: Sequence[Any], out_dtype: str | None
) -> list[Array]:
    """One for each height: the given one, which has the type that was asked for, or a new one."""
    if out_dtype is not None and out_dtype not in KINDS:
        raise ValueError(f"out_dtype: got '{out_dtype}', expected bf16, fp16 or fp32; pass one of them")
    kind = out_dtype or ("bf16" if paired else None)
    made = [
        _empty(x, (*x.shape[:-1], n), kind) if one is None else one
        for one, n in zip(outs, heights, strict=True)
    ]
    for one in made:
        if out_dtype is not None and hasattr(one, "dtype") and _type_name(one) != KINDS[out_dtype]:
            raise ValueError(
                f"out_dtype: got '{out_dtype}' beside an out of {_type_name(one)}, expected the type of out; leave "
                "out_dtype out"
            )
    return made


def _rows(tensor: Array | None) -> Array | None:
    """As [rows, columns] where it has more dimensions."""
    return (
        tensor
        if tensor is None or getattr(tensor, "ndim", 2) <= 2
        else tensor.reshape(math.prod(tensor.shape[:-1]), tensor.shape[-1])
    )


def _address(tensor: Array) -> int:
    if arrays.is_torch(tensor):
        return int(tensor.data_ptr())
    interface = getattr(tensor, "__cuda_array_interface__", None) or tensor.__array_interface__
    return int(interface["data"][0])


def _rows_of_output(tensor: Array, what: str) -> Array:
    """The same memory as [rows, columns]: what is written there has to arrive in `tensor`."""
    rows = _rows(tensor)
    if rows is not tensor and 0 not in tensor.shape and _address(rows) != _address(tensor):
        raise ValueError(
            f"{what} has shape {tuple(tensor.shape)} and rows at uneven distances, expected rows that lie as "
            "those of a matrix; pass a contiguous one"
        )
    return rows


def _pair(x: Activations, what: str) -> tuple[Array, Array | None]:
    values, scales = x if isinstance(x, tuple) and len(x) == 2 else (x, None)
    for part in (values, values if scales is None else scales):
        if not hasattr(part, "shape"):
            raise TypeError(
                f"{what}: x is a {type(part).__name__}, expected an array or tensor, or a tuple (values, scales); "
                "convert it"
            )
    return values, scales


def _check_options(what: str, strict: Any, invariant: Any, spec: Any) -> None:
    for name, flag in (("strict", strict), ("invariant", invariant)):
        if not isinstance(flag, (bool, int, np.bool_)):
            raise TypeError(
                f"{what}: {name} is {flag!r} of type {type(flag).__name__}, expected True or False; pass one of them"
            )
    if spec is not None and not isinstance(spec, WeightGemmSpec):
        raise TypeError(
            f"{what}: spec is a {type(spec).__name__}, expected a WeightGemmSpec or None; leave it to the plan"
        )


def _listed(value: Any, count: int, what: str) -> list[Any]:
    """One for each matrix."""
    several = isinstance(value, (list, tuple))
    if value is None or (not several and count == 1):
        return [value] * count
    if not several:
        raise TypeError(
            f"linear: {what} is one tensor, expected a sequence of {count}, one for each matrix; "
            "put them in a list"
        )
    if len(value) != count:
        raise ValueError(
            f"linear: got {len(value)} of {what}, expected {count}, one for each matrix; pass as many"
        )
    return list(value)


def linear(
    x: Activations,
    w: Matrix | Sequence[Matrix],
    out: Any = None,
    strict: bool = False,
    *,
    invariant: bool = False,
    spec: WeightGemmSpec | None = None,
    bias: Any = None,
    residual: Any = None,
    out_dtype: str | None = None,
    device: Any = None,
    stream: int | None = None,
) -> Any:
    """y = x W^T (+ bias) (+ residual): [..., k] and [n, k] -> [..., n].

    x         bf16 (fp16 beside fp16 weights), or (fp8_e4m3, fp32 scales [m, k / 128] or [m, k / 32]), or for Q8_0
              weights bf16, fp16, fp32 or (int8, fp32 scales): quantize_activations makes the pairs. Others are
              quantised into a workspace of the stream: CUDA graphs of such calls, captured on one stream after a first
              call, must not run at the same time. Beside int8_row also (int8, fp32 scales [m, 1]), as
              quantize(x, "int8_row") has them: exact integer sums, sm_90a.
    w         a QuantizedMatrix, or a bf16 or fp16 tensor; or two to four of one layout and k, which share one launch
              (beyond 16 rows, those that take the small-batch form): then out, bias, residual and the result are
              sequences as well.
    out       y, written in place: bf16, fp16 or fp32; no memory of it is an input's. None: a new tensor of out_dtype,
              by default x's type (bf16 for pairs). Beside an out, out_dtype has to be its type.
    strict    every row by the kernel of one row.
    invariant every row of y has the bits that it has alone, at any number of rows. Otherwise so up to 16 rows; with
              more, a plan may choose the large-batch form (explain_linear shows why), which agrees within a rounding
              of bf16; of FP8 pairs beside fp8_128x128 it is fp8_gemm_nt, within 2^-11 of the sum of magnitudes, whose
              order of a sum depends on m and n.
    spec      the large-batch form by this kernel, at any number of rows: for tests and tuning.
    bias      [n]; residual [..., n], which may be out. Both have y's type, and are added in fp32 in this order.

    Raises ValueError or TypeError with what was got and expected; then nothing was launched.
    """
    _check_options("linear", strict, invariant, spec)
    several = isinstance(w, (list, tuple))
    matrices = [_matrix_of(one) for one in (w if isinstance(w, (list, tuple)) else [w])]
    values, scales = _pair(x, "linear")
    count = len(matrices)
    outs = _listed(out, count, "out")
    outs = _outputs(values, scales is not None, [m.n for m in matrices], outs, out_dtype)
    _C.linear(
        _rows(values),
        _rows(scales),
        [m.parts for m in matrices],
        [_rows_of_output(one, "linear: out") for one in outs],
        _listed(bias, count, "bias"),
        [_rows(one) for one in _listed(residual, count, "residual")],
        False,
        0.0,
        strict,
        invariant,
        spec,
        device,
        stream,
    )
    return tuple(outs) if several else outs[0]


def swiglu_linear(
    x: Activations,
    gate: Matrix,
    up: Matrix,
    out: Array | None = None,
    strict: bool = False,
    *,
    limit: float = 0.0,
    invariant: bool = False,
    spec: WeightGemmSpec | None = None,
    bias: Array | None = None,
    residual: Array | None = None,
    out_dtype: str | None = None,
    device: Any = None,
    stream: int | None = None,
) -> Array:
    """y = silu(x gate^T) * (x up^T) in one launch, from the fp32 sums. limit > 0: gate <= limit, |up| <= limit.

    The other arguments are those of linear().
    """
    _check_options("swiglu_linear", strict, invariant, spec)
    if isinstance(limit, bool) or not hasattr(limit, "__float__"):
        raise TypeError(
            f"swiglu_linear: limit is a {type(limit).__name__}, expected 0 (none) or a positive number; pass one"
        )
    matrices = [_matrix_of(gate), _matrix_of(up)]
    values, scales = _pair(x, "swiglu_linear")
    (out,) = _outputs(values, scales is not None, [matrices[0].n], [out], out_dtype)
    _C.linear(
        _rows(values),
        _rows(scales),
        [m.parts for m in matrices],
        [_rows_of_output(out, "swiglu_linear: out")],
        [] if bias is None else [bias],
        [] if residual is None else [_rows(residual)],
        True,
        float(limit),
        strict,
        invariant,
        spec,
        device,
        stream,
    )
    return out


def quantize_activations(
    x: Array,
    to: str,
    out: tuple[Array, Array] | None = None,
    *,
    device: Any = None,
    stream: int | None = None,
) -> tuple[Array, Array]:
    """x [..., k] -> (values, fp32 scales), on the device, row by row.

    'q8'       int8 [..., k up to whole blocks of 32], scale amax / 127 of 32 elements
    'fp8_128'  E4M3 [..., k], scale amax / 448 of 128 elements; 'fp8_32' of 32
    """  # fmt: skip
    block = {"q8": 32, "fp8_128": 128, "fp8_32": 32}.get(to)
    if block is None:
        raise ValueError(
            f"quantize_activations: got '{to}', expected q8, fp8_128 or fp8_32; pass one of them (bytes with a scale "
            "for a row are the data and scales of quantize(x, 'int8_row'))"
        )
    if out is None:
        arrays.require_array(x, "quantize_activations")
        *rows, k = x.shape if len(x.shape) else (0, 0)
        columns = -(-k // 32) * 32 if to == "q8" else k
        values = arrays.zeros(x, (*rows, columns), "int8" if to == "q8" else "fp8_e4m3")
        out = values, arrays.zeros(x, (*rows, -(-k // block)), "fp32")
    values, scales = (_rows_of_output(part, "quantize_activations: out") for part in out)
    _C.quantize_activations(_rows(x), to, values, scales, device, stream)
    return out


def _explicit(name: str, formats: tuple[str, ...], pairs: bool | None, what: str) -> Any:
    def function(
        x: Activations, w: Matrix, out: Array | None = None, strict: bool = False, **options: Any
    ) -> Any:
        matrix = _matrix_of(w)
        if matrix.format not in formats:
            raise ValueError(
                f"{name}: w is {matrix.format}, expected {' or '.join(formats)}; quantise it as that"
            )
        if pairs is not None and isinstance(x, tuple) != pairs:
            raise TypeError(
                f"{name}: x is {'a pair' if not pairs else 'one tensor'}, expected {what}; convert it"
            )
        return linear(x, matrix, out, strict, **options)

    function.__name__ = function.__qualname__ = name
    function.__doc__ = f"linear() for {' or '.join(formats)} weights and {what}, and nothing else."
    return function


_FP8 = tuple(name for name in FORMATS if name.startswith("fp8"))
_FP4 = ("mxfp4", "nvfp4", "nvfp4_32")
_INT4 = tuple(name for name in FORMATS if name.startswith("int4"))

gemv_bf16 = _explicit("gemv_bf16", ("bf16",), False, "a bf16 tensor")
gemv_fp16 = _explicit("gemv_fp16", ("fp16",), False, "a fp16 tensor")
gemv_w8a16 = _explicit("gemv_w8a16", (*_FP8, "int8_row"), False, "a bf16 tensor")
gemv_w8a8 = _explicit("gemv_w8a8", (*_FP8, "int8_row"), True, "a pair (fp8_e4m3, scales)")
w8a16_gemm = _explicit("w8a16_gemm", (*_FP8, "int8_row"), False, "a bf16 tensor")
w4a16_gemm = _explicit("w4a16_gemm", (*_FP4, *_INT4), False, "a bf16 tensor")
gemm_int8 = _explicit("gemm_int8", ("int8_row",), True, "a pair (int8, scales)")
gemv_q8_0 = _explicit("gemv_q8_0", ("q8_0", "q8_0_split"), None, "a tensor or a pair (int8, scales)")
gemv_w4a16 = _explicit("gemv_w4a16", (*_FP4, *_INT4), False, "a bf16 tensor")
gemv_w4a8 = _explicit("gemv_w4a8", (*_FP4, *_INT4), True, "a pair (fp8_e4m3, scales)")
gemv_int4 = _explicit("gemv_int4", _INT4, None, "a bf16 tensor or a pair (fp8_e4m3, scales)")

dispatch_counts = _C.dispatch_counts
reset_dispatch_counts = _C.reset_dispatch_counts

__all__ = [
    "WeightGemmSpec",
    "dispatch_counts",
    "explain_linear",
    "gemm_int8",
    "gemv_bf16",
    "gemv_fp16",
    "gemv_int4",
    "gemv_q8_0",
    "gemv_w4a8",
    "gemv_w4a16",
    "gemv_w8a8",
    "gemv_w8a16",
    "linear",
    "quantize_activations",
    "reset_dispatch_counts",
    "swiglu_linear",
    "w4a16_gemm",
    "w8a16_gemm",
]
