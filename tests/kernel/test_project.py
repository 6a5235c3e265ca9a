"""Projections and experts against float64: every weight format, groups, tails, and rows that depend on nobody."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from certificate import BATCHES, assert_batch_invariant
from ops_cases import Array, assert_close, poisoned, real, run, same_bits
from reference import deepseek_v4 as ref
from reference import quantize

from deep_gemm import ops

WEIGHTS = ["fp32", "bf16", "fp8 fp32", "fp8 ue8m0", "fp4"]


def make_weight(rng: np.random.Generator, shape: tuple[int, ...], kind: str) -> tuple[Array, Array | None]:
    *lead, n, k = shape
    if kind in ("fp32", "bf16"):
        return real(rng, shape, kind, k**-0.5), None
    if kind == "fp4":
        codes = rng.integers(-128, 128, (*lead, n, k // 2)).astype(np.int8)
        return codes, (2.0 ** rng.integers(-8, -3, (*lead, n, k // 32))).astype(ml_dtypes.float8_e8m0fnu)
    w = real(rng, shape, "fp8_e4m3", 30)
    blocks = (*lead, -(-n // 128), k // 128)
    if kind == "fp8 ue8m0":
        return w, (2.0 ** rng.integers(-10, -7, blocks)).astype(ml_dtypes.float8_e8m0fnu)
    return w, rng.uniform(0.001, 0.003, blocks).astype(np.float32)


def make_activation(
    rng: np.random.Generator, shape: tuple[int, ...], kind: str
) -> tuple[Array, Array | None]:
    if kind != "fp8_e4m3":
        return real(rng, shape, kind), None
    return real(rng, shape, kind, 60), (2.0 ** rng.integers(-7, -4, (*shape[:-1], shape[-1] // 128))).astype(
        np.float32
    )


def given(**arguments: Any) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if value is not None}


def bound(x: Array, w: Array) -> Array:
    """What summing in fp32 may lose: 2^-20 of the sum of magnitudes."""
    return np.abs(x) @ np.abs(np.swapaxes(w, -1, -2)) * 2.0**-20 + 1e-30


@pytest.mark.parametrize(
    ("kind", "x_kind"),
    [
        (kind, x)
        for kind in WEIGHTS
        for x in ("fp32", "bf16", "fp8_e4m3")
        if x != "fp8_e4m3" or kind not in WEIGHTS[:2]
    ],
)
@pytest.mark.parametrize("rows", [1, 5])
def test_project(device: Any, kind: str, x_kind: str, rows: int) -> None:
    rng = np.random.default_rng(1)
    n, k = 133, 256
    w, w_scale = make_weight(rng, (n, k), kind)
    x, x_scale = make_activation(rng, (rows, k), x_kind)
    out = run(
        device, "project", {"y": poisoned((rows, n))}, x=x, w=w, **given(w_scale=w_scale, x_scale=x_scale)
    )
    a, b = ref.activations(x, x_scale), ref.weight_matrix(w, w_scale)
    assert_close(out["y"], a @ b.T, bound(a, b))


@pytest.mark.parametrize(
    ("kind", "x_kind"),
    [("bf16", "bf16"), ("fp8 fp32", "bf16"), ("fp8 ue8m0", "fp8_e4m3"), ("fp8 fp32", "fp8_e4m3")],
)
@pytest.mark.parametrize("rows", [12, 41])
def test_tensor_cores(device: Any, kind: str, x_kind: str, rows: int) -> None:
    """Every size of a tile, more chunks than warps, tails of rows on both sides, and what is added."""
    rng = np.random.default_rng(11)
    n, k = 37, 1280
    w, w_scale = make_weight(rng, (n, k), kind)
    x, x_scale = make_activation(rng, (rows, k), x_kind)
    add = real(rng, (rows, n), "bf16")
    scales = given(w_scale=w_scale, x_scale=x_scale)
    y = run(device, "project", {"y": poisoned((rows, n))}, x=x, w=w, add=add, **scales)["y"]
    a, b = ref.activations(x, x_scale), ref.weight_matrix(w, w_scale)
    assert_close(y, a @ b.T + add.astype(np.float64), bound(a, b))


@pytest.mark.parametrize("rows", [1, 8])
@pytest.mark.parametrize("n", [37, 2200])
def test_rows_are_rounded_on_the_way(device: Any, n: int, rows: int) -> None:
    """The bits of quantize() and a product with its codes, for small and large values, zeros and NaN."""
    rng = np.random.default_rng(17)
    w, w_scale = make_weight(rng, (n, 1280), "fp8 ue8m0")
    x = (real(rng, (rows, 1280), "fp32") * 2.0 ** rng.integers(-30, 30, (rows, 10)).repeat(128, 1)).astype(
        ml_dtypes.bfloat16
    )
    x[0, :128] = 0
    x[rows - 1, 300] = np.nan
    y = {"y": poisoned((rows, n))}
    codes, scales = quantize.fp8_128(x.astype(np.float32), "up")
    apart = run(
        device, "project", y, x=codes.view(ml_dtypes.float8_e4m3fn), x_scale=scales, w=w, w_scale=w_scale
    )["y"]
    assert same_bits(run(device, "project", y, x=x, w=w, w_scale=w_scale, round_x=True)["y"], apart)


@pytest.mark.parametrize(
    ("kind", "x_kind", "n", "k"),
    [
        ("bf16", "bf16", 48, 1024),
        ("bf16", "bf16", 32, 4096),
        ("fp8 ue8m0", "bf16", 160, 4096),
        ("fp8 fp32", "bf16", 16, 7168),
        ("fp8 ue8m0", "fp8_e4m3", 4640, 1024),
        ("fp8 fp32", "fp8_e4m3", 160, 2048),
        ("fp8 fp32", "rounded", 2304, 2048),
        ("fp8 ue8m0", "rounded", 32, 8192),
    ],
)
def test_few_rows_have_the_bits_of_more(device: Any, kind: str, x_kind: str, n: int, k: int) -> None:
    """Whole tiles, which project_few takes: one and several to a block of threads, with columns that stay or not."""
    rng = np.random.default_rng(19)
    rounded = x_kind == "rounded"
    w, w_scale = make_weight(rng, (n, k), kind)
    x, x_scale = make_activation(rng, (9, k), "bf16" if rounded else x_kind)
    whole_x, whole_scale = x, x_scale
    if rounded:
        codes, whole_scale = quantize.fp8_128(x.astype(np.float32), "up")
        whole_x = codes.view(ml_dtypes.float8_e4m3fn)

    def call(rows: int, x: Array, x_scale: Array | None, **more: Any) -> Array:
        scales = given(w_scale=w_scale, x_scale=None if x_scale is None else x_scale[:rows])
        return run(device, "project", {"y": poisoned((rows, n))}, x=x[:rows], w=w, **scales, **more)["y"]

    whole = call(9, whole_x, whole_scale)
    for rows in (1, 5, 8):
        some = call(rows, x, x_scale, **({"round_x": True} if rounded else {}))
        assert same_bits(some, np.ascontiguousarray(whole[:rows])), rows


def test_one_rounded_row_of_a_group(device: Any) -> None:
    """y, and what is added, as [t, groups, n] with one group: the bits of [t, n]."""
    rng = np.random.default_rng(29)
    w, w_scale = make_weight(rng, (32, 1024), "fp8 ue8m0")
    x, add = real(rng, (1, 1024), "bf16"), real(rng, (1, 32), "bf16")
    plain = run(
        device, "project", {"y": poisoned((1, 32))}, x=x, w=w, w_scale=w_scale, add=add, round_x=True
    )["y"]
    y = run(
        device,
        "project",
        {"y": poisoned((1, 1, 32))},
        x=x,
        w=w,
        w_scale=w_scale,
        add=add[:, None],
        round_x=True,
    )["y"]
    assert same_bits(np.ascontiguousarray(y[:, 0]), plain)


@pytest.mark.parametrize("arch", ["sm_89", "sm_120a"])
def test_few_rows_where_shared_memory_is_small(arch: str) -> None:
    """99 KiB for a block: less on its way at once, the same bits."""
    rng = np.random.default_rng(23)
    w, x = real(rng, (64, 4096), "bf16", 4096**-0.5), real(rng, (8, 4096), "bf16")
    y = [poisoned((8, 64)) for _ in range(2)]
    for out, device in zip(y, (f"emulator:{arch},sms=4", "emulator:sm_90a,sms=4"), strict=True):
        ops.project(x, w, out, device=device)
    assert same_bits(*y)


@pytest.mark.parametrize(
    ("kind", "x_kind"), [("bf16", "bf16"), ("fp8 ue8m0", "bf16"), ("fp8 ue8m0", "fp8_e4m3")]
)
def test_rows_on_tensor_cores_are_independent(device: Any, kind: str, x_kind: str) -> None:
    rng = np.random.default_rng(12)
    (w, w_scale), (x, x_scale) = make_weight(rng, (40, 384), kind), make_activation(rng, (35, 384), x_kind)

    def call(rows: dict[str, Array]) -> dict[str, Array]:
        y = {"y": poisoned((len(rows["x"]), 40))}
        return run(device, "project", y, **rows, w=w, **given(w_scale=w_scale))

    # Every size of a tile.
    assert_batch_invariant(call, given(x=x, x_scale=x_scale), sizes=(*BATCHES, 11, 30))


@pytest.mark.parametrize(
    ("kind", "x_kind", "k"),
    [
        ("bf16", "bf16", 128),
        ("fp8 ue8m0", "bf16", 1280),
        ("fp8 fp32", "fp8_e4m3", 1280),
        ("bf16", "bf16", 1152),
    ],
)
def test_many_rows(device: Any, kind: str, x_kind: str, k: int) -> None:
    """Blocks of many rows of both matrices, with tails of both and less or more chunks than warps: right, and the same
    bits as few rows."""
    rng = np.random.default_rng(14)
    rows, n = 133, 150
    (w, w_scale), (x, x_scale) = make_weight(rng, (n, k), kind), make_activation(rng, (rows, k), x_kind)
    x[3] = np.nan
    add = real(rng, (rows, n), "bf16")

    def call(some: Array) -> Array:
        scales = given(w_scale=w_scale, x_scale=None if x_scale is None else x_scale[some])
        outputs = {"y": poisoned((len(some), n))}
        return run(device, "project", outputs, x=x[some], w=w, add=add[some], **scales)["y"]

    whole, others = call(np.arange(rows)), np.arange(rows) != 3
    a, b = ref.activations(x, x_scale)[others], ref.weight_matrix(w, w_scale)
    assert_close(whole[others], a @ b.T + add[others].astype(np.float64), bound(a, b))
    assert np.isnan(whole[3]).all()
    for few in ([0], [31, 32, 64, 127, 128, 132], list(range(90, 120))):
        assert same_bits(np.ascontiguousarray(whole[few]), call(np.array(few))), few


@pytest.mark.parametrize("y_kind", ["fp32", "bf16"])
@pytest.mark.parametrize("n", [264, 257])
def test_many_rows_of_whole_blocks(device: Any, n: int, y_kind: str) -> None:
    """Blocks whose rows of y are stored by 8 or 16 bytes, beside one with a tail, and rows where that is not aligned."""
    rng = np.random.default_rng(16)
    w, w_scale = make_weight(rng, (n, 256), "fp8 ue8m0")
    x, x_scale = make_activation(rng, (133, 256), "fp8_e4m3")
    assert x_scale is not None

    def call(some: slice) -> Array:
        outputs = {"y": poisoned((len(x[some]), n), y_kind)}
        return run(device, "project", outputs, x=x[some], w=w, w_scale=w_scale, x_scale=x_scale[some])["y"]

    whole, few = call(slice(None)), call(slice(0, 9))
    a, b = ref.activations(x, x_scale), ref.weight_matrix(w, w_scale)
    if y_kind == "fp32":
        assert_close(whole, a @ b.T, bound(a, b))
    assert same_bits(whole[:9], few)
    assert same_bits(whole[124:], call(slice(124, 133)))


def test_many_rows_of_groups(device: Any) -> None:
    rng = np.random.default_rng(15)
    x, (w, w_scale) = real(rng, (130, 3, 128), "bf16"), make_weight(rng, (3, 130, 128), "fp8 ue8m0")
    out = run(device, "project", {"y": poisoned((130, 3, 130))}, x=x, w=w, w_scale=w_scale)
    few = run(device, "project", {"y": poisoned((2, 3, 130))}, x=x[-2:], w=w, w_scale=w_scale)
    a, b = x.astype(np.float64), ref.weight_matrix(w, w_scale)
    for g in range(3):
        assert_close(out["y"][:, g], a[:, g] @ b[g].T, bound(a[:, g], b[g]))
    assert same_bits(np.ascontiguousarray(out["y"][-2:]), few["y"])


def test_many_outputs(device: Any) -> None:
    """So many that blocks have two tiles of them, for few rows; the same bits as with more rows."""
    rng = np.random.default_rng(13)
    n, k = 6501, 128
    w, w_scale = make_weight(rng, (n, k), "fp8 fp32")
    x, x_scale = make_activation(rng, (9, k), "fp8_e4m3")
    assert w_scale is not None and x_scale is not None

    def call(rows: int) -> Array:
        outputs = {"y": poisoned((rows, n))}
        return run(device, "project", outputs, x=x[:rows], w=w, w_scale=w_scale, x_scale=x_scale[:rows])["y"]

    many = call(9)
    a, b = ref.activations(x, x_scale), ref.weight_matrix(w, w_scale)
    assert_close(many, a @ b.T, bound(a, b))
    assert same_bits(call(2), np.ascontiguousarray(many[:2]))


@pytest.mark.parametrize("k", [4, 36, 132])
def test_tails(device: Any, k: int) -> None:
    rng = np.random.default_rng(2)
    x, w, add = real(rng, (3, k)), real(rng, (5, k)), real(rng, (3, 5), "bf16")
    out = run(device, "project", {"y": poisoned((3, 5), "bf16")}, x=x, w=w, add=add)
    a, b = x.astype(np.float64), w.astype(np.float64)
    assert_close(out["y"], add.astype(np.float64) + a @ b.T, bound(a, b))


def test_groups(device: Any) -> None:
    rng = np.random.default_rng(3)
    x, (w, w_scale) = real(rng, (5, 3, 128), "bf16"), make_weight(rng, (3, 130, 128), "fp8 ue8m0")
    out = run(device, "project", {"y": poisoned((5, 3, 130))}, x=x, w=w, w_scale=w_scale)
    a, b = x.astype(np.float64), ref.weight_matrix(w, w_scale)
    for g in range(3):
        assert_close(out["y"][:, g], a[:, g] @ b[g].T, bound(a[:, g], b[g]))


@pytest.mark.parametrize("kind", WEIGHTS)
def test_project_rows_are_independent(device: Any, kind: str) -> None:
    rng = np.random.default_rng(4)
    (w, w_scale), x = make_weight(rng, (40, 128), kind), real(rng, (6, 128))

    def call(rows: dict[str, Array]) -> dict[str, Array]:
        y = {"y": poisoned((len(rows["x"]), 40))}
        return run(device, "project", y, **rows, w=w, **given(w_scale=w_scale))

    assert_batch_invariant(call, {"x": x})


def test_nothing_to_do(device: Any) -> None:
    assert run(
        device,
        "project",
        {"y": poisoned((0, 8))},
        x=real(np.random.default_rng(0), (0, 4)),
        w=real(np.random.default_rng(0), (8, 4)),
    )["y"].shape == (0, 8)


def expert_case(rng: np.random.Generator, kind: str, rows: int) -> dict[str, Any]:
    experts, d, i, slots = 5, 128, 136 if kind in ("fp32", "bf16") else 128, 3
    (w1, s1), (w3, s3) = make_weight(rng, (experts, i, d), kind), make_weight(rng, (experts, i, d), kind)
    w2, s2 = make_weight(rng, (experts, 72, i), kind)
    ids = np.stack([rng.permutation(experts)[:slots] for _ in range(rows)]).astype(np.int32)
    ids[-1, 0], ids[0, 2] = -1, experts  # no such expert
    weights = rng.uniform(0.2, 1, (rows, slots)).astype(np.float32)
    return {
        "x": real(rng, (rows, d), scale=8),
        "w1": w1,
        "s1": s1,
        "w3": w3,
        "s3": s3,
        "w2": w2,
        "s2": s2,
        "ids": ids,
        "weights": weights,
    }


@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize("limit", [0.0, 10.0])
def test_experts(device: Any, kind: str, limit: float) -> None:
    rng = np.random.default_rng(6)
    c = expert_case(rng, kind, 3)
    rows, slots = c["ids"].shape
    w1, w3, w2 = (ref.weight_matrix(c[w], c[s]) for w, s in (("w1", "s1"), ("w3", "s3"), ("w2", "s2")))
    i = w1.shape[1]
    mid = run(
        device,
        "expert_up",
        {"mid": poisoned((rows, slots, i))},
        x=c["x"],
        w1=c["w1"],
        w3=c["w3"],
        experts=c["ids"],
        weights=c["weights"],
        limit=limit,
        **given(w1_scale=c["s1"], w3_scale=c["s3"]),
    )["mid"]
    x, expected = c["x"].astype(np.float64), np.zeros((rows, slots, i))
    hit = False
    for t in range(rows):
        for j in range(slots):
            e = c["ids"][t, j]
            if 0 <= e < 5:
                gate, up = w1[e] @ x[t], w3[e] @ x[t]
                hit = hit or np.abs(up).max() > 10
                expected[t, j] = ref.swiglu(gate, up, limit) * c["weights"][t, j]
    assert hit, "the clamp is not tested"
    assert_close(mid, expected, 1e-5 * np.abs(expected).max())
    add = real(rng, (rows, 72))
    y = run(
        device,
        "expert_down",
        {"y": poisoned((rows, 72))},
        mid=mid,
        w2=c["w2"],
        experts=c["ids"],
        add=add,
        **given(w2_scale=c["s2"]),
    )["y"]
    total = add.astype(np.float64)
    for t in range(rows):
        for j in range(slots):
            if 0 <= c["ids"][t, j] < 5:
                total[t] += w2[c["ids"][t, j]] @ mid[t, j].astype(np.float64)
    assert_close(y, total, 1e-6 * (1 + np.abs(total).max()))


def test_shared_expert_and_late_weights(device: Any) -> None:
    rng = np.random.default_rng(7)
    w1, w3, w2 = real(rng, (1, 24, 32)), real(rng, (1, 24, 32)), real(rng, (1, 16, 24))
    x, weights = real(rng, (2, 32)), np.array([[0.5], [2.0]], np.float32)
    mid = run(device, "expert_up", {"mid": poisoned((2, 1, 24))}, x=x, w1=w1, w3=w3)["mid"]
    y = run(device, "expert_down", {"y": poisoned((2, 16))}, mid=mid, w2=w2, weights=weights)["y"]
    wide = [a.astype(np.float64) for a in (x, w1[0], w3[0], w2[0])]
    expected = ref.swiglu(wide[0] @ wide[1].T, wide[0] @ wide[2].T, 0) @ wide[3].T * weights
    assert_close(y, expected, 1e-5 * np.abs(expected).max())


def test_expert_rows_are_independent(device: Any) -> None:
    c = expert_case(np.random.default_rng(8), "fp4", 4)

    def call(rows: dict[str, Array]) -> dict[str, Array]:
        ids, count = rows["ids"], len(rows["ids"])
        mid = run(
            device,
            "expert_up",
            {"mid": poisoned((count, 3, 128))},
            x=rows["x"],
            w1=c["w1"],
            w3=c["w3"],
            experts=ids,
            w1_scale=c["s1"],
            w3_scale=c["s3"],
        )["mid"]
        y = run(
            device,
            "expert_down",
            {"y": poisoned((count, 72))},
            mid=mid,
            w2=c["w2"],
            w2_scale=c["s2"],
            experts=ids,
        )
        return {"mid": mid, **y}

    assert_batch_invariant(call, {"x": c["x"], "ids": c["ids"]})


BAD = [
    (
        {"x": real(np.random.default_rng(0), (2, 8))},
        ValueError,
        r"x has shape \[2, 8\], expected \[any, any, 12\]|expected",
    ),
    ({"w": np.zeros((5, 10), np.float32)}, ValueError, "expected a multiple of 4; pad its rows"),
    ({"w": np.zeros((5, 12), np.int32)}, TypeError, "w is int32, expected"),
    ({"y": np.zeros((2, 6), np.float32)}, ValueError, "y has shape"),
    ({"w_scale": np.zeros((1, 1), np.float32)}, ValueError, "got w_scale, expected none"),
    ({"x": np.zeros((2, 24), np.float32)[:, ::2]}, ValueError, "stride 2 along its last dimension"),
]


@pytest.mark.parametrize(("wrong", "error", "message"), BAD, ids=[message for _, _, message in BAD])
def test_bad_input(emulator: Any, wrong: dict[str, Array], error: type[Exception], message: str) -> None:
    arguments = {
        "x": np.zeros((2, 12), np.float32),
        "w": np.zeros((5, 12), np.float32),
        "y": poisoned((2, 5)),
        **wrong,
    }
    with pytest.raises(error, match=message):
        ops.project(**arguments, device=emulator)
    assert np.isnan(arguments["y"]).all() or "y" in wrong
