"""The functions of ptx/ that kernels call, each by its own name: copies, bytes of registers, loads, stores, lanes."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

Array = np.ndarray[Any, np.dtype[Any]]
GLOBAL = "#include <deep_gemm/ptx/global.h>\n"


def include(*names: str) -> str:
    return GLOBAL + "".join(f"#include <deep_gemm/ptx/{name}.h>\n" for name in names)


# ---- Copies

BARRIER = (
    "const u32 tile = dynamic_smem(), bar = tile + 1024;"
    "if (threadIdx.x == 0) {{ mbarrier_init(bar, {count}); fence_mbarrier_init(); }} sync_threads();"
)
READ_BACK = "for (u32 i = threadIdx.x; i < 256; i += blockDim.x) p.out[i] = ld_shared_u32(tile + 4 * i);"


@pytest.mark.parametrize("policy", ["l2_evict_first", "l2_evict_last"])
@pytest.mark.parametrize("size", [16, 1008])
def test_bulk_load(run: Any, rng: np.random.Generator, policy: str, size: int) -> None:
    """As many bytes as asked, neither before nor behind them, each counted by the barrier."""
    x, out = rng.integers(0, 2**32, 512, dtype=np.uint32), np.zeros(256, np.uint32)
    run(
        BARRIER.format(count=1)
        + "for (u32 i = threadIdx.x; i < 256; i += 32) st_shared_u32(tile + 4 * i, 7); fence_proxy_async(); sync_threads();"
        f"if (threadIdx.x == 0) {{ mbarrier_arrive_expect_tx(bar, {size});"
        f"  bulk_load(tile + 16, p.x + 40, {size}, bar, {policy}()); }}"
        f"mbarrier_wait(bar, 0); {READ_BACK}",
        {"x": x, "out": out}, smem_bytes=1040, prelude=include("shared_words"),
    )  # fmt: skip
    expected = np.full(256, 7, np.uint32)
    expected[4 : 4 + size // 4] = x[40 : 40 + size // 4]
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("finish", ["arrive", "wait_all"])
def test_cp_async_4(run_seed: Any, rng: np.random.Generator, finish: str) -> None:
    """Words to shared memory in any order, zeros in the place of those that are not there."""
    x, out = rng.integers(0, 2**32, 256, dtype=np.uint32), np.zeros(256, np.uint32)
    done = (
        "copy_async_arrive(bar); mbarrier_wait(bar, 0);"
        if finish == "arrive"
        else "copy_async_wait_all(); sync_threads();"
    )
    run_seed(
        BARRIER.format(count=64)
        + "for (u32 i = threadIdx.x; i < 256; i += 64) cp_async<4>(tile + 4 * (i ^ 5), p.x + i, i % 3 == 0 ? 0 : 4);"
        f"{done} {READ_BACK}",
        {"x": x, "out": out}, block=64, smem_bytes=1040, prelude=include("stream"),
    )  # fmt: skip
    index = np.arange(256) ^ 5
    np.testing.assert_array_equal(out, np.where(index % 3 == 0, 0, x[index]))


def test_stream_copies(run: Any, rng: np.random.Generator) -> None:
    """cp_async_16: two groups of chunks, waited for one after the other; of every fourth chunk only 8 bytes are there."""
    x, out = rng.integers(0, 2**32, 256, dtype=np.uint32), np.zeros(256, np.uint32)
    run(
        "const u32 tile = dynamic_smem();"
        "for (u32 i = threadIdx.x; i < 64; i += 32) { cp_async_16(tile + 16 * i, p.x + 4 * i, i % 4 == 3 ? 8 : 16); cp_async_commit(); }"
        "cp_async_wait<1>(); sync_threads();"
        "for (u32 i = threadIdx.x; i < 128; i += 32) p.out[i] = ld_shared_u32(tile + 4 * i);"
        "cp_async_wait<0>(); sync_threads();"
        "for (u32 i = 128 + threadIdx.x; i < 256; i += 32) p.out[i] = ld_shared_u32(tile + 4 * i);",
        {"x": x, "out": out}, smem_bytes=1024, prelude=include("shared_words", "stream"),
    )  # fmt: skip
    index = np.arange(256)
    np.testing.assert_array_equal(out, np.where((index // 4 % 4 == 3) & (index % 4 >= 2), 0, x))


def test_tma_round_trip(run: Any, tensor_map: Any, rng: np.random.Generator) -> None:
    """tma_load_3d and tma_store_3d: a box that hangs over the edge is filled with zeros, and cut when it is stored."""
    x, out = rng.integers(0, 256, (3, 10, 128), dtype=np.uint8), np.full((3, 10, 128), 9, np.uint8)
    maps = {
        name: tensor_map(name, "int8", (128, 10, 3), (128, 1280), (128, 8, 1), 0) for name in ("x", "out")
    }
    run(
        BARRIER.format(count=1)
        + "if (threadIdx.x == 0) { prefetch_tensor_map(p.from); mbarrier_arrive_expect_tx(bar, 1024);"
        "  tma_load_3d(tile, p.from, bar, 0, 4, 1, l2_evict_first()); mbarrier_wait(bar, 0);"
        "  tma_store_3d(p.to, tile, 0, 5, 2); tma_store_commit(); tma_store_wait_read<0>(); }"
        "sync_threads(); p.last[threadIdx.x] = ld_shared_u32(tile + 7 * 128 + 4 * threadIdx.x);",
        {"from": maps["x"], "to": maps["out"], "x": x, "out": out, "last": np.ones(32, np.uint32)},
        smem_bytes=1040, prelude=include("shared_words"),
    )  # fmt: skip
    expected = np.full_like(out, 9)
    expected[2, 5:10] = x[1, 4:9]
    np.testing.assert_array_equal(out, expected)


def test_copy_to_cluster(run: Any, rng: np.random.Generator) -> None:
    """Each CTA sends its shared memory to the other, whose barrier counts the bytes."""
    x, out = rng.integers(0, 2**32, 512, dtype=np.uint32), np.zeros(512, np.uint32)
    run(
        "const u32 tile = dynamic_smem(), bar = tile + 2048, rank = cluster_rank(), other = rank ^ 1;"
        "if (threadIdx.x == 0) { mbarrier_init(bar, 1); fence_mbarrier_init(); mbarrier_arrive_expect_tx(bar, 1024); }"
        "for (u32 i = threadIdx.x; i < 256; i += 32) st_shared_u32(tile + 4 * i, p.x[256 * rank + i]);"
        "fence_proxy_async(); cluster_sync();"
        "if (threadIdx.x == 0) copy_to_cluster(map_to_rank(tile + 1024, other), tile, 1024, map_to_rank(bar, other));"
        "mbarrier_wait(bar, 0);"
        "for (u32 i = threadIdx.x; i < 256; i += 32) p.out[256 * rank + i] = ld_shared_u32(tile + 1024 + 4 * i); cluster_sync();",
        {"x": x, "out": out}, grid=2, cluster=2, smem_bytes=2064, prelude=include("shared_words"),
    )  # fmt: skip
    np.testing.assert_array_equal(out, np.concatenate([x[256:], x[:256]]))


# ---- Bytes of registers and lanes of a warp


def permuted(a: Array, b: Array, selector: Array, signs: bool) -> Array:
    pool = np.concatenate([a[:, None].view(np.uint8), b[:, None].view(np.uint8)], 1)
    out = np.zeros((len(a), 4), np.uint8)
    for i in range(4):
        nibble = selector >> (4 * i) & 0xF
        byte = pool[np.arange(len(a)), nibble & 7]
        out[:, i] = np.where((nibble >= 8) & signs, np.where(byte >= 128, 255, 0), byte)
    return out.view(np.uint32)[:, 0]


@pytest.mark.parametrize("function", ["permute_bytes", "permute_bytes_or_signs"])
def test_permutes(run: Any, rng: np.random.Generator, function: str) -> None:
    a, b = (rng.integers(0, 2**32, 4096, dtype=np.uint32) for _ in range(2))
    selector, out = rng.integers(0, 2**16, 4096, dtype=np.uint32), np.zeros(4096, np.uint32)
    run(f"const u32 i = blockIdx.x * 32 + threadIdx.x; p.out[i] = {function}(p.a[i], p.b[i], p.s[i]);",
        {"a": a, "b": b, "s": selector, "out": out}, grid=128, prelude=include("bytes"))  # fmt: skip
    np.testing.assert_array_equal(out, permuted(a, b, selector, function.endswith("signs")))


def test_lanes(run: Any) -> None:
    out = np.zeros((8, 64), np.uint32)
    run(
        "const u32 t = threadIdx.x, v = t * t + 1; u32* out = p.out + t;"
        "out[0] = shfl_idx(v, 5); out[64] = shfl_up(v, 3); out[128] = ptx::ballot(t % 5 == 1);"
        "out[192] = lowest_bit(v << t % 7); out[256] = highest_bit(v << t % 7); out[320] = warp_index(); out[384] = lane_index();"
        "out[448] = elect_one(); sync_warp();",
        {"out": out}, block=64,
    )  # fmt: skip
    t = np.arange(64, dtype=np.uint32)
    v, lane = t * t + 1, t % 32
    shifted = (v.astype(np.uint64) << (t % 7)) & 0xFFFFFFFF
    vote = np.array([sum(1 << i for i in range(32) if (w * 32 + i) % 5 == 1) for w in (0, 1)])
    expected = [v[t // 32 * 32 + 5], np.where(lane < 3, v, v[np.maximum(t, 3) - 3]), vote[t // 32]]
    expected += [
        [(int(s) & -int(s)).bit_length() - 1 for s in shifted],
        [int(s).bit_length() - 1 for s in shifted],
        t // 32,
        lane,
    ]
    np.testing.assert_array_equal(out[:7], np.array(expected, np.uint32))
    assert out[7].reshape(2, 32).sum(1).tolist() == [1, 1]


# ---- Loads and stores

FORMS = [  # store from u32 words v, load back: (suffix, words, load, store)
    ("u32", 1, "{0} = ld_shared_u32(at);", "st_shared_u32(at, v[0]);"),
    ("v2_u32", 2, "const UInt2 x = ld_shared_v2_u32(at); {0} = x.x; {1} = x.y;", "st_shared_v2_u32(at, v[0], v[1]);"),
    ("v4_u32", 4, "const UInt4 x = ld_shared_v4_u32(at); {0} = x.x; {1} = x.y; {2} = x.z; {3} = x.w;",
     "st_shared_v4_u32(at, {v[0], v[1], v[2], v[3]});"),
    ("f32", 1, "{0} = __float_as_uint(ld_shared_f32(at));", "st_shared_f32(at, __uint_as_float(v[0]));"),
    ("v2_f32", 2, "const Float2 x = ld_shared_v2_f32(at); {0} = __float_as_uint(x.x); {1} = __float_as_uint(x.y);",
     "st_shared_v2_f32(at, __uint_as_float(v[0]), __uint_as_float(v[1]));"),
    ("v4_f32", 4, "const Float4 x = ld_shared_v4_f32(at); {0} = __float_as_uint(x.x); {1} = __float_as_uint(x.y);"
     "{2} = __float_as_uint(x.z); {3} = __float_as_uint(x.w);", "st_shared_v4_u32(at, {v[0], v[1], v[2], v[3]});"),
    ("u8", 1, "for (u32 i = 0; i < 4; ++i) {0} |= ld_shared_u8(at + i) << 8 * i;", "st_shared_u32(at, v[0]);"),
    ("u16", 1, "{0} = ld_shared_u16(at) | ld_shared_u16(at + 2) << 16;", "st_shared_u32(at, v[0]);"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "words", "load", "store"), FORMS, ids=[form[0] for form in FORMS])
def test_shared(run: Any, rng: np.random.Generator, name: str, words: int, load: str, store: str) -> None:
    """Stored by one lane, loaded by another; floats of every bit pattern but signalling NaN."""
    x, out = rng.integers(0, 2**31 - 2**24, 32 * words, dtype=np.uint32), np.zeros(32 * words, np.uint32)
    targets = (
        load.format(*(f"w[{i}]" for i in range(words)))
        if "for (" not in load
        else load.replace("{0}", "w[0]")
    )
    run(
        f"u32 v[{words}], w[{words}] = {{}}; for (u32 i = 0; i < {words}; ++i) v[i] = p.x[threadIdx.x * {words} + i];"
        f"{{ const u32 at = dynamic_smem() + threadIdx.x * {4 * words}; {store} }} sync_threads();"
        f"{{ const u32 at = dynamic_smem() + (31 - threadIdx.x) * {4 * words}; {targets} }}"
        f"for (u32 i = 0; i < {words}; ++i) p.out[threadIdx.x * {words} + i] = w[i];",
        {"x": x, "out": out}, smem_bytes=128 * words, prelude=include("shared_words"),
    )  # fmt: skip
    np.testing.assert_array_equal(out.reshape(32, -1), x.reshape(32, -1)[::-1])


def test_global(run: Any, rng: np.random.Generator) -> None:
    """Each width of load with a store of its kind, and the conversions of an epilogue."""
    x, out = rng.standard_normal((32, 16)).astype(np.float32), np.zeros((32, 16), np.float32)
    half, sums = np.zeros((32, 2), np.uint16), np.zeros(2, np.uint32)
    run(
        "const float* x = p.x + threadIdx.x * 16; float* d = p.out + threadIdx.x * 16; u16* h = p.half + threadIdx.x * 2;"
        "st_global_f32(d, ld_global_f32(x)); st_global_u32(d + 1, ld_global_u32(x + 1));"
        "const Float2 a = ld_global_v2_f32(x + 2); st_global_v2_f32(d + 2, a.x, a.y);"
        "const Float4 b = ld_global_v4_f32(x + 4); st_global_v4_f32(d + 4, b.x, b.y, b.z, b.w);"
        "const UInt4 c = ld_global_v4_u32(x + 8); st_global_v2_u32(d + 8, c.x, c.y); st_global_v2_u32(d + 10, c.z, c.w);"
        "const i32 s = ld_global_s32(reinterpret_cast<const i32*>(x + 12)); st_global_u32(d + 12, s);"
        "const u32 packed = cvt_bf16x2(x[13], x[14]); st_global_u32(h, packed); __syncwarp();"
        "d[13] = ld_global_bf16(h); d[14] = __uint_as_float(ld_global_u16(h + 1) << 16); st_global_u16(d + 15, 0x1234);"
        "const u32 before = atomic_add_global(p.sums, 1); atomic_add_global(p.sums + 1, before);",
        {"x": x, "out": out, "half": half, "sums": sums}, prelude=GLOBAL,
    )  # fmt: skip
    np.testing.assert_array_equal(out[:, :13], x[:, :13])
    rounded = x[:, 13:15].astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(half, rounded.view(np.uint16))
    np.testing.assert_array_equal(out[:, 13:15], rounded.astype(np.float32))
    assert (out.view(np.uint16)[:, 30] == 0x1234).all() and sums.tolist() == [32, 31 * 16]


def test_stmatrix(run: Any, rng: np.random.Generator) -> None:
    """Four 8 x 8 matrices: lane l gives row l % 8 of matrix l / 8 and holds two elements of each."""
    matrices, out = rng.integers(0, 2**16, (4, 8, 8), dtype=np.uint16), np.zeros((4, 8, 8), np.uint16)
    words = np.ascontiguousarray(matrices.reshape(4, 32, 2)).view(np.uint32).reshape(4, 32)
    run(
        "const u32 t = threadIdx.x, tile = dynamic_smem();"
        "stmatrix_x4(tile + t * 16, p.x[t], p.x[32 + t], p.x[64 + t], p.x[96 + t]); sync_warp();"
        "for (u32 i = 0; i < 4; ++i) ((u32*)p.out)[i * 32 + t] = ld_shared_u32(tile + (i * 32 + t) * 4);",
        {"x": words, "out": out}, smem_bytes=512, prelude=include("shared_words"),
    )  # fmt: skip
    np.testing.assert_array_equal(out, matrices)
