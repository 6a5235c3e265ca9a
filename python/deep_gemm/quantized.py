"""Matrices W [n, k] in the layouts of spec/quant.h: quantize(), QuantizedMatrix, dequantize(). numpy and PyTorch alike.

Every quantiser rounds to nearest even. Arrays of bytes (packed elements, UE8M0 and E4M3 scales, zero points) are int8.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from deep_gemm import _C, quantized_codecs
from deep_gemm.utils import arrays
from deep_gemm.utils.arrays import Array

FORMATS: dict[str, dict[str, Any]] = _C.quant_formats()


def resolve_format(
    format: str, group: int | None = None, zero_point: bool = False, block: int | None = None
) -> str:
    """The full name: 'int4' with group and zero_point, 'fp8' and 'nvfp4' with block; others as they are."""
    name = format
    if format == "int4":
        name = f"int4_{'zero_' if zero_point else ''}{128 if group is None else group}"
    elif group is not None or zero_point:
        raise ValueError(f"{format}: group and zero_point are options of 'int4'")
    elif format == "fp8":
        name = {None: "fp8_128x128", 128: "fp8_128x128", 32: "fp8_32"}.get(block, f"fp8 with block={block}")
    elif format == "nvfp4" and block is not None:
        name = {16: "nvfp4", 32: "nvfp4_32"}.get(block, f"nvfp4 with block={block}")
    if name not in FORMATS:
        raise ValueError(f"format: got '{name}', expected one of {', '.join(FORMATS)}, int4, fp8")
    return name


@dataclass(frozen=True)
class QuantizedMatrix:
    """W [n, k]: value = (element - zero) * scale * global_scale, laid out as FORMATS[format] says.

    data: [n, row bytes] int8 (or [n, k] of the element's own type); scales: [rows of blocks, blocks along k] fp32, fp16
    or int8; zeros: as scales, int8. None where the layout has none.
    """

    format: str
    n: int
    k: int
    data: Array
    scales: Array | None = None
    zeros: Array | None = None
    global_scale: float = 1.0

    @property
    def shape(self) -> tuple[int, int]:
        return self.n, self.k

    @property
    def num_bytes(self) -> int:
        """What a product reads of this matrix."""
        return sum(
            arrays.num_bytes(part) for part in (self.data, self.scales, self.zeros) if part is not None
        )

    @property
    def parts(self) -> tuple[Any, ...]:
        """What the extension module takes."""
        return self.format, self.n, self.k, self.data, self.scales, self.zeros, self.global_scale

    def dequantize(self) -> Array:
        """The fp32 matrix [n, k] that this one stands for."""
        return quantized_codecs.dequantize(self)

    @staticmethod
    def from_parts(
        format: str,
        data: Array,
        scales: Array | None = None,
        zeros: Array | None = None,
        global_scale: float | Array = 1.0,
        *,
        k: int | None = None,
        interleaved: bool = False,
        scale_order: str = "nk",
    ) -> QuantizedMatrix:
        """A matrix of tensors that exist already, as checkpoints hold them; nothing is copied that need not be.

        data   [n, k] for bf16, fp16, fp8_*, int8_row, q8_0_split; [n, 34 * blocks] bytes for q8_0; [n, k / 2] bytes for
               4 bits, the first of two elements in the low nibble; int4_* codes are unsigned (zero is 8). These are put
               in the order of their layout here, unless they are in it (`interleaved=True`: groups of 128 elements
               of int4_*, 64 bytes, and of 32 of mxfp4 and nvfp4*, 16 bytes).
        scales fp32 (bf16 is widened); fp16 for q8_0_split and int4_*; bytes or their own type for mxfp4 and nvfp4*.
        k      where it does not follow from data: q8_0 with a tail, 4 bits with an odd or padded k.
        scale_order  'nk': scales (and zeros) are [rows of blocks, blocks along k]; 'kn': the other way, turned here.

        Raises ValueError with what was got and expected.
        """
        if format not in FORMATS:
            raise ValueError(f"format: got '{format}', expected one of {', '.join(FORMATS)}")
        if scale_order not in ("nk", "kn"):
            raise ValueError(f"scale_order: got '{scale_order}', expected 'nk' or 'kn'")
        row = FORMATS[format]
        if len(data.shape) != 2:
            raise ValueError(f"{format}: data has shape {tuple(data.shape)}, expected [n, row]")
        n, columns = (int(extent) for extent in data.shape)
        if k is None:
            k = (
                columns // 34 * 32
                if row["packing"] == "blocks"
                else columns * (2 if row["element_bits"] == 4 else 1)
            )
        if row["element_bits"] < 16:
            data = quantized_codecs.as_bytes(data)
        if not interleaved and row["packing"] == "interleaved":
            data = quantized_codecs.interleave(data, k)
        if not interleaved and row["packing"] == "fragments":
            if int(data.shape[1]) != -(-k // 2):
                raise ValueError(
                    f"{format}: data has {data.shape[1]} bytes in a row, expected {-(-k // 2)} for k = {k}"
                )
            data = quantized_codecs.to_fragments(data, k)
        if row["element_bits"] != 16 and int(data.shape[1]) != _C.row_bytes(format, k):
            raise ValueError(
                f"{format}: data has {data.shape[1]} bytes in a row, expected {_C.row_bytes(format, k)} for k = {k}"
            )
        scale_columns = _C.scale_columns(format, k)
        if scale_columns:
            if scales is None:
                raise ValueError(f"{format}: scales are missing, expected [rows of blocks, {scale_columns}]")
            shape = (-(-n // row["block_rows"]), scale_columns)
            if scale_order == "kn":
                scales, zeros = (quantized_codecs.turned(part, shape) for part in (scales, zeros))
            scales = quantized_codecs.as_scales(scales, row["scale"]).reshape(shape)
            zeros = (
                quantized_codecs.as_bytes(zeros).reshape(shape)
                if row["has_zero"] and zeros is not None
                else None
            )
        if row["has_zero"] and zeros is None:
            raise ValueError(f"{format}: zero points are missing, expected one for each scale")
        return QuantizedMatrix(format, n, k, data, scales, zeros, float(global_scale))


def quantize(
    weight: Array,
    format: str,
    *,
    group: int | None = None,
    zero_point: bool = False,
    block: int | None = None,
    scale_rounding: str = "ceil",
) -> QuantizedMatrix:
    """W [n, k] of any float type, in `format`: a name of FORMATS, or

        'int4'   group = 32, 64 or 128 (default), zero_point = False or True
        'fp8'    block = 128 (default: 128 x 128) or 32 (of a row)
        'nvfp4'  block = 16 (default) or 32 (UE4M3 scales without subnormals)
        'mxfp4'  scale_rounding = 'ceil' (nothing clips) or 'round' of log2(amax / 6)

    Raises ValueError for what is not there.
    """  # fmt: skip
    name = resolve_format(format, group, zero_point, block)
    arrays.require_array(weight, "quantize")
    if len(weight.shape) != 2:
        raise ValueError(f"quantize: got shape {tuple(weight.shape)}, expected [n, k]")
    if weight.shape[1] == 0:
        raise ValueError("quantize: got a matrix without columns")
    if scale_rounding not in ("ceil", "round"):
        raise ValueError(f"quantize: got scale_rounding='{scale_rounding}', expected 'ceil' or 'round'")
    data, scales, zeros, global_scale = quantized_codecs.quantize(weight, name, FORMATS[name], scale_rounding)
    n, k = (int(extent) for extent in weight.shape)
    return QuantizedMatrix(name, n, k, data, scales, zeros, global_scale)


__all__ = ["FORMATS", "QuantizedMatrix", "quantize"]
