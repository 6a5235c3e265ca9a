"""Matrices W [n, k] in the layouts of spec/quant.h: quantize(), QuantizedMatrix, dequantize(). numpy and PyTorch alike.

Every quantiser rounds to nearest even. Arrays of bytes (packed elements, UE8M0 and E4M3 scales, zero points) are int8.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from deep_gemm import _C, quantized_codecs
from deep_gemm import quantized_parts as parts
from deep_gemm.utils import arrays
from deep_gemm.utils.arrays import Array

FORMATS: dict[str, dict[str, Any]] = _C.quant_formats()


# Names that are not rows of the table, and what they mean without options.
ALIASES = {"fp8": "fp8_128x128", "fp8_e4m3": "fp8_128x128", "int8": "int8_row"}
BLOCKS = {
    "fp8": {128: "fp8_128x128", 32: "fp8_32"},
    "fp8_e4m3": {128: "fp8_128x128", 32: "fp8_32"},
    "nvfp4": {16: "nvfp4", 32: "nvfp4_32"},
}


def resolve_format(
    format: str, group: int | None = None, zero_point: bool = False, block: int | None = None
) -> str:
    """The full name: 'int4' with group and zero_point, 'fp8' and 'nvfp4' with block; others as they are."""
    name = ALIASES.get(format, format)
    if format == "int4":
        name = f"int4_{'zero_' if zero_point else ''}{128 if group is None else group}"
    elif group is not None or zero_point:
        raise ValueError(f"{format}: group and zero_point are options of 'int4'; leave them out")
    if block is not None:
        known = BLOCKS.get(format)
        if known is None:
            raise ValueError(f"{format}: block is an option of {', '.join(BLOCKS)}; leave it out")
        if block not in known:
            raise ValueError(
                f"{format}: got block={block}, expected {' or '.join(map(str, known))}; pass one of them"
            )
        name = known[block]
    if name not in FORMATS:
        raise ValueError(
            f"format: got '{name}', expected one of {', '.join([*FORMATS, *ALIASES, 'int4'])}; "
            "pass one of them"
        )
    return name


def part_text(shape: tuple[int, ...] | None) -> str:
    return "none" if shape is None else f"of shape {shape}"


@dataclass(frozen=True)
class QuantizedMatrix:
    """W [n, k]: value = (element - zero) * scale * global_scale, laid out as FORMATS[format] says.

    data: [n, row bytes] int8 (or [n, k] of the element's own type); scales: [rows of blocks, blocks along k] fp32, fp16
    or int8; zeros: as scales, int8. None where the layout has none.

    The constructor takes parts as quantize() made them; types and shapes are checked by what multiplies them, numbers
    by nothing. from_parts() checks all three.
    """

    format: str
    n: int
    k: int
    data: Array
    scales: Array | None = None
    zeros: Array | None = None
    global_scale: float = 1.0

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise ValueError(
                f"QuantizedMatrix: got format '{self.format}', expected one of {', '.join(FORMATS)}; pass one of them"
            )

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
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
        row, columns = FORMATS[self.format], _C.scale_columns(self.format, self.k)
        blocks = (-(-self.n // row["block_rows"]), columns) if columns else None
        for what, part, wanted in (
            (
                "data",
                self.data,
                (self.n, self.k if row["element_bits"] == 16 else _C.row_bytes(self.format, self.k)),
            ),
            ("scales", self.scales, blocks),
            ("zero points", self.zeros, blocks if row["has_zero"] else None),
        ):
            got = None if part is None else tuple(part.shape)
            if got != wanted:
                raise ValueError(
                    f"dequantize: the {what} of w ({self.format} of {self.n} x {self.k}) are {part_text(got)}, "
                    f"expected {part_text(wanted)}; quantize() makes the parts of this layout"
                )
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
        data_order: str = "nk",
    ) -> QuantizedMatrix:
        """A matrix of tensors that exist already, as checkpoints hold them; nothing is copied that need not be.

        data   [n, k] for bf16, fp16, fp8_*, int8_row, q8_0_split; [n, 34 * blocks] bytes for q8_0; [n, k / 2] bytes for
               4 bits, the first of two elements in the low nibble (or int32 [n, k / 8], the first of eight in the low
               bits); int4_* codes are unsigned (zero is 8). These are put in the order of their layout here, unless
               they are in it (`interleaved=True`: groups of 128 elements of int4_*, 64 bytes, and of 32 of mxfp4 and
               nvfp4*, 16 bytes).
        scales fp32 (bf16, fp16 and float8_e8m0fnu are widened; fp8_32 also takes one for 32 x 32); fp16 for q8_0_split
               and int4_* (fp32 and bf16 are rounded); bytes or their own type for mxfp4 and nvfp4*.
        zeros  bytes from 0 to 15.
        k      where it does not follow from data: q8_0 with a tail, 4 bits with an odd or padded k.
        scale_order  'nk': scales (and zeros) are [rows of blocks, blocks along k]; 'kn': the other way, turned here.
        data_order   'kn': data is [k, n] (4 bits: [k / 2, n]), turned here.

        Raises ValueError or TypeError with what was got and expected.
        """
        format = resolve_format(format)
        for name, order in (("scale_order", scale_order), ("data_order", data_order)):
            parts.require_order(name, order)
        row = FORMATS[format]
        data, n, k = parts.adopt_data(format, row, data, k, interleaved, data_order)
        shape = (-(-n // row["block_rows"]), _C.scale_columns(format, k))
        for what, part, wanted in (
            ("scales", scales, shape[1] != 0),
            ("zero points", zeros, row["has_zero"]),
        ):
            if wanted and part is None:
                raise ValueError(f"{format}: {what} are missing, expected {list(shape)}; pass them")
            if part is not None and not wanted:
                raise ValueError(f"{format}: got {what}, expected none: the layout has none apart from data")
        return QuantizedMatrix(
            format,
            n,
            k,
            data,
            None if scales is None else parts.adopt_scales(format, row, scales, shape, scale_order, k),
            None if zeros is None else parts.adopt_zeros(format, zeros, shape, scale_order, k),
            parts.adopt_global(format, row, global_scale),
        )


def quantize(
    weight: Array,
    format: str,
    *,
    group: int | None = None,
    zero_point: bool = False,
    block: int | None = None,
    scale_rounding: str | None = None,
) -> QuantizedMatrix:
    """W [n, k] of any float type, in `format`: a name of FORMATS, or

        'int4'             group = 32, 64 or 128 (default), zero_point = False or True
        'fp8', 'fp8_e4m3'  block = 128 (default: 128 x 128) or 32 (of a row)
        'int8'             a scale for each row
        'nvfp4'            block = 16 (default) or 32 (UE4M3 scales without subnormals)
        'mxfp4'            scale_rounding = 'ceil' (default: nothing clips below 6 * 2^125) or 'round' of log2(amax / 6)

    A NaN or an infinity takes the elements with it that share its scale (of nvfp4 the matrix). Raises ValueError or
    TypeError for what is not there, and where a scale is beyond fp16 (q8_0, int4).
    """  # fmt: skip
    name = resolve_format(format, group, zero_point, block)
    arrays.require_array(weight, "quantize")
    if not parts.type_name(weight).startswith(("float", "bfloat")):
        raise TypeError(
            f"quantize: got weights of {parts.type_name(weight)}, expected a float type; codes with scales are "
            "parts for QuantizedMatrix.from_parts, numbers that happen to be whole are cast to float32"
        )
    if len(weight.shape) != 2:
        raise ValueError(f"quantize: got shape {tuple(weight.shape)}, expected [n, k]; reshape it")
    if weight.shape[1] == 0:
        raise ValueError(
            "quantize: got a matrix without columns, expected at least one; pass weights with columns"
        )
    if scale_rounding not in (None, "ceil", "round"):
        raise ValueError(
            f"quantize: got scale_rounding='{scale_rounding}', expected 'ceil' or 'round'; pass one of them"
        )
    if scale_rounding is not None and name != "mxfp4":
        raise ValueError(f"{format}: scale_rounding is an option of 'mxfp4'; leave it out")
    rounding = scale_rounding or "ceil"
    data, scales, zeros, global_scale = quantized_codecs.quantize(weight, name, FORMATS[name], rounding)
    n, k = (int(extent) for extent in weight.shape)
    return QuantizedMatrix(name, n, k, data, scales, zeros, global_scale)


__all__ = ["FORMATS", "QuantizedMatrix", "quantize"]
