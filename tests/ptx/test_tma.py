"""TMA tiles against an index formula: ranks 1 to 5, every swizzle, out-of-bounds and negative coordinates, stores with
clipping, reductions, bulk copies; and the tensor maps that must be refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from deep_gemm import _C

Array = np.ndarray[Any, np.dtype[Any]]

WAIT_STORE = 'asm volatile("cp.async.bulk.commit_group; cp.async.bulk.wait_group 0;" ::: "memory");'


@dataclass(frozen=True)
class Case:
    shape: tuple[int, ...]  # innermost last, as numpy has it
    box: tuple[int, ...]
    coords: tuple[int, ...]
    swizzle: int = 0

    def __str__(self) -> str:
        return f"{'x'.join(map(str, self.shape))}-box{'x'.join(map(str, self.box))}-at{self.coords}-s{self.swizzle}"


CASES = [
    Case((256,), (64,), (32,)),
    Case((256,), (64,), (208,)),
    Case((200,), (64,), (160,)),
    Case((64, 128), (8, 64), (16, 32)),
    Case((64, 128), (8, 64), (60, -16)),
    Case((64, 128), (8, 64), (-3, 96)),
    Case((64, 128), (8, 64), (100, 0)),
    *(Case((40, 256), (24, 128), (at, 128), 128) for at in (0, 7, 30, -5)),
    *(Case((40, 128), (16, 64), (at, 64), 64) for at in (0, 30)),
    *(Case((40, 96), (16, 32), (at, 32), 32) for at in (0, 30, -9)),
    Case((5, 12, 64), (2, 8, 32), (1, 6, 16)),
    Case((2, 3, 640), (1, 1, 256), (1, 2, 272)),
    Case((2, 3, 160), (1, 1, 32), (1, 1, 144)),
    Case((5, 12, 128), (3, 8, 128), (3, -2, 16), 128),
    Case((3, 4, 6, 48), (2, 2, 4, 16), (2, -1, 3, 32)),
    Case((2, 3, 4, 5, 32), (2, 2, 2, 2, 16), (1, 2, 1, -1, 16)),
]


def swizzled(offset: Array, swizzle: int) -> Array:
    """16-byte chunks move within the swizzle span by XOR with the row bits above it."""
    mask = {0: 0, 32: 0x10, 64: 0x30, 128: 0x70}[swizzle]
    return offset ^ (offset >> 3 & mask)


def box_of(tensor: Array, case: Case) -> Array:
    """The box with zeros outside the tensor."""
    out = np.zeros(case.box, tensor.dtype)
    inside = [
        [(c + i, i) for i in range(b) if 0 <= c + i < s]
        for c, b, s in zip(case.coords, case.box, case.shape, strict=True)
    ]
    if all(inside):
        source = np.ix_(*([pair[0] for pair in axis] for axis in inside))
        target = np.ix_(*([pair[1] for pair in axis] for axis in inside))
        out[target] = tensor[source]
    return out


def in_shared_order(box: Array, swizzle: int) -> Array:
    raw = np.ascontiguousarray(box).view(np.uint8).ravel()
    out = np.zeros_like(raw)
    out[swizzled(np.arange(raw.size), swizzle)] = raw
    return out


def map_of(
    tensor_map: Any, array: str, tensor: Array, box: tuple[int, ...], format: str, swizzle: int
) -> Any:
    return tensor_map(array=array, format=format, dims=tensor.shape[::-1], strides_bytes=tensor.strides[-2::-1], box=box[::-1],
                      swizzle=swizzle)  # fmt: skip


def coordinates(coords: tuple[int, ...], first: int) -> tuple[str, str]:
    """asm text and operands, innermost first."""
    text = ", ".join(f"%{first + i}" for i in range(len(coords)))
    return f"{{{text}}}", ", ".join(f'"r"({c})' for c in coords[::-1])


def load_body(rank: int, coords: tuple[int, ...], num_bytes: int) -> str:
    text, operands = coordinates(coords, 3)
    return (
        f"const u32 tile = dynamic_smem(), bar = tile + {num_bytes};"
        "if (threadIdx.x == 0) { mbarrier_init(bar, 1); fence_mbarrier_init(); } __syncthreads();"
        f"if (threadIdx.x == 0) {{ mbarrier_arrive_expect_tx(bar, {num_bytes});"
        f'  asm volatile("cp.async.bulk.tensor.{rank}d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], '
        f'[%1, {text}], [%2];" :: "r"(tile), "l"(&p.map), "r"(bar), {operands} : "memory"); }}'
        "mbarrier_wait(bar, 0);"
        f"for (u32 i = 4 * threadIdx.x; i < {num_bytes}; i += 4 * blockDim.x) {{ u32 v; "
        'asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(tile + i)); *(u32*)(p.out + i) = v; }'
    )


@pytest.mark.parametrize("dtype", [np.uint8, ml_dtypes.bfloat16, np.float32], ids=["u8", "bf16", "fp32"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_load(run: Any, tensor_map: Any, rng: np.random.Generator, case: Case, dtype: Any) -> None:
    size = np.dtype(dtype).itemsize
    if case.swizzle and size > 1:  # the same bytes: narrower boxes of wider elements
        case = Case((*case.shape[:-1], case.shape[-1] // size), (*case.box[:-1], case.box[-1] // size),
                    (*case.coords[:-1], case.coords[-1] // size), case.swizzle)  # fmt: skip
    tensor = rng.integers(0, 256, (*case.shape[:-1], case.shape[-1] * size), dtype=np.uint8).view(dtype)
    if case.box[-1] * size % 16 or (tensor.strides[0] % 16 and tensor.ndim > 1):
        pytest.skip("not a legal box for this element size")
    num_bytes = int(np.prod(case.box)) * size
    out = np.full(num_bytes, 0xEE, np.uint8)
    name = {1: "int8", 2: "bf16", 4: "fp32"}[size]
    run(load_body(len(case.shape), case.coords, num_bytes),
        {"map": map_of(tensor_map, "x", tensor, case.box, name, case.swizzle), "x": tensor.view(np.uint8), "out": out},
        block=64, smem_bytes=num_bytes + 16)  # fmt: skip
    np.testing.assert_array_equal(out, in_shared_order(box_of(tensor, case), case.swizzle))


def test_fp4_pairs_travel_as_bytes(run: Any, tensor_map: Any, rng: np.random.Generator) -> None:
    """The map counts 4-bit elements, the coordinates of the instruction count bytes."""
    x = rng.integers(0, 256, (16, 96), dtype=np.uint8)
    case = Case(x.shape, (8, 64), (12, 48))
    out = np.full(512, 0xEE, np.uint8)
    maps = tensor_map(
        array="x", format="fp4_e2m1", dims=(192, 16), strides_bytes=(96,), box=(128, 8), swizzle=64
    )
    run(load_body(2, case.coords, 512), {"map": maps, "x": x, "out": out}, block=64, smem_bytes=528)
    np.testing.assert_array_equal(out, in_shared_order(box_of(x, case), 64))


def store_body(rank: int, coords: tuple[int, ...], num_bytes: int, op: str) -> str:
    text, operands = coordinates(coords, 2)
    return (
        "const u32 tile = dynamic_smem();"
        f"for (u32 i = 4 * threadIdx.x; i < {num_bytes}; i += 4 * blockDim.x) "
        'asm volatile("st.shared.u32 [%0], %1;" :: "r"(tile + i), "r"(*(const u32*)(p.x + i)) : "memory");'
        "fence_proxy_async(); __syncthreads();"
        f'if (threadIdx.x == 0) {{ asm volatile("{op} [%0, {text}], [%1];" :: "l"(&p.map), "r"(tile), {operands} : "memory"); '
        f"{WAIT_STORE} }}"
    )


# A store that starts before the tensor is an illegal instruction, on the H200 and on the emulated device.
STORES = [case for case in CASES if min(case.coords) >= 0]


@pytest.mark.parametrize("case", STORES, ids=str)
def test_store(run: Any, tensor_map: Any, rng: np.random.Generator, case: Case) -> None:
    """Bytes: outside the tensor nothing is written, inside the box everything is."""
    target = rng.integers(0, 256, case.shape, dtype=np.uint8)
    box = rng.integers(0, 256, case.box, dtype=np.uint8)
    expected = target.copy()
    index = np.indices(case.box).reshape(len(case.box), -1) + np.array(case.coords)[:, None]
    inside = np.all((index >= 0) & (index < np.array(case.shape)[:, None]), axis=0)
    expected[tuple(index[:, inside])] = box.ravel()[inside]
    rank = len(case.shape)
    run(store_body(rank, case.coords, box.size, f"cp.async.bulk.tensor.{rank}d.global.shared::cta.tile.bulk_group"),
        {"map": map_of(tensor_map, "target", target, case.box, "int8", case.swizzle), "target": target,
         "x": in_shared_order(box, case.swizzle)}, block=64, smem_bytes=box.size)  # fmt: skip
    np.testing.assert_array_equal(target, expected)


def test_store_before_the_tensor_is_a_fault(runners: Any, tensor_map: Any) -> None:
    case = Case((64, 128), (8, 64), (60, -16))
    target, box = np.zeros(case.shape, np.uint8), np.zeros(512, np.uint8)
    body = store_body(2, case.coords, box.size, "cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group")
    arguments = {"map": map_of(tensor_map, "target", target, case.box, "int8", 0), "target": target, "x": box}
    with pytest.raises(_C.Error, match="coordinate -16 of dimension 0"):
        runners("emulator:sm_90a")(body, arguments, block=64, smem_bytes=box.size)


@pytest.mark.parametrize("dtype", [np.uint8, ml_dtypes.bfloat16, np.float32], ids=["u8", "bf16", "fp32"])
@pytest.mark.parametrize("store", [False, True], ids=["load", "store"])
def test_an_inner_coordinate_between_16_bytes_is_a_fault(
    runners: Any, tensor_map: Any, store: bool, dtype: Any
) -> None:
    """Which an H200 answers with an illegal instruction."""
    size = np.dtype(dtype).itemsize
    x, tile = np.zeros((2, 3, 640 // size), dtype), np.zeros(64, np.uint8)
    coords = (1, 2, 152 // size)
    maps = map_of(tensor_map, "x", x, (1, 1, 64 // size), {1: "int8", 2: "bf16", 4: "fp32"}[size], 0)
    run = runners("emulator:sm_90a")
    with pytest.raises(_C.Error, match=f"coordinate {152 // size} of dimension 0 is 152 bytes"):
        if store:
            op = "cp.async.bulk.tensor.3d.global.shared::cta.tile.bulk_group"
            run(store_body(3, coords, 64, op).replace("p.x", "p.tile"), {"map": maps, "x": x.view(np.uint8), "tile": tile},
                smem_bytes=64)  # fmt: skip
        else:
            run(load_body(3, coords, 64), {"map": maps, "x": x.view(np.uint8), "out": tile}, smem_bytes=80)


REDUCTIONS: list[tuple[str, str, Any]] = [
    ("add", "fp32", np.float32), ("add", "bf16", ml_dtypes.bfloat16), ("add", "fp16", np.float16), ("add", "int32", np.int32),
    ("min", "int32", np.int32), ("max", "int32", np.int32), ("and", "int32", np.int32), ("or", "int32", np.int32),
    ("xor", "int32", np.int32), ("min", "bf16", ml_dtypes.bfloat16), ("max", "fp16", np.float16),
]  # fmt: skip


@pytest.mark.parametrize(("op", "format", "dtype"), REDUCTIONS, ids=lambda v: v if isinstance(v, str) else "")
def test_reduce(
    run: Any, tensor_map: Any, rng: np.random.Generator, op: str, format: str, dtype: Any
) -> None:
    draw = lambda shape: (rng.standard_normal(shape) * 100).astype(np.float32).astype(dtype)  # noqa: E731
    target, box = draw((20, 64)), draw((16, 32))
    expected = target.copy()
    function = {"add": np.add, "min": np.minimum, "max": np.maximum, "and": np.bitwise_and, "or": np.bitwise_or,
                "xor": np.bitwise_xor}[op]  # fmt: skip
    expected[10:20, 40:64] = function(target[10:20, 40:64], box[:10, :24])
    before = box.view(np.uint8).ravel()
    run(store_body(2, (10, 40), before.size, f"cp.reduce.async.bulk.tensor.2d.global.shared::cta.{op}.tile.bulk_group"),
        {"map": map_of(tensor_map, "target", target, box.shape, format, 0), "target": target, "x": before},
        block=64, smem_bytes=before.size)  # fmt: skip
    np.testing.assert_array_equal(target.view(np.uint8), expected.view(np.uint8))


def test_bulk_copy_both_ways(run: Any, rng: np.random.Generator) -> None:
    x, out = rng.integers(0, 256, 4096, dtype=np.uint8), np.zeros(4096, np.uint8)
    run("const u32 tile = dynamic_smem(), bar = tile + 1024; if (threadIdx.x == 0) { mbarrier_init(bar, 1); fence_mbarrier_init(); "
        "mbarrier_arrive_expect_tx(bar, 1008);"
        '  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], 1008, [%2];" '
        '     :: "r"(tile), "l"(p.x + 512), "r"(bar) : "memory"); mbarrier_wait(bar, 0);'
        '  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], 992;" :: "l"(p.out + 64), "r"(tile + 16) : "memory"); '
        f"{WAIT_STORE} }}", {"x": x, "out": out}, smem_bytes=1040)  # fmt: skip
    expected = np.zeros_like(out)
    expected[64 : 64 + 992] = x[528 : 528 + 992]
    np.testing.assert_array_equal(out, expected)


LEGAL: dict[str, Any] = {
    "address": 1 << 20,
    "format": "bf16",
    "dims": [128, 64],
    "strides_bytes": [256],
    "box": [64, 8],
    "swizzle": 128,
}
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"address": (1 << 20) + 8}, "address"),
    ({"dims": [0, 64]}, r"dims\[0\]"),
    ({"dims": [128, 2**32 + 1]}, r"dims\[1\]"),
    ({"strides_bytes": [264]}, "multiple of 16"),
    ({"strides_bytes": [2**40]}, "2\\^40"),
    ({"box": [64, 257]}, r"box\[1\]"),
    ({"box": [64, 0]}, r"box\[1\]"),
    ({"box": [128, 8]}, "swizzle span"),
    ({"box": [4, 8], "swizzle": 0}, "16 bytes"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED, ids=[m for _, m in REFUSED])
def test_illegal_maps_are_refused(run: Any, change: dict[str, Any], message: str) -> None:
    run.device.encode_tensor_map(**LEGAL)
    with pytest.raises(ValueError, match=message) as caught:
        run.device.encode_tensor_map(**{**LEGAL, **change})
    assert "expected" in str(caught.value)


@pytest.mark.parametrize("steps", [1, 2])
def test_faults(runners: Callable[..., Any], tensor_map: Any, steps: int) -> None:
    """A tile at a misaligned shared address, and a map that was changed after encoding."""
    x = np.zeros((8, 64), np.uint8)
    maps = map_of(tensor_map, "x", x, (8, 64), "int8", 0)
    body = load_body(2, (0, 0), 512)
    run = runners("emulator:sm_90a")
    if steps == 1:
        body = body.replace('"r"(tile)', '"r"(tile + 16)')
        match = "multiple of 128"
    else:
        body = (
            "TensorMap copy = p.map; copy.words[3] += 1; *(TensorMap*)p.scratch = copy; __threadfence();"
            + body
        )
        body = body.replace('"l"(&p.map)', '"l"(p.scratch)')
        match = "changed after encoding"
    with pytest.raises(_C.Error, match=match):
        run(
            body,
            {"map": maps, "x": x, "out": np.zeros(512, np.uint8), "scratch": np.zeros(128, np.uint8)},
            smem_bytes=1024,
        )
