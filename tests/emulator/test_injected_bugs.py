"""The emulator must catch bugs. Each bug is a substitution in the text of a kernel or of a device header it includes, so
the shipped text stays clean; a substitution whose text is gone fails, so the list cannot rot. Every bug runs under
several seeds and must end, often enough, in a wrong result, a fault or a deadlock report. The clean kernel must pass
under all of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from deep_gemm import _C

Array = np.ndarray[Any, np.dtype[Any]]

# Six random schedules, and two in which asynchronous work lands only when nothing else can run.
SEEDS = range(8)
LAZY_SEEDS = (6, 7)
INCLUDE = re.compile(r"^#include <(deep_gemm/[^>]+)>\n", re.MULTILINE)


@dataclass(frozen=True)
class Bug:
    name: str
    old: str
    new: str
    caught_by: int = 1  # seeds out of 8 that must notice; 8 where no schedule can hide it
    occurrences: int = 1

    def inject(self, text: str) -> str:
        found = text.count(self.old)
        assert found == self.occurrences, (
            f"{self.name}: {self.old!r} occurs {found} times, expected {self.occurrences}"
        )
        return text.replace(self.old, self.new)


def flatten(source: str) -> str:
    """The source with every device header inlined once, where it is first included: what NVRTC sees, as one text."""
    headers: Mapping[str, str] = _C.device_headers()
    seen: set[str] = set()

    def inline(match: re.Match[str]) -> str:
        name = match.group(1)
        if name in seen:
            return ""
        seen.add(name)
        return INCLUDE.sub(inline, headers[name].replace("#pragma once\n", ""))

    return INCLUDE.sub(inline, source)


@dataclass
class Launch:
    """How to run one kernel: arrays in, arrays out, and what they must be."""

    entry: str
    grid: tuple[int, ...]
    block: int
    smem_bytes: int
    arrays: dict[str, Array]
    pack: Callable[[Any, dict[str, int]], bytes]  # device, addresses -> parameter bytes
    expected: dict[str, Array]
    tolerance: float = 0.0
    cluster: int = 1
    outputs: dict[str, Array] = field(default_factory=dict)

    def outcomes(self, text: str) -> dict[int, str]:
        compiled = _C.compile(text, [self.entry], arch="90a", kind="ptx")
        return {seed: self.run(compiled, seed) for seed in SEEDS}

    def run(self, compiled: Any, seed: int) -> str:
        """How the run ended: "clean", "wrong", or the first line of the emulator's report."""
        device = _C.Device("emulator:sm_90a", seed=seed, latency="lazy" if seed in LAZY_SEEDS else "random")
        module = device.load_module(compiled.image, "injected bug")
        addresses = {name: device.allocate(array.nbytes) for name, array in self.arrays.items()}
        try:
            for name, array in self.arrays.items():
                device.copy_to_device(addresses[name], array.view(np.uint8))
            memory = [
                (addresses[name], array.nbytes, name in self.expected) for name, array in self.arrays.items()
            ]
            try:
                device.launch(module.kernel(compiled.lowered_names[0]), self.pack(device, addresses), grid=self.grid,
                              block=self.block, cluster=self.cluster, smem_bytes=self.smem_bytes, memory=memory)  # fmt: skip
            except _C.Error as error:
                assert error.kind == "emulator", f"not a verdict of the emulator: {error}"
                return str(error).splitlines()[0]
            for name in self.expected:
                self.outputs[name] = np.empty_like(self.arrays[name])
                device.copy_to_host(self.outputs[name].view(np.uint8), addresses[name])
        finally:
            for address in addresses.values():
                device.release(address)
        return "clean" if self.is_right() else "wrong"

    def is_right(self) -> bool:
        for name, expected in self.expected.items():
            got = self.outputs[name].astype(np.float64)
            if not np.isfinite(got).all():
                return False
            if (np.abs(got - expected) > self.tolerance * np.maximum(np.abs(expected), 1.0)).any():
                return False
        return True


def check_clean(launch: Launch, text: str) -> None:
    outcomes = launch.outcomes(text)
    assert set(outcomes.values()) == {"clean"}, f"the clean kernel fails: {outcomes}"


