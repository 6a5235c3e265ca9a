"""A fresh process that calls several kernels once each and prints, as JSON, how long every call took.

cold_start.py runs it twice over one new cache folder: first everything is compiled, then loaded from disk.
"""

from __future__ import annotations

import json
import re
import time
from typing import Any

import torch

import deep_gemm
from bench import data

N, K = 4096, 7168
M = (64, 1, 16, 32, 128, 4096)


def main() -> None:
    compile_ms: list[float] = []

    def listen(level: str, message: str) -> None:
        found = re.search(r"compiled in (\d+) ms", message)
        if found:
            compile_ms.append(float(found[1]))

    deep_gemm._C.set_log_sink(listen)
    b = data.scaled_weights(N, K)
    operands = [(data.scaled_tokens(m, K), torch.empty(m, N, dtype=torch.bfloat16, device="cuda")) for m in M]
    torch.cuda.synchronize()
    calls: list[dict[str, Any]] = []
    seen = set()
    for a, d in operands:
        compile_ms.clear()
        start = time.perf_counter()
        deep_gemm.fp8_gemm_nt(a, b, d)
        torch.cuda.synchronize()
        ms = (time.perf_counter() - start) * 1e3
        plan = deep_gemm.last_plan()
        if plan["kernel"] not in seen:
            calls.append({"ms": ms, "compile_ms": sum(compile_ms), "spec": str(plan["spec"])})
        seen.add(plan["kernel"])
    print(json.dumps(calls))


if __name__ == "__main__":
    main()
