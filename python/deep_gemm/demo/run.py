"""Runs the demo: embed, route, quantise, multiply in both grouped forms, compare with float64, report."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

import deep_gemm
from deep_gemm import _C
from deep_gemm.demo import layer, tokens
from deep_gemm.demo.arrays import put, take
from deep_gemm.utils import per_token_cast_to_fp8

EMULATOR_SIZE = layer.Size(tokens=512, hidden=1024, outputs=1024, experts=8, top_k=2)
GPU_SIZE = layer.Size(tokens=4096, hidden=7168, outputs=4096, experts=8, top_k=2)

# Relative error in the Frobenius norm against the exact product of the same FP8 numbers. Rounding the result
# to BF16 gives between 1.1e-3 and 2.3e-3 (2^-9 / sqrt(3) of the larger power of two, 2^-8 / sqrt(3) of the
# smaller); the tensor core's short accumulator adds less than that again.
ERROR_BOUND = 2.5e-3
REFERENCE_ROWS = 1024  # rows compared with float64, spread over all experts


@dataclass(frozen=True)
class Measured:
    """One grouped form, run and checked."""

    form: str
    plan: Mapping[str, Any]
    ready_s: float  # first call with nothing to do: plan, compile or load
    call_s: float
    error: float  # against the same FP8 numbers in float64
    error_unquantized: float  # against the numbers before they became FP8
    rows: layer.Float64  # the results, in the order of routing


def seconds_of_call(device: _C.Device, call: Callable[[], None]) -> float:
    """Wall time on the emulator, where a call ends complete; on a GPU the mean of many by device events."""
    if device.emulated:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
    repeats = 50
    begin, end = device.create_event(), device.create_event()
    call()
    device.record(begin)
    for _ in range(repeats):
        call()
    device.record(end)
    seconds = device.elapsed_ms(begin, end) * 1e-3 / repeats
    device.destroy_event(begin)
    device.destroy_event(end)
    return seconds


def relative_error(got: layer.Float64, want: layer.Float64) -> float:
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


class Layer:
    """The quantised layer, its routed batch, and the float64 results of a sample of rows."""

    def __init__(self, text: bytes, size: layer.Size, seed: int) -> None:
        self.size = size
        x = tokens.embed(text, size.tokens, size.hidden, seed)
        rng = np.random.default_rng(seed + 1)
        shape = (size.experts, size.outputs, size.hidden)
        w = rng.standard_normal(shape, np.float32) / np.sqrt(np.float32(size.hidden))
        self.routing = layer.route(x, size, seed + 2)
        self.a, self.a_scale = per_token_cast_to_fp8(x)
        self.b, self.b_scale = layer.quantize_experts(w)

        rows = len(self.routing.token)
        step = max(1, rows // REFERENCE_ROWS)
        self.sample = np.arange(0, rows, step)
        self.exact = np.empty((len(self.sample), size.outputs))
        self.unquantized = np.empty((len(self.sample), size.outputs))
        for expert in range(size.experts):
            mine = np.flatnonzero(self.routing.expert[self.sample] == expert)
            token = self.routing.token[self.sample[mine]]
            weights = layer.dequantize(self.b[expert], self.b_scale[expert], layer.SCALE_BLOCK)
            self.exact[mine] = layer.dequantize(self.a[token], self.a_scale[token], 1) @ weights.T
            self.unquantized[mine] = x[token].astype(np.float64) @ w[expert].T.astype(np.float64)

    def measure(self, form: str, device: _C.Device) -> Measured:
        """Runs one grouped form on the device and compares it with the reference."""
        masked = form == "masked"
        given = (layer.masked if masked else layer.contiguous)(self.a, self.a_scale, self.routing)
        a = (put(device, given.values), put(device, given.scale))
        b = (put(device, self.b), put(device, self.b_scale))
        out = put(device, np.full((*given.values.shape[:-1], self.size.outputs), np.nan, ml_dtypes.bfloat16))
        nothing = put(device, np.zeros_like(given.layout) if masked else np.full_like(given.layout, -1))
        groups = put(device, given.layout)
        expected_m = -(-len(self.routing.token) // self.size.experts)

        def call(layout: Any) -> None:
            if masked:
                deep_gemm.m_grouped_fp8_gemm_nt_masked(a, b, out, layout, expected_m, device=device)
            else:
                deep_gemm.m_grouped_fp8_gemm_nt_contiguous(a, b, out, layout, device=device)

        start = time.perf_counter()
        call(nothing)
        device.synchronize()
        ready_s = time.perf_counter() - start
        plan = _C.last_plan()
        call_s = seconds_of_call(device, lambda: call(groups))
        rows = take(out).reshape(-1, self.size.outputs)[given.place].astype(np.float64)
        sampled = rows[self.sample]
        error, unquantized = (relative_error(sampled, want) for want in (self.exact, self.unquantized))
        return Measured(form, plan, ready_s, call_s, error, unquantized, rows)


def report(out: Console, device: _C.Device, size: layer.Size, results: list[Measured]) -> None:
    """The plans, why they were chosen, and the numbers."""
    for result in results:
        out.print(f"\n[bold]{result.form}[/]: why this plan", highlight=False)
        why = _C.explain(result.plan["problem"], device=device, rows=4)
        out.print(why.rstrip(), markup=False, highlight=False, soft_wrap=True)
    rows = size.tokens * size.top_k
    flops = 2.0 * rows * size.outputs * size.hidden
    unit, scale = ("emulated MFLOP/s", 1e-6) if device.emulated else ("TFLOP/s", 1e-12)
    columns = ("form", "compile or load", "a call", unit, "error", "bound", "error of FP8", "result")
    table = Table(*columns, box=box.ROUNDED if out.is_terminal else box.ASCII)
    for result in results:
        table.add_row(
            result.form,
            f"{result.ready_s * 1e3:.0f} ms",
            f"{result.call_s:.2f} s" if device.emulated else f"{result.call_s * 1e6:.1f} us",
            f"{flops / result.call_s * scale:.0f}",
            f"{result.error:.1e}",
            f"{ERROR_BOUND:.1e}",
            f"{result.error_unquantized:.1e}",
            "right" if result.error <= ERROR_BOUND else "WRONG",
        )
    out.print()
    out.print(table)


def working(console: Console, doing: str) -> AbstractContextManager[object]:
    """Says what takes time: a spinner for people, a line where there is none."""
    if console.is_terminal:
        return console.status(doing)
    console.print(f"... {doing}", highlight=False)
    return nullcontext()


def size_for(device: _C.Device, sizes: Mapping[str, int | None]) -> layer.Size:
    """The device's default size with the given fields replaced."""
    given = {name: value for name, value in sizes.items() if value is not None}
    size = replace(EMULATOR_SIZE if device.emulated else GPU_SIZE, **given)
    if size.hidden % layer.SCALE_BLOCK or size.outputs % layer.SCALE_BLOCK or size.top_k > size.experts:
        raise ValueError(
            f"demo: got hidden {size.hidden}, outputs {size.outputs}, top-k {size.top_k} of {size.experts}, "
            "expected hidden and outputs in multiples of 128 and top-k at most the number of experts; "
            "correct the options"
        )
    return size


