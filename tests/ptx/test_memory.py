"""Loads, stores, atomics, cp.async and the matrix loads and stores of a warp."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

Array = np.ndarray[Any, np.dtype[Any]]


@pytest.mark.parametrize("width", [1, 2, 4])
@pytest.mark.parametrize("space", ["global", "shared"])
def test_vector_loads_and_stores(run: Any, space: str, width: int) -> None:
    x = np.arange(128, dtype=np.uint32) * 3 + 1
    out = np.zeros_like(x)
    vector = f".v{width}" if width > 1 else ""
    registers = ", ".join(f"%{i}" for i in range(width))
    registers = f"{{{registers}}}" if width > 1 else registers
    outputs = ", ".join(f'"=r"(v[{i}])' for i in range(width))
    inputs = ", ".join(f'"r"(v[{i}])' for i in range(width))
    stored = registers.replace("%", "%%").replace("%%", "%")
    shift = ", ".join(f"%{i + 1}" for i in range(width))
    shifted = f"{{{shift}}}" if width > 1 else shift
    move = f"u32 v[{width}]; const u32 at = {width} * threadIdx.x;"
    load = f'asm volatile("ld.global{vector}.u32 {stored}, [%{width}];" : {outputs} : "l"(p.x + at));'
    if space == "shared":
        move += " const u32 tile = dynamic_smem();"
        through = (
            f'asm volatile("st.shared{vector}.u32 [%0], {shifted};" :: "r"(tile + 4 * at), {inputs} : "memory"); __syncthreads();'
            f'asm volatile("ld.shared{vector}.u32 {stored}, [%{width}];" : {outputs} : "r"(tile + 4 * at));'
        )
    else:
        through = ""
    store = f'asm volatile("st.global{vector}.u32 [%0], {shifted};" :: "l"(p.out + at), {inputs} : "memory");'
    run(f"{move} {load} {through} {store}", {"x": x, "out": out}, block=128 // width, smem_bytes=512)
    np.testing.assert_array_equal(out, x)


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("kind", ["u8", "s8", "u16", "s16", "u32", "s32"])
def test_narrow_loads_extend(run: Any, rng: np.random.Generator, kind: str, bits: int) -> None:
    """Into wider registers, in some lanes only: upper bits are the sign's, or zero; idle lanes keep what they had."""
    dtype = np.dtype(kind.replace("s", "int").replace("u", "uint"))
    x = rng.integers(0, 256, 32 * dtype.itemsize, dtype=np.uint8)
    result, constraint, c = (np.uint32, "r", "u32") if bits == 32 else (np.uint64, "l", "u64")
    out = np.zeros(32, result)
    load = f"@q ld.global.{kind} %0, [%1];"
    run(
        f'{c} r = 77; asm volatile("{{.reg .pred q; setp.ne.u32 q, %2, 0; {load}}}" : "+{constraint}"(r) : '
        f'"l"(p.x + {dtype.itemsize} * threadIdx.x), "r"(threadIdx.x % 3)); p.out[threadIdx.x] = r;',
        {"x": x, "out": out},
    )
    signed = np.int32 if bits == 32 else np.int64
    expected = x.view(dtype).astype(np.int64).astype(signed).view(result)
    np.testing.assert_array_equal(out, np.where(np.arange(32) % 3 != 0, expected, result(77)))


ATOMICS = {
    "add.u32": np.add, "min.u32": np.minimum, "max.u32": np.maximum, "min.s32": np.minimum, "max.s32": np.maximum,
    "and.b32": np.bitwise_and, "or.b32": np.bitwise_or, "xor.b32": np.bitwise_xor,
}  # fmt: skip


@pytest.mark.parametrize("op", list(ATOMICS))
@pytest.mark.parametrize("space", ["global", "shared"])
def test_integer_atomics(run: Any, rng: np.random.Generator, space: str, op: str) -> None:
    x = rng.integers(0, 2**32, 256, dtype=np.uint32)
    out = np.array([0x0F0F5A5A], np.uint32)
    if space == "global":
        body = f'asm volatile("red.global.{op} [%0], %1;" :: "l"(p.out), "r"(p.x[threadIdx.x]) : "memory");'
    else:
        body = (
            "__shared__ u32 cell; if (threadIdx.x == 0) cell = p.out[0]; __syncthreads(); u32 old;"
            f'asm volatile("atom.shared.{op} %0, [%1], %2;" : "=r"(old) : "r"((u32)__cvta_generic_to_shared(&cell)), '
            '"r"(p.x[threadIdx.x]) : "memory"); __syncthreads(); if (threadIdx.x == 0) p.out[0] = cell;'
        )
    start = out.copy()
    run(body, {"x": x, "out": out}, block=256)
    view = np.int32 if ".s32" in op else np.uint32
    expected = ATOMICS[op].reduce(np.concatenate([start.view(view), x.view(view)]))
    assert out.view(view)[0] == np.asarray(expected).astype(view)