def check_caught(launch: Launch, text: str, bug: Bug) -> None:
    outcomes = launch.outcomes(bug.inject(text))
    caught = [seed for seed, outcome in outcomes.items() if outcome != "clean"]
    assert len(caught) >= bug.caught_by, (
        f"caught by {len(caught)} of {len(SEEDS)} seeds, expected {bug.caught_by}: {outcomes}"
    )


# ---- A small kernel of our own

SMALL_TEXT = (Path(__file__).parent / "small_gemm.cu").read_text()
SMALL_BUGS = [
    Bug("producer waits for the wrong phase", "mbarrier_wait(empty + 8 * stage, phase ^ 1);",
        "mbarrier_wait(empty + 8 * stage, phase);", 8),
    Bug("consumer waits for the wrong phase", "mbarrier_wait(full + 8 * stage, phase);",
        "mbarrier_wait(full + 8 * stage, phase ^ 1);", 8),
    Bug("consumer does not wait", "mbarrier_wait(full + 8 * stage, phase);", "", 4),
    Bug("producer does not wait", "mbarrier_wait(empty + 8 * stage, phase ^ 1);", ""),
    Bug("half of the transaction bytes", "full + 8 * stage, 2 * kTileBytes", "full + 8 * stage, kTileBytes"),
    Bug("too many transaction bytes", "full + 8 * stage, 2 * kTileBytes", "full + 8 * stage, 2 * kTileBytes + 16", 8),
    Bug("one arrival too few expected", "mbarrier_init(empty + 8 * stage, 4);", "mbarrier_init(empty + 8 * stage, 3);"),
    Bug("one arrival too many expected", "mbarrier_init(empty + 8 * stage, 4);", "mbarrier_init(empty + 8 * stage, 5);", 8),
    Bug("all lanes release the stage", "if (lane == 0) mbarrier_arrive(empty", "mbarrier_arrive(empty", 8),
    Bug("stage released before wgmma has read it",
        "wgmma_wait<0>();  // before release\n        if (lane == 0) mbarrier_arrive(empty + 8 * stage);",
        "if (lane == 0) mbarrier_arrive(empty + 8 * stage);\n        wgmma_wait<0>();"),
    Bug("accumulators read in flight", "wgmma_wait<0>();  // before release", "", 8),
    Bug("no wgmma.fence", "        wgmma_fence();\n", "", 8),
    Bug("no proxy fence before the store", "fence_proxy_async();  // before the store", "", 8),
    Bug("no barrier before the store", "named_barrier_sync(1, 128);", "", 4),
    Bug("barriers not fenced after init", "fence_mbarrier_init();\n    }", "}", 8),
    Bug("no synchronisation after init", "sync_threads();  // barriers are visible", ""),
    Bug("more stages than shared memory", "kStages = 3,", "kStages = 5,", 8),
    Bug("wrong descriptor step", "mma4<2, 2>(d, a, b,", "mma4<2, 1>(d, a, b,", 8),
    Bug("swizzle forgotten in the descriptor", "1ull << 62", "0ull << 62", 8),
    Bug("block ends before its store has read shared memory", "        tma_store_wait_read<0>();\n", ""),
]  # fmt: skip


