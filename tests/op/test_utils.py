"""The helpers around the operations, in numpy and, where it is installed, in PyTorch: both give the same bits."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from deep_gemm import testing, utils


def torch_or_skip() -> Any:
    return pytest.importorskip("torch", reason="PyTorch is not installed")


def matrix(rows: int, columns: int) -> Any:
    return np.random.default_rng(rows * 1000 + columns).standard_normal((rows, columns)).astype(np.float32)


def test_ceil_div_and_align() -> None:
    assert [utils.ceil_div(x, 4) for x in (0, 1, 4, 5)] == [0, 1, 1, 2]
    assert [utils.align(x, 4) for x in (0, 1, 4, 5)] == [0, 4, 4, 8]


@pytest.mark.parametrize("use_ue8m0", [False, True])
@pytest.mark.parametrize("columns", [128, 300, 0])
def test_per_token_cast(columns: int, use_ue8m0: bool) -> None:
    x = matrix(5, columns)
    values, scales = utils.per_token_cast_to_fp8(x, use_ue8m0)
    assert values.dtype == ml_dtypes.float8_e4m3fn and values.shape == x.shape
    assert scales.dtype == np.float32 and scales.shape == (5, utils.ceil_div(columns, 128))
    back = values.astype(np.float32) * np.repeat(scales, 128, axis=1)[:, :columns]
    # E4M3 keeps 3 bits; below 2^-6 of a scale its steps are even.
    assert (abs(back - x) <= abs(x) / 16 + np.repeat(scales, 128, axis=1)[:, :columns] * 2.0**-10).all()
    if use_ue8m0:
        assert (np.log2(scales) % 1 == 0).all()


def test_per_block_and_channel_casts() -> None:
    x = matrix(200, 300)
    values, scales = utils.per_block_cast_to_fp8(x)
    assert scales.shape == (2, 3)
    expected = np.abs(x[128:, 256:]).max() / np.float32(448)
    assert scales[1, 2] == expected
    assert abs(values.astype(np.float32)).max() == 448
    values, scales = utils.per_channel_cast_to_fp8(matrix(256, 10))
    assert values.shape == (256, 10) and scales.shape == (2, 10)
    values, scales = utils.per_custom_dims_cast_to_fp8(x.reshape(2, 100, 300), (0,))
    assert scales.shape == (2,) and values.shape == (2, 100, 300)


def test_exact_scales_stay() -> None:
    """amax / 448 of a power of two is one: not the reciprocal's product, whose last bit may make UE8M0's next step."""
    x = np.zeros((40, 128), np.float32)
    x[:, 7] = 448 * np.exp2(np.arange(40, dtype=np.float32) - 10)
    for use_ue8m0 in (False, True):
        scales = utils.per_token_cast_to_fp8(x, use_ue8m0)[1]
        assert (scales[:, 0] == np.exp2(np.arange(40) - 10.0)).all()


def test_zeros_quantise_to_zeros() -> None:
    values, scales = utils.per_token_cast_to_fp8(np.zeros((3, 128), np.float32))
    assert (values.astype(np.float32) == 0).all() and (scales > 0).all()


def test_ue8m0_rounding_and_packing() -> None:
    x = np.array([[1.0, 1.5, 2.0, 2.0**-140, 0.75, 3.0, 2.0**100, 4.0]], np.float32)
    rounded = utils.ceil_to_ue8m0(x)
    assert rounded.tolist() == [[1.0, 2.0, 2.0, 2.0**-126, 1.0, 4.0, 2.0**100, 4.0]]
    packed = utils.pack_ue8m0_to_int(rounded)
    assert packed.shape == (1, 2) and packed[0, 0] == 127 | 128 << 8 | 128 << 16 | 1 << 24
    assert (utils.unpack_ue8m0_from_int(packed) == rounded).all()
    with pytest.raises(ValueError, match="no powers of two"):
        utils.pack_ue8m0_to_int(x)
    with pytest.raises(ValueError, match="multiple of 4"):
        utils.pack_ue8m0_to_int(rounded[:, :3])


@pytest.mark.parametrize("gran_k", [32, 128])
def test_fp4_round_trip(gran_k: int) -> None:
    x = matrix(6, 256)
    packed, scales = utils.per_token_cast_to_fp4(x, True, gran_k)
    assert packed.dtype == np.int8 and packed.shape == (6, 128)
    back = utils.cast_back_from_fp4(packed, scales, gran_k)
    assert (abs(back - x) <= abs(x) / 4 + np.repeat(scales, gran_k, axis=1) * 0.25).all()
    transposed = utils.transpose_packed_fp4(packed)
    assert (utils.transpose_packed_fp4(transposed) == packed).all()
    packed_scales = utils.per_token_cast_to_fp4(x[:, :64], True, 32, use_packed_ue8m0=True)[1]
    assert packed_scales.shape == (6, 1)


@pytest.mark.parametrize("shape", [(5, 7), (8, 3), (2, 5, 7)])
def test_mn_major_layout(shape: tuple[int, ...]) -> None:
    scales = np.random.default_rng(0).random(shape).astype(np.float32)
    moved = utils.get_mn_major_tma_aligned_tensor(scales)
    aligned = utils.get_tma_aligned_size(shape[-2], 4)
    assert (moved == scales).all()
    assert moved.strides[-2:] == (4, aligned * 4)
    assert len(shape) == 2 or moved.strides[0] == aligned * shape[-1] * 4
    assert utils.get_mn_major_tma_aligned_tensor(moved) is moved


def test_packed_layout() -> None:
    scales = np.exp2(np.random.default_rng(0).integers(-20, 20, (10, 6))).astype(np.float32)
    packed = utils.get_mn_major_tma_aligned_packed_ue8m0_tensor(scales)
    assert packed.shape == (10, 2) and packed.strides == (4, 12 * 4)
    exponents = packed.copy().view(np.uint8).reshape(10, 8)
    assert (exponents[:, :6] == np.log2(scales) + 127).all() and (exponents[:, 6:] == 0).all()


def test_required_layout() -> None:
    activations, weights = np.ones((300, 4), np.float32), np.ones((2, 3, 4), np.float32)
    moved = utils.transform_sf_into_required_layout(activations, 300, 512, (1, 128, 128), is_sfa=True)
    assert moved.strides == (4, 300 * 4)
    same = utils.transform_sf_into_required_layout(weights, 300, 512, (128, 128), num_groups=2)
    assert same is weights
    with pytest.raises(ValueError, match=r"expected \(2, 3, 5\)"):
        utils.transform_sf_into_required_layout(weights, 300, 640, (128, 128), num_groups=2)
    with pytest.raises(ValueError, match="needs is_sfa"):
        utils.transform_sf_into_required_layout(activations, 300, 512, (1, 128, 128))
    with pytest.raises(ValueError, match="expected \\(1, 128\\) or \\(128, 128\\)"):
        utils.transform_sf_into_required_layout(np.ones((300, 16), np.float32), 300, 512, (1, 32))


@pytest.mark.parametrize("where", ["cpu", "cuda"])
def test_torch_gives_the_same_bits(where: str) -> None:
    """Also in UE8M0, where a quotient a bit too large is the next power of two: rows of 448 have the scale 1."""
    torch = torch_or_skip()
    if where == "cuda" and not torch.cuda.is_available():
        pytest.skip("PyTorch sees no GPU")
    x = matrix(130, 300)
    x[:40] *= np.float32(448) / abs(x[:40]).max(axis=1, keepdims=True)
    x[:40, 7] = 448 * np.exp2(np.arange(40, dtype=np.float32) - 20)
    tensor = torch.from_numpy(x).to(where)
    casts = (utils.per_token_cast_to_fp8, utils.per_block_cast_to_fp8, utils.per_token_cast_to_fp4)
    for cast in casts:
        for use_ue8m0 in (False, True):
            values, scales = cast(x, use_ue8m0)
            other_values, other_scales = cast(tensor, use_ue8m0)
            assert (values.view(np.uint8) == other_values.view(torch.uint8).cpu().numpy()).all(), (
                cast.__name__
            )
            assert (scales == other_scales.cpu().numpy()).all(), cast.__name__
    scales = utils.per_token_cast_to_fp8(tensor, True)[1]
    for layout in (utils.get_mn_major_tma_aligned_tensor, utils.get_mn_major_tma_aligned_packed_ue8m0_tensor):
        moved, other = layout(scales.cpu().numpy()), layout(scales)
        assert (moved == other.cpu().numpy()).all()
        assert other.stride() == tuple(step // 4 for step in moved.strides)


def test_calc_diff() -> None:
    x = matrix(4, 4)
    assert testing.calc_diff(x, x) == 0
    assert testing.calc_diff(np.zeros(3), np.zeros(3)) == 0
    assert testing.calc_diff(x, -x) == pytest.approx(2)
    assert testing.calc_diff(x, x * 1.01) == pytest.approx(0.01**2 / 2, rel=0.05)


def test_count_bytes() -> None:
    assert testing.count_bytes(np.zeros(3), (np.zeros(2, np.int8), [None])) == 26


def test_bitwise_equality_names_the_place() -> None:
    x = matrix(3, 4)
    y = x.copy()
    testing.assert_bitwise_equal(x, y)
    y[1, 2] += 1
    with pytest.raises(AssertionError, match=r"first at \(1, 2\)"):
        testing.assert_bitwise_equal(x, y, "here")


def test_ignore_env(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.setenv("DG_PROBE", "1")
    seen = []
    testing.ignore_env("DG_PROBE", lambda: True)(lambda: seen.append(os.environ.get("DG_PROBE")))()
    testing.ignore_env("DG_PROBE", lambda: False)(lambda: seen.append(os.environ.get("DG_PROBE")))()
    assert seen == [None, "1"] and os.environ["DG_PROBE"] == "1"