def test_atomics_return_every_old_value(run: Any) -> None:
    out, counter = np.zeros(512, np.uint32), np.zeros(1, np.uint32)
    run("p.out[blockIdx.x * blockDim.x + threadIdx.x] = atomicAdd(p.counter, 1u);", {"out": out, "counter": counter},
        grid=4, block=128)  # fmt: skip
    assert counter[0] == 512
    np.testing.assert_array_equal(np.sort(out), np.arange(512))


def test_compare_and_swap_and_exchange(run: Any) -> None:
    cell, out = np.array([7], np.uint32), np.zeros(64, np.uint32)
    run("u32 seen = p.cell[0], was; do { was = seen; seen = atomicCAS(p.cell, was, was * 3 + 1); } while (seen != was);"
        " p.out[threadIdx.x] = was;", {"cell": cell, "out": out}, block=64)  # fmt: skip
    chain = [7]
    for _ in range(64):
        chain.append((chain[-1] * 3 + 1) & 0xFFFFFFFF)
    assert cell[0] == chain[64]
    assert sorted(out.tolist()) == sorted(chain[:64])


def test_float_atomics(run: Any, rng: np.random.Generator) -> None:
    x = rng.integers(-50, 50, 256).astype(np.float32)
    out = np.array([0.5], np.float32)
    run("atomicAdd(p.out, p.x[threadIdx.x]);", {"x": x, "out": out}, block=256)
    assert out[0] == 0.5 + x.sum()


# ---- cp.async


@pytest.mark.parametrize("size", [4, 8, 16])
@pytest.mark.parametrize("wait", ["group", "mbarrier"])
def test_cp_async(run: Any, size: int, wait: str) -> None:
    """Half of the threads copy, the others zero-fill (source size 0)."""
    x = np.arange(64 * size, dtype=np.uint8)
    out = np.full_like(x, 0xAA)
    cache = "cg" if size == 16 else "ca"
    if wait == "group":
        finish = (
            'asm volatile("cp.async.commit_group; cp.async.wait_group 0;" ::: "memory"); __syncthreads();'
        )
    else:
        finish = 'asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" :: "r"(bar) : "memory"); mbarrier_wait(bar, 0);'
    run(
        f"const u32 tile = dynamic_smem(), bar = tile + {64 * size}; if (threadIdx.x == 0) mbarrier_init(bar, 64); __syncthreads();"
        f"const u32 at = {size} * threadIdx.x, n = threadIdx.x % 2 ? 0 : {size};"
        f'asm volatile("cp.async.{cache}.shared.global [%0], [%1], {size}, %2;" :: "r"(tile + at), "l"(p.x + at), "r"(n) : "memory");'
        f"{finish} for (u32 i = 0; i < {size}; ++i) {{ u32 v; const u32 from = ({64 * size} - 1) - (at + i);"
        'asm volatile("ld.shared.u8 %0, [%1];" : "=r"(v) : "r"(tile + from)); p.out[from] = (u8)v; }',
        {"x": x, "out": out}, block=64, smem_bytes=64 * size + 16,
    )  # fmt: skip
    expected = x.reshape(64, size).copy()
    expected[1::2] = 0
    np.testing.assert_array_equal(out, expected.ravel())


# ---- ldmatrix, stmatrix, movmatrix, mma.sync