def run(
    text: Path | None, *, device: _C.Device, console: Console, seed: int, sizes: Mapping[str, int | None]
) -> bool:
    """Runs and prints everything; True when both forms are within the error bound."""
    size = size_for(device, sizes)
    started = time.perf_counter()
    source, content = tokens.read_text(text)
    label = f"emulator:sm_{device.arch}" if device.emulated else device.name
    note = (
        "; results are those of the kernel's own instructions, times those of this CPU"
        if device.emulated
        else ""
    )
    console.print(f"[bold]device[/]  {label}, {device.num_sms} SMs{note}", highlight=False)
    console.print(
        f"[bold]input[/]   {source}, {len(content)} bytes: {size.tokens} tokens of width {size.hidden}, "
        f"each to {size.top_k} of {size.experts} experts with {size.outputs} outputs",
        highlight=False,
    )
    with working(console, "embedding, routing, quantising, multiplying in float64"):
        moe = Layer(content, size, seed)
    console.print(f"[bold]experts[/] rows each: {' '.join(map(str, moe.routing.counts))}", highlight=False)
    results = []
    for form in ("masked", "contiguous"):
        with working(console, f"compiling and running the {form} kernel"):
            results.append(moe.measure(form, device))
    report(console, device, size, results)
    apart = relative_error(results[0].rows, results[1].rows)
    right = all(result.error <= ERROR_BOUND for result in results)
    console.print(
        f"\n{len(moe.sample)} of {len(moe.routing.token)} rows compared with float64; masked and contiguous "
        f"results {f'{apart:.0e} apart' if apart else 'bit-equal'}; {time.perf_counter() - started:.1f} s in all",
        highlight=False,
    )
    verdict = "PASSED" if right else "FAILED"
    console.print(f"[bold]{verdict}[/]: grouped FP8 GEMM, masked and contiguous, on {label}", highlight=False)
    return right
