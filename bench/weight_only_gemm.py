"""Products with many tokens and narrow weights: `linear` in the form that its plan takes, beside torch.mm in BF16.

The rows are bench.gemv's, at more tokens: from dozens, where W's bytes count, to thousands, where the tensor cores do.
"""

from __future__ import annotations

import torch

from bench import gemv
from bench.context import Context
from bench.records import Row
from bench.targets import LARGE_BATCH_LAYER, LARGE_BATCH_TOKENS

SECTION = "weight_only_gemm"
VARIANTS: tuple[tuple[str, str, str | None], ...] = (
    ("w8a16", "fp8_128x128", None),
    ("w8a16 by row", "fp8_row", None),
    ("int8", "int8_row", None),
    ("w4a16 mxfp4", "mxfp4", None),
    ("w4a16 nvfp4", "nvfp4", None),
    ("int4 g128", "int4_128", None),
    ("int4 g32", "int4_32", None),
)


def points(context: Context, m: int) -> list[Row]:
    k, n = LARGE_BATCH_LAYER
    rows = gemv.layer_rows(context, m, k, n, VARIANTS)
    for row in rows:
        row.section = SECTION
        if row.ours_us:
            row.metrics["tflops"] = 2 * m * n * k / row.ours_us / 1e6
    return rows


def run(context: Context) -> list[Row]:
    rows: list[Row] = []
    for m in (64, 8192) if context.quick else LARGE_BATCH_TOKENS:
        try:
            rows += points(context, m)
        except Exception as error:
            rows.append(Row(SECTION, f"m={m}", error=f"{type(error).__name__}: {error}"[:500]))
        torch.cuda.empty_cache()
    return rows
