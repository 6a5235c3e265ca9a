"""The main job on real input: a text's tokens through a mixture-of-experts layer in FP8, checked and timed.

`run` (the layer) and `generate.run` (the text) are what `python -m deep_gemm demo` and tools/demo call.
"""

from deep_gemm.demo.run import run

__all__ = ["run"]