def operand(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Small integers: exact in the short FP8 accumulator."""
    return rng.integers(-2, 3, shape).astype(np.float32).astype(ml_dtypes.float8_e4m3fn)


def matrix_map(
    device: Any, address: int, shape: tuple[int, ...], format: str, size: int, rows: int, swizzle: int
) -> bytes:
    """Rank 3, columns innermost; the box is `rows` by the swizzle span, or by 64 columns without one."""
    groups, height, width = shape
    box = [swizzle // size if swizzle else 64, rows, 1]
    return device.encode_tensor_map(address=address, format=format, dims=[width, height, groups],
                                    strides_bytes=[width * size, height * width * size], box=box, swizzle=swizzle)  # fmt: skip


def small_launch() -> Launch:
    rng = np.random.default_rng(3)
    m, n, num_k = 128, 64, 14
    a, b = operand(rng, (m, 128 * num_k)), operand(rng, (n, 128 * num_k))
    d = np.full((m, n), np.nan, np.float32)

    def pack(device: Any, at: dict[str, int]) -> bytes:
        maps = [
            matrix_map(device, at["a"], (1, *a.shape), "fp8_e4m3", 1, 64, 128),
            matrix_map(device, at["b"], (1, *b.shape), "fp8_e4m3", 1, 64, 128),
            matrix_map(device, at["d"], (1, m, n), "fp32", 4, 64, 0),
        ]
        return b"".join(maps) + num_k.to_bytes(64, "little")

    smem_bytes = 3 * 2 * 64 * 128 + 64 * 64 * 4 + 2 * 3 * 8
    expected = a.astype(np.float64) @ b.astype(np.float64).T
    return Launch(
        "small_gemm", (n // 64, m // 64), 160, smem_bytes, {"a": a, "b": b, "d": d}, pack, {"d": expected}
    )


@pytest.fixture(scope="module")
def small() -> Launch:
    return small_launch()


def test_small_kernel_is_clean(small: Launch) -> None:
    check_clean(small, flatten(SMALL_TEXT))


@pytest.mark.parametrize("bug", SMALL_BUGS, ids=lambda bug: bug.name)
def test_small_kernel_bugs(small: Launch, bug: Bug) -> None:
    check_caught(small, flatten(SMALL_TEXT), bug)


# ---- The GEMM kernels that ship

KERNEL_SMEM_BYTES = 200 * 1024
FIELD_BYTES = {"TensorMap": 128, "u64": 8, "u32": 4, "i32": 4}


def pack_params(values: Mapping[str, bytes | int]) -> bytes:
    """GemmParams as the header declares it: fields in order, naturally aligned, absent ones zero."""
    header = _C.device_headers()["deep_gemm/spec/gemm.h"]
    body = re.search(r"struct GemmParams \{(.*?)\n\};", header, re.DOTALL)
    assert body is not None
    out, unused = b"", set(values)
    for declaration in re.findall(r"^ +([^;/]+);", body.group(1), re.MULTILINE):
        pointer = "*" in declaration
        kind, names = declaration.replace("const ", "").replace("*", " ").split(" ", 1)
        size = 8 if pointer else FIELD_BYTES[kind]
        for name in (n.strip() for n in names.split(",")):
            out += bytes(-len(out) % min(size, 64))
            value = values.get(name, 0)
            out += value if isinstance(value, bytes) else value.to_bytes(size, "little")
            unused.discard(name)
    assert not unused, f"GemmParams has no fields {unused}"
    return out + bytes(-len(out) % 64)


@dataclass(frozen=True)
class Gemm:
    """One spec of a shipped kernel and a problem that makes every CTA compute several blocks."""

    name: str
    kernel: str
    header: str
    spec: str  # designated initialisers of GemmSpec
    block_m: int = 64
    block_n: int = 64
    warpgroups: int = 1
    cluster_m: int = 1
    cluster_n: int = 1
    split_k: int = 1
    m: int = 128
    n: int = 128
    k: int = 768

    @property
    def fp8(self) -> bool:
        return "fp8" in self.kernel

    def source(self) -> str:
        return (f"#include <deep_gemm/kernel/{self.header}>\nusing namespace deep_gemm;\n"
                f"constexpr GemmSpec kSpec{{{self.spec}}};\n")  # fmt: skip

    def launch(self) -> Launch:
        rng = np.random.default_rng(11)
        m, n, k = self.m, self.n, self.k
        dtype, format, size = (
            (ml_dtypes.float8_e4m3fn, "fp8_e4m3", 1) if self.fp8 else (ml_dtypes.bfloat16, "bf16", 2)
        )
        a, b = operand(rng, (m, k)).astype(dtype), operand(rng, (n, k)).astype(dtype)
        blocks = -(-k // 128)
        scale_a = (2.0 ** rng.integers(-1, 2, (m, blocks))).astype(np.float32)
        scale_b = (2.0 ** rng.integers(-1, 2, (-(-n // 128), blocks))).astype(np.float32)
        d = np.full((m, n), np.nan, np.float32).astype(ml_dtypes.bfloat16)
        arrays = {"a": a, "b": b, "d": d}
        if self.fp8:
            arrays |= {"scale_a": scale_a, "scale_b": scale_b}
            wide_a = a.astype(np.float64) * scale_a.repeat(128, axis=1)
            wide_b = b.astype(np.float64) * scale_b.repeat(128, axis=1).repeat(128, axis=0)[:n]
        else:
            wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
        ctas = self.cluster_m * self.cluster_n * self.split_k

        def pack(device: Any, at: dict[str, int]) -> bytes:
            return pack_params({
                "a": matrix_map(device, at["a"], (1, m, k), format, size, self.block_m // self.cluster_n, 128),
                "b": matrix_map(device, at["b"], (1, n, k), format, size, self.block_n // self.cluster_m, 128),
                "d": matrix_map(device, at["d"], (1, m, n), "bf16", 2, 64, 128),
                "d_data": at["d"], "scale_a": at.get("scale_a", 0), "scale_b": at.get("scale_b", 0),
                "d_stride_group": m * n, "d_stride_m": n, "scale_a_stride_m": blocks, "scale_a_stride_k": 1,
                "scale_b_stride_n": blocks, "scale_b_stride_k": 1, "m": m, "n": n, "k": k, "num_groups": 1,
            })  # fmt: skip

        return Launch(f"deep_gemm::{self.kernel}<kSpec>", (ctas,), 128 * (self.warpgroups + 1), KERNEL_SMEM_BYTES, arrays,
                      pack, {"d": wide_a @ wide_b.T}, tolerance=2.0**-7, cluster=ctas)  # fmt: skip


FP8_DENSE = Gemm(
    "fp8", "sm90_fp8_gemm_nt", "sm90_gemm.cuh",
    ".block_m = 64, .block_n = 64, .stages = 3, .warpgroups = 1",
)  # fmt: skip
FP8_MULTICAST = Gemm(
    "fp8 multicast", "sm90_fp8_gemm_nt", "sm90_gemm.cuh",
    ".block_m = 64, .block_n = 64, .stages = 3, .warpgroups = 1, .cluster_n = 2", cluster_n=2, n=256,
)  # fmt: skip
FP8_JOINED = Gemm(
    "fp8 joined scales", "sm90_fp8_gemm_nt", "sm90_gemm.cuh",
    ".block_m = 192, .block_n = 64, .stages = 3, .warpgroups = 3", block_m=192, warpgroups=3, m=200, k=640,
)  # fmt: skip
BF16_DENSE = Gemm(
    "bf16", "sm90_bf16_gemm_nt", "sm90_gemm.cuh",
    ".ab = Format::bf16, .scale_b = ScaleB::none, .block_m = 64, .block_n = 64, .stages = 3, .warpgroups = 1",
)  # fmt: skip
FP8_SWAPPED = Gemm(
    "fp8 swapped", "sm90_fp8_gemm_swap_ab", "sm90_gemm_swap_ab.cuh",
    ".swap_ab = true, .block_m = 16, .block_n = 64, .stages = 4, .warpgroups = 2, .k_warpgroups = 2, .split_k = 2",
    block_m=16, warpgroups=2, split_k=2, m=32, k=2048,
)  # fmt: skip
BF16_SWAPPED = Gemm(
    "bf16 swapped", "sm90_bf16_gemm_swap_ab", "sm90_gemm_swap_ab.cuh",
    ".ab = Format::bf16, .scale_b = ScaleB::none, .swap_ab = true, .block_m = 16, .block_n = 64, .stages = 4, "
    ".warpgroups = 2, .k_warpgroups = 2",
    block_m=16, warpgroups=2, m=32,
)  # fmt: skip
# One block along K: the next tile is staged soon after the last.
FP8_SHALLOW = replace(FP8_DENSE, name="fp8 shallow", m=256, n=256, k=128)
BF16_SHALLOW = replace(BF16_DENSE, name="bf16 shallow", m=256, n=256, k=64)
# Three rounds of the ring: the second tile starts in the other phase.
BF16_NINE = replace(BF16_DENSE, name="bf16 nine", k=576)
# Shares of four blocks and one: rank 1 is soon far ahead.
FP8_UNEVEN = replace(FP8_SWAPPED, name="fp8 swapped uneven", m=128, k=640)
GEMMS = [
    BF16_SWAPPED,
    FP8_SHALLOW,
    BF16_SHALLOW,
    FP8_UNEVEN,
    FP8_DENSE,
    FP8_MULTICAST,
    FP8_JOINED,
    BF16_DENSE,
    FP8_SWAPPED,
]

ELECT = "\n            if (!ptx::elect_one()) continue;"
WAIT_EMPTY = "ptx::mbarrier_wait(smem.empty(cursor.stage), cursor.phase ^ 1);"
LOADER_BUGS = [
    Bug("loader waits for the wrong phase", WAIT_EMPTY + ELECT, WAIT_EMPTY.replace(" ^ 1", "") + ELECT, 8),
    Bug("loader does not wait", WAIT_EMPTY + ELECT, ELECT),
    Bug("bytes of one operand only", "kPlan.a_stage_bytes + kPlan.b_stage_bytes);", "kPlan.a_stage_bytes);"),
    Bug("every lane loads", ELECT, "", 8),
    Bug("phase never flips", "phase ^= 1;", "", 8),
    Bug("barriers not fenced after init", "ptx::fence_mbarrier_init();", "", 8),
]
STORE_BUGS = [
    Bug("no proxy fence before the store", "ptx::fence_proxy_async();\n    ptx::named_barrier_sync(1", "ptx::named_barrier_sync(1", 8),
    Bug("no barrier before the store", "ptx::fence_proxy_async();\n    ptx::named_barrier_sync(1 + warpgroup, kWarpgroup);",
        "ptx::fence_proxy_async();"),
]  # fmt: skip
STAGING_BUG = Bug(
    "staging buffer reused while its store reads it", "    if (stores) ptx::tma_store_wait_read<0>();\n", ""
)
JOINED_BUGS = [
    Bug("scale of B left out", "chunk[i].x * b.x, chunk[i].y * b.y", "chunk[i].x, chunk[i].y * b.y", 8),
    Bug("scale of B of the next block along K", "chunk[i].y * b.y, chunk[i].z * b.z", "chunk[i].y * b.z, chunk[i].z * b.z", 8),
    Bug("scales staged as they come", "joins_scales(S) ? joined_scale_of(item) : item", "item", 8),
    Bug("rows of another half", "row / 16 * 16 + row % 8 * 2 + row / 8 % 2", "row / 16 * 16 + row % 8 * 2 + 1 - row / 8 % 2", 8),
]  # fmt: skip
FIRST_FENCE = "if (kb == 0 && cursor.phase == 0 && cursor.stage == 0) ptx::wgmma_fence();"
KERNEL_BUGS: list[tuple[Gemm, Bug]] = [
    *((FP8_JOINED, bug) for bug in JOINED_BUGS),
    *((gemm, bug) for gemm in (FP8_DENSE, BF16_DENSE, FP8_SWAPPED, BF16_SWAPPED) for bug in LOADER_BUGS),
    *((gemm, bug) for gemm in (FP8_DENSE, BF16_DENSE) for bug in STORE_BUGS),
    (FP8_SHALLOW, STAGING_BUG),
    (BF16_SHALLOW, STAGING_BUG),
    (FP8_DENSE, Bug("partial sums read in flight", "ptx::wgmma_wait<0>();\n            ptx::wgmma_keep(partial);",
                    "ptx::wgmma_keep(partial);", 8)),
    (FP8_DENSE, Bug("one arrival too many expected", "S.warpgroups * 4 * S.cluster_m * S.cluster_n);",
                    "S.warpgroups * 4 * S.cluster_m * S.cluster_n + 1);", 8)),
    (FP8_DENSE, Bug("scales written before the stage is free", WAIT_EMPTY + "\n#pragma unroll", "#pragma unroll")),
    (BF16_DENSE, Bug("stage released before wgmma has read it", "ptx::wgmma_wait<1>();\n            release<S>(smem, previous);",
                     "release<S>(smem, previous);")),
    (BF16_SWAPPED, Bug("stage released before wgmma has read it", "ptx::wgmma_wait<1>();\n            release<S>(smem, previous);",
                       "release<S>(smem, previous);")),
    (BF16_SWAPPED, Bug("partial sums read before they are staged",
                       "    DG_DEVICE void publish(u32 rank) {\n        if constexpr (S.split_k == 1) {\n            sync_math();",
                       "    DG_DEVICE void publish(u32 rank) {\n        if constexpr (S.split_k == 1) {")),
    (FP8_MULTICAST, Bug("only the own stage is released", "ptx::mbarrier_arrive_remote(ptx::map_to_rank(smem.empty(stage), lane));",
                        "ptx::mbarrier_arrive(smem.empty(stage));")),
    (FP8_MULTICAST, Bug("peers may load before the barriers exist",
                        "if constexpr (multicasts(S))\n        ptx::cluster_sync();\n    else\n        ptx::sync_threads();",
                        "ptx::sync_threads();")),
    (FP8_MULTICAST, Bug("block leaves while its peer still signals it",
                        "if constexpr (cluster_size_of(S) > 1) ptx::cluster_sync();\n}", "}")),
    (FP8_MULTICAST, Bug("multicast to the own block only", "constexpr u16 kBothCtas = 3;", "constexpr u16 kBothCtas = 1;", 8)),
    (FP8_SWAPPED, Bug("partial sums read before they are complete", "ptx::mbarrier_wait(smem_.partial_full(), round_ & 1);", "")),
    (FP8_SWAPPED, Bug("partial sums sent before every warp has staged", "sync_math();\n            if (round_ == 0)", "if (round_ == 0)")),
    (FP8_SWAPPED, Bug("partial sums sent without a proxy fence", "ptx::fence_proxy_async();  // the copies", "//", 8)),
    (FP8_SWAPPED, Bug("one peer too few expected", "(S.split_k - 1) * share_bytes_of<S>());", "(S.split_k - 2) * share_bytes_of<S>());")),
    (FP8_UNEVEN, Bug("partial sums overwritten while they are read",
                      "else if (round_ > 0)\n            ptx::mbarrier_wait(smem_.partial_empty(), (round_ - 1) & 1);", "")),
    (FP8_UNEVEN, Bug("block leaves while its peer still reads its partial sums",
                     "// A peer may still read this CTA's partial sums.\n        ptx::cluster_sync();", "")),
    # FP8 reads its partial sums after every block of K, BF16 its sums after every tile.
    (FP8_DENSE, Bug("wgmma.fence before the first tile only", "ptx::wgmma_fence();\n            multiply<S>(partial",
                    FIRST_FENCE + "\n            multiply<S>(partial", 8)),
    (BF16_NINE, Bug("wgmma.fence before the first tile only", "ptx::wgmma_fence();\n#pragma unroll\n        for (u32 wave",
                     FIRST_FENCE + "\n#pragma unroll\n        for (u32 wave", 8)),
    (FP8_SWAPPED, Bug("promotion overtakes wgmma", "ptx::wgmma_wait<1>();\n        complete(odd, next);", "complete(odd, next);", 8)),
]  # fmt: skip


@pytest.mark.parametrize("gemm", GEMMS, ids=lambda gemm: gemm.name)
def test_shipped_kernels_are_clean(launches: Callable[[Gemm], Launch], gemm: Gemm) -> None:
    check_clean(launches(gemm), flatten(gemm.source()))


@pytest.mark.parametrize(("gemm", "bug"), KERNEL_BUGS, ids=lambda value: value.name)
def test_shipped_kernel_bugs(launches: Callable[[Gemm], Launch], gemm: Gemm, bug: Bug) -> None:
    check_caught(launches(gemm), flatten(gemm.source()), bug)
