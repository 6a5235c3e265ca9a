"""mbarrier: phases, counts, transactions, tokens; and on the emulator the faults it must report."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from deep_gemm import _C

TEST = (
    "__device__ u32 done(u32 bar, u32 parity) { u32 r; asm volatile(\"{.reg .pred q; mbarrier.test_wait.parity.shared::cta.b64 q, "
    '[%1], %2; selp.u32 %0, 1, 0, q;}" : "=r"(r) : "r"(bar), "r"(parity) : "memory"); return r; }\n'
    "__device__ void complete_tx(u32 bar, u32 bytes) { asm volatile(\"mbarrier.complete_tx.relaxed.cta.shared::cta.b64 [%0], %1;\" "
    '::"r"(bar), "r"(bytes) : "memory"); }\n'
    "__device__ void expect_tx(u32 bar, u32 bytes) { asm volatile(\"mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;\" "
    '::"r"(bar), "r"(bytes) : "memory"); }\n'
)  # fmt: skip


def record(run: Any, steps: str, count: int) -> list[int]:
    """One thread executes `steps`, each `note(value)` of which is recorded."""
    out = np.full(32, 0xFFFFFFFF, np.uint32)
    run(f"const u32 bar = dynamic_smem(); u32 next = 0; auto note = [&](u32 v) {{ p.out[next++] = v; }}; {steps}",
        {"out": out}, block=1, smem_bytes=64, prelude=TEST)  # fmt: skip
    return out[:count].tolist()


def test_phase_flips_after_the_last_arrival(run: Any) -> None:
    steps = (
        "mbarrier_init(bar, 3); note(done(bar, 0)); note(done(bar, 1)); "
        + "mbarrier_arrive(bar); note(done(bar, 0)); " * 3
    )
    steps += "note(done(bar, 1)); " + "mbarrier_arrive(bar); note(done(bar, 1));" * 3
    assert record(run, steps, 9) == [0, 1, 0, 0, 1, 0, 0, 0, 1]


def test_arrive_count(run: Any) -> None:
    steps = (
        "mbarrier_init(bar, 5); u64 token; "
        'asm volatile("mbarrier.arrive.shared::cta.b64 %0, [%1], 4;" : "=l"(token) : "r"(bar) : "memory"); note(done(bar, 0));'
        'asm volatile("mbarrier.arrive.shared::cta.b64 %0, [%1];" : "=l"(token) : "r"(bar) : "memory"); note(done(bar, 0));'
    )
    assert record(run, steps, 2) == [0, 1]


def test_state_token(run: Any) -> None:
    steps = (
        "mbarrier_init(bar, 2); u64 token; u32 r; "
        'asm volatile("mbarrier.arrive.shared::cta.b64 %0, [%1];" : "=l"(token) : "r"(bar) : "memory");'
        + (
            'asm volatile("{.reg .pred q; mbarrier.test_wait.shared::cta.b64 q, [%1], %2; selp.u32 %0, 1, 0, q;}" '
            ': "=r"(r) : "r"(bar), "l"(token) : "memory"); note(r); mbarrier_arrive(bar);'
        )
        * 2
    )
    assert record(run, steps, 2) == [0, 1]


def test_transactions_hold_the_phase_open(run: Any) -> None:
    steps = (
        "mbarrier_init(bar, 1); mbarrier_arrive_expect_tx(bar, 48); note(done(bar, 0)); complete_tx(bar, 16); note(done(bar, 0));"
        "complete_tx(bar, 32); note(done(bar, 0));"
        # Bytes may be completed before they are expected, as long as an arrival is pending.
        "complete_tx(bar, 64); note(done(bar, 1)); expect_tx(bar, 64); note(done(bar, 1)); mbarrier_arrive(bar); note(done(bar, 1));"
    )
    assert record(run, steps, 6) == [0, 0, 1, 0, 0, 1]


def test_ring_of_stages(run_seed: Any) -> None:
    """Two warps pass 64 values through 4 stages; every schedule must deliver them in order."""
    out = np.zeros(64, np.uint32)
    run_seed(
        "const u32 base = dynamic_smem(), full = base, empty = base + 32, data = base + 64;"
        "if (threadIdx.x == 0) for (u32 s = 0; s < 4; ++s) { mbarrier_init(full + 8 * s, 32); mbarrier_init(empty + 8 * s, 32); }"
        "__syncthreads(); const u32 lane = threadIdx.x % 32;"
        "for (u32 i = 0; i < 64; ++i) { const u32 s = i % 4, phase = i / 4 % 2, at = data + 4 * (32 * s + lane);"
        "  if (threadIdx.x < 32) { mbarrier_wait(empty + 8 * s, phase ^ 1);"
        '    asm volatile("st.shared.u32 [%0], %1;" :: "r"(at), "r"(i * 100 + lane) : "memory"); mbarrier_arrive(full + 8 * s); }'
        "  else { mbarrier_wait(full + 8 * s, phase); u32 v, sum = 0;"
        '    for (u32 k = 0; k < 32; ++k) { asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(data + 4 * (32 * s + k)) : "memory");'
        "      sum += v; } mbarrier_arrive(empty + 8 * s); if (lane == 0) p.out[i] = sum; } }",
        {"out": out}, block=64, smem_bytes=1024,
    )  # fmt: skip
    np.testing.assert_array_equal(out, np.arange(64) * 3200 + 31 * 16)


FAULTS = {
    "over-arrival": ("mbarrier_init(bar, 1); mbarrier_init(bar + 8, 2); mbarrier_arrive(bar + 8); "
                     'u64 t; asm volatile("mbarrier.arrive.shared::cta.b64 %0, [%1], 3;" : "=l"(t) : "r"(bar + 8) : "memory");',
                     "arrivals while"),
    "use before init": ("mbarrier_arrive(bar);", "initialised"),
    "transaction overflow": ("mbarrier_init(bar, 1); expect_tx(bar, 1000000); expect_tx(bar, 1000000);", "transaction count"),
    "misaligned": ("mbarrier_init(bar + 4, 1);", "align"),
    "overwritten": ('mbarrier_init(bar, 1); asm volatile("st.shared.u64 [%0], %1;" :: "r"(bar), "l"(5ull) : "memory"); '
                    "mbarrier_arrive(bar);", "holds an mbarrier"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(FAULTS))
def test_faults(runners: Callable[..., Any], name: str) -> None:
    steps, message = FAULTS[name]
    with pytest.raises(_C.Error, match=message) as caught:
        record(runners("emulator:sm_90a"), steps, 1)
    assert caught.value.kind == "emulator"
    assert "mbarrier" in str(caught.value)


def test_deadlock_report(runners: Callable[..., Any]) -> None:
    with pytest.raises(_C.Error, match="deadlock") as caught:
        record(
            runners("emulator:sm_90a"),
            "mbarrier_init(bar, 2); mbarrier_arrive(bar); mbarrier_wait(bar, 0); note(1);",
            1,
        )
    assert "1 of 2 arrivals pending" in str(caught.value)
    assert "phase 0" in str(caught.value)
