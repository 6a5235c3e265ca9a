"""The error table of docs/weight-only.md: `python tools/weight_only_errors.py` prints it, `--write` puts it there.

Runs the kernels (on the emulated GPU unless DG_DEVICE says otherwise): W [64, 4096] and x [8, 4096] normal with
deviation 0.5, seed 42. An error is |y - y'| / |y'| over all elements:

  kernel      y' from the operands as they are stored, in float64: what the kernel adds, in fp32 and in bf16 output
  end to end  y' from the fp32 operands before any rounding: what the layout costs
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

import deep_gemm
from deep_gemm.quantized import FORMATS

PAGE = Path(__file__).resolve().parents[1] / "docs" / "weight-only.md"
START, END = "<!-- errors: made by tools/weight_only_errors.py -->", "<!-- end of errors -->"
N, K, M, SEED = 64, 4096, 8, 42
# End to end, what round to nearest is asked to stay within, in percent; by (layout, activations).
ASKED = {
    ("bf16", "bf16"): 0.35, ("fp8_128x128", "bf16"): 3.0, ("fp8_128x128", "fp8_128"): 4.0, ("fp8_32", "fp8_32"): 3.7,
    ("q8_0", "q8"): 0.95, ("nvfp4", "bf16"): 10, ("nvfp4_32", "bf16"): 11, ("mxfp4", "bf16"): 12,
    ("int4_128", "bf16"): 12.5, ("int4_32", "bf16"): 9.8,
}  # fmt: skip
Array = np.ndarray[Any, np.dtype[Any]]


def relative(y: Array, reference: Array) -> float:
    return float(np.linalg.norm(y.astype(np.float64) - reference) / np.linalg.norm(reference))


def operands(x: Array, kind: str) -> tuple[Any, Array]:
    """What linear() takes, and the float64 matrix that it stands for."""
    if kind in ("bf16", "fp16"):
        narrow = x.astype(ml_dtypes.bfloat16 if kind == "bf16" else np.float16)
        return narrow, narrow.astype(np.float64)
    values, scales = deep_gemm.quantize_activations(x, kind)
    block = 128 if kind == "fp8_128" else 32
    return (values, scales), values.astype(np.float64) * scales.astype(np.float64).repeat(block, 1)


def combinations() -> list[tuple[str, str]]:
    plain = [
        (name, "fp16" if name == "fp16" else "q8" if name.startswith("q8") else "bf16") for name in FORMATS
    ]
    narrow = [("fp8_128x128", "fp8_128"), ("fp8_32", "fp8_32"), ("mxfp4", "fp8_128"), ("nvfp4", "fp8_128")]
    return plain + narrow


def table() -> str:
    rng = np.random.default_rng(SEED)
    w, x = ((rng.standard_normal(shape) * 0.5).astype(np.float32) for shape in ((N, K), (M, K)))
    exact = x.astype(np.float64) @ w.astype(np.float64).T
    lines = [
        "| W | x | bits of a weight | kernel, fp32 y | large-batch, fp32 y | kernel, bf16 y | end to end | asked |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, kind in combinations():
        matrix = deep_gemm.quantize(w, name)
        tokens, wide = operands(x, kind)
        stored = wide[:, :K] @ matrix.dequantize().astype(np.float64).T
        fp32, bf16 = (deep_gemm.linear(tokens, matrix, out_dtype=kind_y) for kind_y in ("fp32", "bf16"))
        large = ""
        if kind in ("bf16", "fp16"):
            spec = deep_gemm.WeightGemmSpec(w=name, x=kind, y="fp32", block_m=16)
            large = f"{relative(deep_gemm.linear(tokens, matrix, out_dtype='fp32', spec=spec), stored):.1e}"
        asked = ASKED.get((name, kind))
        lines.append(
            f"| {name} | {kind} | {matrix.num_bytes * 8 / (N * K):.2f} | {relative(fp32, stored):.1e} | {large} | "
            f"{100 * relative(bf16, stored):.2f} % | {100 * relative(bf16, exact):.2f} % | "
            f"{f'{asked:g} %' if asked else ''} |"
        )
    return "\n".join(lines)


def main() -> None:
    text = table()
    if "--write" not in sys.argv:
        print(text)
        return
    page = PAGE.read_text()
    before, _, rest = page.partition(START)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{START}\n{text}\n{END}{after}")


if __name__ == "__main__":
    main()
