"""Every fault says what is wrong, and where: kernel, CTA, warp, lane, PTX line, and the source line where known."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from deep_gemm import _C
from deep_gemm.testing.device import readonly, run_kernel, run_ptx


@dataclass(frozen=True)
class Fault:
    name: str
    body: str  # of a kernel with `const int* x` (16 values, read-only) and `int* y` (32 values)
    message: str  # regular expression
    launch: dict[str, Any] = field(default_factory=dict)


SHARED = "extern __shared__ int s[];"
ADDRESS = "const unsigned a = (unsigned)__cvta_generic_to_shared(s);"
INIT = 'asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" :: "r"(a) : "memory");'

FAULTS = [
    Fault("read past the end", "y[0] = x[16 + threadIdx.x];",
          r"lane 0, PTX line \d+: ld\.global.*: read of 4 bytes at global address 0x\w+ is out of bounds: 4 bytes past the end"),
    Fault("one lane reads before the beginning", "y[threadIdx.x] = x[threadIdx.x == 5 ? -1 : 0];",
          r"lane 5, .*out of bounds: 4 bytes before the read-only range"),
    Fault("write past the end", "y[threadIdx.x + 1] = 1;", r"lane 31, .*write of 4 bytes .* 4 bytes past the end of the writable range"),
    Fault("write to an input", "((int*)x)[threadIdx.x & 7] = 1;", r"lane 0, .*write of 4 bytes .* inside the read-only range"),
    Fault("null pointer", "*(volatile int*)nullptr = 1;", r"write of 4 bytes at global address 0x0 is out of bounds"),
    Fault("misaligned vector", "*(int2*)(y + 1) = make_int2(1, 2);", r"not aligned to the 8 bytes this access needs"),
    Fault("read of shared memory never written", f"{SHARED} y[0] = s[threadIdx.x];",
          r"read of 4 bytes at shared offset 1024, which nothing has written", {"smem_bytes": 256}),
    Fault("past the end of shared memory", f"{SHARED} s[threadIdx.x] = 1;",
          r"lane 16, .*access of 4 bytes at shared offset 1088 is outside .*\[1024, 1088\); the launch asked for 64 dynamic bytes",
          {"smem_bytes": 64}),
    Fault("misaligned shared", f'{SHARED} {ADDRESS} asm volatile("st.shared.u32 [%0], 1;" :: "r"(a + 2) : "memory");',
          r"shared address 0x402 is not aligned to the 4 bytes", {"smem_bytes": 64}),
    Fault("mbarrier as data", f"{SHARED} {ADDRESS} if (threadIdx.x == 0) {INIT} __syncthreads(); y[0] = s[0];",
          r"which holds an mbarrier, not data", {"smem_bytes": 64}),
    Fault("mbarrier overwritten", f"{SHARED} {ADDRESS} if (threadIdx.x == 0) {{ {INIT} s[1] = 1; }}",
          r"write of 4 bytes .* which holds an mbarrier", {"smem_bytes": 64}),
    Fault("mbarrier initialised twice", f"{SHARED} {ADDRESS} {INIT}", r"lane 1, .*a second time", {"smem_bytes": 64}),
    Fault("mbarrier never initialised",
          f'{SHARED} {ADDRESS} asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" :: "r"(a) : "memory");',
          r"holds no initialised mbarrier", {"smem_bytes": 64}),
    Fault("arrival too many",
          f'{SHARED} {ADDRESS} if (threadIdx.x == 0) {INIT} __syncwarp();'
          ' asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0], 2;" :: "r"(a) : "memory");',
          r"mbarrier\.arrive.*arriv", {"smem_bytes": 64}),
    Fault("generic write read by the copy engine",
          f'{SHARED} {ADDRESS} s[threadIdx.x] = 1; __syncwarp(); if (threadIdx.x == 0) asm volatile('
          '"cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], 64;" :: "l"(y), "r"(a) : "memory");',
          r"warp 0 wrote there through the generic proxy and no fence.proxy.async followed", {"smem_bytes": 128}),
    Fault("block ends before its bulk store has read",
          f'{SHARED} {ADDRESS} s[threadIdx.x] = 1; asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); __syncwarp();'
          ' if (threadIdx.x == 0) asm volatile('
          '"cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], 64; cp.async.bulk.commit_group;" :: "l"(y), "r"(a) : "memory");',
          r"the CTA exits while 1 asynchronous copies still use its shared memory", {"smem_bytes": 128}),
    Fault("cp.async destination read too early",
          f'{SHARED} {ADDRESS} asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" :: "r"(a), "l"(x) : "memory"); y[0] = s[0];',
          r"which an asynchronous copy in flight writes", {"smem_bytes": 64, "block": 1}),
    Fault("shuffle from an absent lane", "if (threadIdx.x < 16) y[0] = __shfl_sync(0xffffu, 1, 20);",
          r"shfl reads lane 20, which does not execute it"),
    Fault("mask leaves the lane out", "y[0] = __shfl_sync(0xffffu, 1, 0);", r"lane 16, .*member mask 0x0000ffff leaves it out"),
    Fault("barrier count", 'asm volatile("bar.sync 1, 48;" ::: "memory");', r"barrier count 48 must be a multiple of 32"),
    Fault("barrier id", 'asm volatile("bar.sync %0, 32;" :: "r"(x == nullptr ? 0 : 16) : "memory");', r"barrier 16 does not exist"),
    Fault("trap", "if (threadIdx.x == 9) __trap();", r"lane 9, .*executed trap"),
    Fault("setmaxnreg", 'asm volatile("setmaxnreg.inc.sync.aligned.u32 40;");', r"setmaxnreg\.inc to 40 registers while the warp has",
          {"block": 128}),
    Fault("wgmma without a fence",
          'float d[4] = {}; unsigned long long m = 64; asm volatile("{.reg .pred p; setp.ne.b32 p, %6, 0;'
          ' wgmma.mma_async.sync.aligned.m64n8k32.f32.e4m3.e4m3 {%0, %1, %2, %3}, %4, %5, p, 1, 1;}"'
          ' : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "l"(m), "l"(m), "r"(0)); y[0] = d[0];',
          r"without a wgmma\.fence", {"block": 128}),
]  # fmt: skip


def kernel(body: str) -> str:
    return f'extern "C" __global__ void f(const int* x, int* y) {{\n    {body}\n}}\n'


def outcome(fault: Fault, seed: int, **options: Any) -> str:
    device = _C.Device("emulator:sm_90a", seed=seed)
    x, y = np.zeros(16, np.int32), np.zeros(32, np.int32)
    with pytest.raises(_C.Error) as raised:
        run_kernel(device, kernel(fault.body), "f", readonly(x), y, **{**fault.launch, **options})
    assert raised.value.kind == "emulator"
    return str(raised.value)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
@pytest.mark.parametrize("seed", [0, 5])
def test_fault_names_cause_and_place(fault: Fault, seed: int) -> None:
    text = outcome(fault, seed)
    assert text.startswith("emulator: kernel f, CTA (0,0,0), warp "), text
    assert "PTX line" in text or "end of the kernel" in text, text
    assert re.search(fault.message, text), f"got {text!r}, expected {fault.message!r}"


def test_source_line_is_named_with_lineinfo() -> None:
    text = outcome(FAULTS[0], 0, options=("-lineinfo",))
    assert "kernel.cu:2)" in text, text


REMOTE_ARRIVE = """
extern "C" __global__ void __cluster_dims__(2, 1, 1) f() {
    __shared__ unsigned long long bar;
    const unsigned a = (unsigned)__cvta_generic_to_shared(&bar);
    unsigned rank, remote;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    if (threadIdx.x == 0) asm volatile("mbarrier.init.shared::cta.b64 [%0], 33;" :: "r"(a) : "memory");
    SYNC
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(a), "r"(rank ^ 1));
    asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" :: "r"(remote) : "memory");
    END
}"""
CLUSTER_SYNC = 'asm volatile("barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;" ::: "memory");'


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("sync", "end", "message"),
    [
        (CLUSTER_SYNC, CLUSTER_SYNC, None),
        (
            "__syncthreads();",
            CLUSTER_SYNC,
            "no cluster barrier since its initialisation|no initialised mbarrier",
        ),
    ],
)
def test_cluster_barriers(sync: str, end: str, message: str | None, seed: int) -> None:
    device = _C.Device("emulator:sm_90a", seed=seed)
    source = REMOTE_ARRIVE.replace("SYNC", sync).replace("END", end)
    if message is None:
        run_kernel(device, source, "f", grid=4, cluster=2)
    else:
        with pytest.raises(_C.Error, match=message):
            run_kernel(device, source, "f", grid=4, cluster=2)


def test_lowest_faulting_block_is_reported() -> None:
    source = 'extern "C" __global__ void f(int* y) { if (blockIdx.x >= 5) y[1 << 20] = 1; else y[blockIdx.x] = 1; }'
    for threads in (1, 4):
        device = _C.Device("emulator:sm_90a", threads=threads)
        with pytest.raises(_C.Error, match=r"CTA \(5,0,0\), warp 0, lane 0"):
            run_kernel(device, source, "f", np.zeros(32, np.int32), grid=64)


HEADER = ".version 8.0\n.target sm_90a\n.address_size 64\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("frobnicate.u32 %r0, %r1;", r"kernel f, PTX line 6: frobnicate\.u32 %r0, %r1;: unknown opcode"),
        ("mul.f32 %r0, %r1, %nosuch;", r"PTX line 6.*%nosuch is not modelled"),
        ("bra NOWHERE;", r"PTX line 6: label 'NOWHERE' is not defined"),
        ("add.u32 %r0 %r1;", r"PTX line 6: got '%r1', expected ;"),
        ("tcgen05.wait::ld.sync.aligned;", r"unknown opcode"),
    ],
)
def test_text_that_cannot_be_executed_is_refused_at_load(text: str, message: str) -> None:
    device = _C.Device("emulator:sm_90a")
    ptx = HEADER + f".visible .entry f() {{\n.reg .b32 %r<3>;\n{text}\nret;\n}}\n"
    with pytest.raises(_C.Error, match=message):
        run_ptx(device, ptx, "f")