def matrix_fragment(matrix: Array, transposed: bool) -> Array:
    """What each lane's 32-bit register holds of an 8x8 matrix of 16-bit elements."""
    lane = np.arange(32)
    pair = 2 * (lane % 4)[:, None] + np.arange(2)
    other = np.repeat(lane // 4, 2).reshape(32, 2)
    elements = matrix[pair, other] if transposed else matrix[other, pair]
    return np.ascontiguousarray(elements.astype(np.uint16)).view(np.uint32).ravel()


@pytest.mark.parametrize("transposed", [False, True], ids=["", "trans"])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_ldmatrix(run: Any, rng: np.random.Generator, count: int, transposed: bool) -> None:
    x = rng.integers(0, 65536, (32, 8), dtype=np.uint16)  # 32 rows of 16 bytes; lane i names row (i * 5) % 32
    out = np.zeros((count, 32), np.uint32)
    registers = ", ".join(f"%{i}" for i in range(count))
    outputs = ", ".join(f'"=r"(r[{i}])' for i in range(count))
    op = f"ldmatrix.sync.aligned.m8n8.x{count}{'.trans' if transposed else ''}.shared.b16"
    run(
        "const u32 tile = dynamic_smem(), lane = threadIdx.x; for (u32 i = 0; i < 4; ++i) "
        'asm volatile("st.shared.u32 [%0], %1;" :: "r"(tile + 16 * lane + 4 * i), "r"(((const u32*)p.x)[4 * lane + i]) : "memory");'
        f"__syncwarp(); u32 r[{count}]; "
        f'asm volatile("{op} {{{registers}}}, [%{count}];" : {outputs} : "r"(tile + 16 * (lane * 5 % 32)) : "memory");'
        f"for (u32 i = 0; i < {count}; ++i) p.out[32 * i + lane] = r[i];",
        {"x": x, "out": out}, smem_bytes=512,
    )  # fmt: skip
    rows = x[np.arange(32) * 5 % 32]
    for i in range(count):
        np.testing.assert_array_equal(
            out[i], matrix_fragment(rows[8 * i : 8 * i + 8], transposed), err_msg=f"matrix {i}"
        )


@pytest.mark.parametrize("transposed", [False, True], ids=["", "trans"])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_stmatrix(run: Any, rng: np.random.Generator, count: int, transposed: bool) -> None:
    matrices = rng.integers(0, 65536, (count, 8, 8), dtype=np.uint16)
    fragments = np.stack([matrix_fragment(m, transposed) for m in matrices])
    out = np.zeros((32, 4), np.uint32)
    op = f"stmatrix.sync.aligned.m8n8.x{count}{'.trans' if transposed else ''}.shared.b16"
    registers = ", ".join(f"%{i + 1}" for i in range(count))
    inputs = ", ".join(f'"r"(p.x[{32 * i} + lane])' for i in range(count))
    run(
        "const u32 tile = dynamic_smem(), lane = threadIdx.x; for (u32 i = 0; i < 4; ++i) "
        'asm volatile("st.shared.u32 [%0], %1;" :: "r"(tile + 16 * lane + 4 * i), "r"(0) : "memory"); __syncwarp();'
        f'asm volatile("{op} [%0], {{{registers}}};" :: "r"(tile + 16 * (lane * 5 % 32)), {inputs} : "memory"); __syncwarp();'
        'for (u32 i = 0; i < 4; ++i) { u32 v; asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(tile + 16 * lane + 4 * i));'
        " p.out[4 * lane + i] = v; }",
        {"x": fragments, "out": out}, smem_bytes=512,
    )  # fmt: skip
    expected = np.zeros((32, 8), np.uint16)
    for i in range(count):
        expected[np.arange(8 * i, 8 * i + 8) * 5 % 32] = matrices[i]
    np.testing.assert_array_equal(out.view(np.uint16).reshape(32, 8), expected)


def test_movmatrix(run: Any, rng: np.random.Generator) -> None:
    matrix = rng.integers(0, 65536, (8, 8), dtype=np.uint16)
    x, out = matrix_fragment(matrix, False), np.zeros(32, np.uint32)
    run('u32 r; asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(r) : "r"(p.x[threadIdx.x])); '
        "p.out[threadIdx.x] = r;", {"x": x, "out": out})  # fmt: skip
    np.testing.assert_array_equal(out, matrix_fragment(matrix.T, False))


@pytest.mark.parametrize(
    ("kind", "dtype", "k"),
    [("bf16", ml_dtypes.bfloat16, 16), ("f16", np.float16, 16), ("f16", np.float16, 8)],
)
def test_mma_sync(run: Any, rng: np.random.Generator, kind: str, dtype: Any, k: int) -> None:
    """Small integers: exact in every accumulator. a fragment is rows g and g + 8, b is column g."""
    a = rng.integers(-8, 9, (16, k)).astype(np.float32).astype(dtype)
    b = rng.integers(-8, 9, (8, k)).astype(np.float32).astype(dtype)
    c = rng.integers(-100, 100, (16, 8)).astype(np.float32)
    out = np.zeros((4, 32), np.float32)
    lane = np.arange(32)
    words_a, words_b = a.view(np.uint32), b.view(np.uint32)  # k / 2 words a row
    fragments_a = np.stack([words_a[lane // 4 + 8 * (i & 1), 4 * (i >> 1) + lane % 4] for i in range(k // 4)])
    fragments_b = np.stack([words_b[lane // 4, 4 * i + lane % 4] for i in range(k // 8)])
    row = np.stack([lane // 4 + 8 * (i >> 1) for i in range(4)])
    col = np.stack([2 * (lane % 4) + (i & 1) for i in range(4)])
    na, nb = k // 4, k // 8
    reg = lambda first, n: "{" + ", ".join(f"%{first + i}" for i in range(n)) + "}"  # noqa: E731
    inputs = [f'"r"(p.a[{32 * i} + lane])' for i in range(na)] + [
        f'"r"(p.b[{32 * i} + lane])' for i in range(nb)
    ]
    run(
        "const u32 lane = threadIdx.x; float d[4]; for (u32 i = 0; i < 4; ++i) d[i] = p.c[32 * i + lane];"
        f'asm volatile("mma.sync.aligned.m16n8k{k}.row.col.f32.{kind}.{kind}.f32 {reg(0, 4)}, {reg(4, na)}, {reg(4 + na, nb)}, '
        f'{reg(0, 4)};" : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : {", ".join(inputs)});'
        "for (u32 i = 0; i < 4; ++i) p.out[32 * i + lane] = d[i];",
        {"a": fragments_a, "b": fragments_b, "c": c[row, col], "out": out},
    )  # fmt: skip
    np.testing.assert_array_equal(out, (a.astype(np.float64) @ b.astype(np.float64).T + c)[row, col])
