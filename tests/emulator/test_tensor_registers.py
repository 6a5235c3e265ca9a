"""Registers shared with the tensor core: who may use one, and what must lie between (PTX ISA, wgmma.fence and
wgmma.mma_async). Hand-written PTX: a compiler chooses registers as it likes.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

import numpy as np
import pytest

from deep_gemm import _C

SEEDS = range(4)
ONES = 0x38383838  # e4m3

HEAD = f"""
.version 8.0
.target sm_90a
.address_size 64
.visible .entry kernel(.param .u64 out) {{
    .reg .pred %p<2>;
    .reg .b32 %r<4>, %a<4>, %x<4>;
    .reg .f32 %d<8>;
    .reg .b64 %b<4>;
    .shared .align 1024 .b8 tile[512];
    ld.param.u64 %b0, [out];
    mov.u32 %r0, %tid.x;
    mul.wide.u32 %b1, %r0, 32;
    add.u64 %b0, %b0, %b1;
    mov.u32 %r1, tile;
    shl.b32 %r2, %r0, 2;
    add.u32 %r2, %r1, %r2;
    setp.lt.u32 %p1, %r0, 64;
    st.shared.u32 [%r2], {ONES};
    fence.proxy.async;
    bar.sync 0;
    and.b32 %r1, %r1, 0x3ffff;
    shr.u32 %r1, %r1, 4;
    cvt.u64.u32 %b1, %r1;
    or.b64 %b1, %b1, {8 << 16 | 16 << 32};
    setp.eq.u32 %p0, 0, 0;
"""
TAIL = "".join(f"    st.global.f32 [%b0+{4 * i}], %d{i};\n" for i in range(8)) + "    ret;\n}\n"


def words(letter: str, count: int = 4, first: int = 0) -> str:
    return "{" + ", ".join(f"%{letter}{first + i}" for i in range(count)) + "}"


def mma(d: str, a: str, n: int = 8) -> str:
    return f"wgmma.mma_async.sync.aligned.m64n{n}k32.f32.e4m3.e4m3 {d}, {a}, %b1, %p0, 1, 1;"


START = [f"mov.b32 %{r}{i}, {ONES};" for r in "ax" for i in range(4)] + [
    f"mov.f32 %d{i}, 0f00000000;" for i in range(8)
]
D, E, WIDE, A, X = words("d"), words("d", first=4), words("d", 8), words("a"), words("x")
FENCE, COMMIT = "wgmma.fence.sync.aligned;", "wgmma.commit_group.sync.aligned;"
WAIT, WAIT_1 = "wgmma.wait_group.sync.aligned 0;", "wgmma.wait_group.sync.aligned 1;"
SCALE = [f"mul.f32 %d{i}, %d{i}, 0f3f000000;" for i in range(4)]
CLEAR_A, LOOK_AT_A, CLEAR_D = "mov.b32 %a2, 0;", "mov.b32 %r3, %a1;", "mov.f32 %d1, 0f00000000;"
UNFENCED = r"wgmma\.mma_async .* touched after the last wgmma\.fence \(PTX line \d+: {}"
A_IN_FLIGHT = r"{}.*: touches a register of A of a wgmma in flight; wgmma\.wait_group first"


@dataclass(frozen=True)
class Case:
    name: str
    steps: list[str]
    expected: float | str  # D, or what the report says

    def run(self, seed: int) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
        device = _C.Device("emulator:sm_90a", seed=seed, latency="lazy" if seed == 0 else "random")
        text = HEAD + "".join(f"    {step}\n" for step in START + self.steps) + TAIL
        module = device.load_module(text.encode(), "tensor registers")
        out = np.zeros((128, 8), np.float32)
        address = device.allocate(out.nbytes)
        device.launch(module.kernel("kernel"), struct.pack("<Q", address), grid=1, block=128, memory=[(address, out.nbytes, True)])  # fmt: skip
        device.copy_to_host(out.view(np.uint8), address)
        device.release(address)
        return out


CASES = [
    Case("one", [FENCE, mma(D, A), COMMIT, WAIT], 32),
    Case("the same accumulators again need no fence", [FENCE, mma(D, A), COMMIT, mma(D, A), COMMIT, WAIT, mma(D, A), COMMIT, WAIT], 96),
    Case("A may be shared", [FENCE, mma(E, A), mma(D, A), COMMIT, WAIT], 32),
    Case("sums scaled, then a fence", [FENCE, mma(D, A), COMMIT, WAIT, *SCALE, FENCE, mma(D, A), COMMIT, WAIT], 48),
    Case("A of an older group", [FENCE, mma(E, A), COMMIT, mma(D, X), COMMIT, WAIT_1, CLEAR_A, WAIT], 32),
    Case("no fence", [mma(D, A), COMMIT, WAIT], r"without a wgmma\.fence before the warp's first one"),
    Case("sums scaled, no fence", [FENCE, mma(D, A), COMMIT, WAIT, *SCALE, mma(D, A), COMMIT, WAIT], UNFENCED.format("mul.f32 %d0")),
    Case("sums only read, no fence", [FENCE, mma(D, A), COMMIT, WAIT, "st.global.f32 [%b0], %d3;", mma(D, A), COMMIT, WAIT],
         UNFENCED.format(r"st\.global\.f32 \[%b0\], %d3")),
    Case("sums written after the fence", [FENCE, CLEAR_D, mma(D, A), COMMIT, WAIT], UNFENCED.format("mov.f32 %d1")),
    Case("A written after the fence", [FENCE, CLEAR_A, mma(D, A), COMMIT, WAIT], UNFENCED.format("mov.b32 %a2")),
    Case("a predicated write after the fence", [FENCE, "@%p1 " + CLEAR_A, mma(D, A), COMMIT, WAIT], UNFENCED.format("@%p1 mov.b32 %a2")),
    Case("sums in flight", [FENCE, mma(D, A), COMMIT, CLEAR_D, WAIT], "touches an accumulator register of a wgmma in flight"),
    Case("A written in flight", [FENCE, mma(D, A), COMMIT, CLEAR_A, WAIT], A_IN_FLIGHT.format("mov.b32 %a2")),
    Case("A written before its group is committed", [FENCE, mma(D, A), CLEAR_A, COMMIT, WAIT], A_IN_FLIGHT.format("mov.b32 %a2")),
    Case("A read in flight", [FENCE, mma(D, A), COMMIT, LOOK_AT_A, WAIT], A_IN_FLIGHT.format("mov.b32 %r3")),
    Case("A of the newest group", [FENCE, mma(E, X), COMMIT, mma(D, A), COMMIT, WAIT_1, CLEAR_A, WAIT], A_IN_FLIGHT.format("mov.b32 %a2")),
    Case("another shape in flight", [FENCE, mma(D, A), COMMIT, mma(WIDE, A, 16), COMMIT, WAIT], "registers of a wgmma of another shape"),
    Case("some of the registers in flight", [FENCE, mma(WIDE, A, 16), COMMIT, mma(E, A), COMMIT, WAIT], "registers of a wgmma of another shape"),
    Case("another shape after a wait", [FENCE, mma(WIDE, A, 16), COMMIT, WAIT, FENCE, mma(D, A), COMMIT, WAIT], 64),
    Case("A is being computed", [FENCE, mma(D, A), COMMIT, mma(E, D), COMMIT, WAIT], "reads A from an accumulator register of a wgmma in flight"),
    Case("sums in registers of A", [FENCE, mma(D, E), COMMIT, mma(E, A), COMMIT, WAIT], "accumulates in a register of A of a wgmma in flight"),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("seed", SEEDS)
def test_registers(case: Case, seed: int) -> None:
    if isinstance(case.expected, str):
        with pytest.raises(_C.Error) as caught:
            case.run(seed)
        assert re.search(case.expected, str(caught.value)), str(caught.value)
    else:
        np.testing.assert_array_equal(case.run(seed)[:, :4], case.expected)
