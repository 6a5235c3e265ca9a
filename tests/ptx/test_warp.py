"""Warp-wide instructions: shuffles, votes, matches, reductions, election, divergence and re-convergence."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

LANE = np.arange(32, dtype=np.uint32)


def per_lane(run: Any, body: str, **arguments: Any) -> np.ndarray[Any, np.dtype[np.uint32]]:
    out = np.zeros(32, np.uint32)
    run(f"const u32 lane = threadIdx.x; u32 r = 0; {body} p.out[lane] = r;", {**arguments, "out": out})
    return out


def shuffled(mode: str, operand: int, width: int) -> tuple[Any, Any]:
    """Source lane and whether it is in range, by the definition of shfl.sync."""
    segment, in_segment = LANE // width * width, LANE % width
    match mode:
        case "idx":
            source = segment + operand % width
            return source, np.ones(32, bool)
        case "up":
            valid = in_segment >= operand
            return np.where(valid, LANE - operand, LANE), valid
        case "down":
            valid = in_segment + operand < width
            return np.where(valid, LANE + operand, LANE), valid
        case _:
            target = LANE ^ operand  # may reach an earlier segment, not a later one
            valid = target < segment + width
            return np.where(valid, target, LANE), valid


@pytest.mark.parametrize("width", [32, 16, 8, 4])
@pytest.mark.parametrize("mode", ["idx", "up", "down", "bfly"])
def test_shfl(run: Any, mode: str, width: int) -> None:
    clamp = (0 if mode == "up" else 31) | (32 - width) << 8
    values = (LANE * 7 + 3).astype(np.uint32)
    for operand in (0, 1, 2, 5, width - 1):
        text = f"{{.reg .pred q; shfl.sync.{mode}.b32 %0|q, %1, {operand}, {clamp}, 0xffffffff; @q add.u32 %0, %0, 0x10000;}}"
        got = per_lane(run, f'asm volatile("{text}" : "=r"(r) : "r"(p.x[lane]));', x=values)
        source, valid = shuffled(mode, operand, width)
        np.testing.assert_array_equal(
            got, values[source] + np.where(valid, 0x10000, 0), err_msg=f"operand {operand}"
        )


def test_shfl_with_lane_operands(run: Any) -> None:
    source = LANE[::-1].copy()
    got = per_lane(run, "r = __shfl_sync(0xffffffffu, lane * 3, p.x[lane]);", x=source)
    np.testing.assert_array_equal(got, source * 3)


@pytest.mark.parametrize("pattern", [0, 1, 0x80000000, 0xFFFFFFFF, 0x0F0F1234])
def test_votes(run: Any, pattern: int) -> None:
    bits = (np.uint32(pattern) >> LANE) & np.uint32(1)
    body = ("const bool q = p.x[lane] != 0; r = __ballot_sync(0xffffffffu, q);"
            "p.all[lane] = __all_sync(0xffffffffu, q); p.any[lane] = __any_sync(0xffffffffu, q);")  # fmt: skip
    every, some = np.zeros(32, np.uint32), np.zeros(32, np.uint32)
    got = per_lane(run, body, x=bits, all=every, any=some)
    assert (got == pattern).all()
    assert (every == (pattern == 0xFFFFFFFF)).all()
    assert (some == (pattern != 0)).all()


def test_match(run: Any) -> None:
    values = (LANE * LANE % 5).astype(np.uint32)
    got = per_lane(run, "r = __match_any_sync(0xffffffffu, p.x[lane]);", x=values)
    expected = [sum(1 << i for i in range(32) if values[i] == values[lane]) for lane in range(32)]
    np.testing.assert_array_equal(got, np.array(expected, np.uint32))


@pytest.mark.parametrize(
    "op", ["add.u32", "min.u32", "max.u32", "min.s32", "max.s32", "and.b32", "or.b32", "xor.b32"]
)
def test_redux(run: Any, rng: np.random.Generator, op: str) -> None:
    values = rng.integers(0, 2**32, 32, dtype=np.uint32)
    got = per_lane(
        run, f'asm volatile("redux.sync.{op} %0, %1, 0xffffffff;" : "=r"(r) : "r"(p.x[lane]));', x=values
    )
    name, kind = op.split(".")
    data = values.view(np.int32) if kind == "s32" else values
    function = {"add": np.add, "min": np.minimum, "max": np.maximum, "and": np.bitwise_and, "or": np.bitwise_or,
                "xor": np.bitwise_xor}[name]  # fmt: skip
    assert (got == np.asarray(function.reduce(data)).astype(data.dtype).view(np.uint32)).all()


def test_elect_picks_one_lane(run: Any) -> None:
    got = per_lane(run, "r = elect_one() ? 1 : 0;")
    assert got.sum() == 1


def test_active_mask_after_divergence(run: Any) -> None:
    got = per_lane(run, "if (lane % 3 == 0) { r = __ballot_sync(0x49249249u, lane > 8); } __syncwarp(); "
                        "r |= __ballot_sync(0xffffffffu, true) == 0xffffffffu ? 2u : 0u;")  # fmt: skip
    inside = sum(1 << i for i in range(0, 32, 3) if i > 8)
    np.testing.assert_array_equal(got, np.where(LANE % 3 == 0, inside | 2, 2))


def test_data_dependent_loops_reconverge(run: Any) -> None:
    body = "u32 v = lane + 1; while (v != 1) { v = v & 1 ? 3 * v + 1 : v / 2; ++r; } __syncwarp(); r += __shfl_sync(0xffffffffu, r, 0);"
    got = per_lane(run, body)

    def steps(v: int) -> int:
        count = 0
        while v != 1:
            v, count = (3 * v + 1 if v & 1 else v // 2), count + 1
        return count

    np.testing.assert_array_equal(got, [steps(lane + 1) + steps(1) for lane in range(32)])


def test_local_arrays(run: Any) -> None:
    out = np.zeros(32, np.uint32)
    run(
        "u32 table[8]; for (u32 i = 0; i < 8; ++i) table[i] = 2 * (i + p.shift) + 1; "
        "p.out[threadIdx.x] = table[(threadIdx.x * 5 + p.shift) % 8];",
        {"out": out, "shift": 3},
    )
    np.testing.assert_array_equal(out, 2 * ((LANE * 5 + 3) % 8 + 3) + 1)
