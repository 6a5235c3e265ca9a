"""Layouts of scales, under DeepGEMM's names. On Hopper the GEMMs read fp32 scales in any layout, so a caller may
skip these; code written for DeepGEMM calls them, and gets what it expects.

MN-major, TMA-aligned: row stride 1, so that the scales of neighbouring rows are neighbours, and the stride between
columns rounded up to 16 bytes.

Tensors of a GPU, and arrays whose `device` is named, are rearranged by one kernel each, asynchronously; arrays of the
host by numpy or PyTorch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from deep_gemm import _C
from deep_gemm.utils import arrays
from deep_gemm.utils.arrays import Array
from deep_gemm.utils.math import align, ceil_div, pack_ue8m0_to_int

TMA_BYTES = 16
GROUP_ALIGNMENT = 128  # rows: what the kernels expect of contiguous groups


def get_mk_alignment_for_contiguous_layout() -> int:
    """Rows: every group of a contiguous or prefix-sum layout starts at a multiple of it."""
    return GROUP_ALIGNMENT


def set_mk_alignment_for_contiguous_layout(new_value: int) -> None:
    """Accepts the one alignment that this architecture has."""
    if new_value != GROUP_ALIGNMENT:
        raise ValueError(
            f"set_mk_alignment_for_contiguous_layout: got {new_value}, expected {GROUP_ALIGNMENT}: blocks of 128 "
            "rows read one group index"
        )


def get_theoretical_mk_alignment_for_contiguous_layout(expected_m: int | None = None) -> int:
    """The best alignment for groups of about `expected_m` rows: on this architecture 128 for all."""
    del expected_m
    return GROUP_ALIGNMENT


def get_tma_aligned_size(x: int, elem_size: int) -> int:
    """`x` elements rounded up to 16 bytes."""
    return align(x, TMA_BYTES // elem_size)


def _mn_major_strides(shape: Sequence[int], itemsize: int) -> tuple[int, ...]:
    mn, columns = shape[-2:]
    aligned = get_tma_aligned_size(mn, itemsize)
    return (1, aligned) if len(shape) == 2 else (aligned * columns, 1, aligned)


def _by_kernel(sf: Array, device: Any) -> bool:
    return device is not None or arrays.on_gpu(sf)


def _require_scales(sf: Array, name: str, function: str) -> None:
    arrays.require_array(sf, function)
    if len(sf.shape) not in (2, 3) or not arrays.has_type(sf, name):
        raise ValueError(
            f"{function}: got {sf.dtype} of shape {tuple(sf.shape)}, expected {name} scales [mn, k] or "
            "[groups, mn, k]; "
            "convert or reshape them"
        )


def get_mn_major_tma_aligned_tensor(sf: Array, *, device: Any = None) -> Array:
    """fp32 scales [mn, k] or [groups, mn, k], MN-major and TMA-aligned; the same object if they are already."""
    _require_scales(sf, "fp32", "get_mn_major_tma_aligned_tensor")
    steps = _mn_major_strides(sf.shape, 4)
    if arrays.strides(sf) == steps:
        return sf
    result = arrays.empty_strided(sf, sf.shape, steps, "fp32")
    if _by_kernel(sf, device):
        _C.transpose_fp32(sf, result, device=device)
    else:
        result[...] = sf
    return result


def _pack_on_host(sf: Array, result: Array, gaps: bool = False) -> None:
    filled = arrays.zeros(sf, (*sf.shape[:-1], align(sf.shape[-1], 4)), "fp32")
    filled[..., : sf.shape[-1]] = sf
    if gaps:
        filled = arrays.bits(arrays.bits(filled, "int32") & 0x7F800000, "fp32")
    result[...] = pack_ue8m0_to_int(filled)


def get_mn_major_tma_aligned_packed_ue8m0_tensor(
    sf: Array, psum_layout: Array | None = None, *, device: Any = None
) -> Array:
    """fp32 powers of two -> int32 of four exponents along k, MN-major and TMA-aligned; missing ones are 0.

    Other scales are an error on the host and the emulated GPU; a GPU does not look and keeps their exponents. Given
    `psum_layout`, rows between its groups may hold anything on either: they are packed too, and nobody reads them.
    """
    _require_scales(sf, "fp32", "get_mn_major_tma_aligned_packed_ue8m0_tensor")
    shape = (*sf.shape[:-1], ceil_div(sf.shape[-1], 4))
    result = arrays.empty_strided(sf, shape, _mn_major_strides(shape, 4), "int32")
    if _by_kernel(sf, device):
        _C.pack_fp32_into_ue8m0(sf, result, gaps=psum_layout is not None, device=device)
    else:
        _pack_on_host(sf, result, psum_layout is not None)
    return result


def get_k_grouped_mn_major_tma_aligned_packed_ue8m0_tensor(
    sf: Array,
    grouped_layout: Array,
    ks_cpu: Sequence[int],
    gran_k: int,
    k_alignment: int,
    use_psum_layout: bool = False,
    *,
    device: Any = None,
) -> Array:
    """fp32 scales [sum of k / gran_k, mn], grouped along k -> int32 [sum of packed rows, mn], group by group.

    `grouped_layout` is int32 [groups], each group's extent along k, where the kernel reads it; `ks_cpu` says the same
    on the host. A group's rows are packed alone: its last word is filled with 0.
    """
    function = "get_k_grouped_mn_major_tma_aligned_packed_ue8m0_tensor"
    del k_alignment
    if use_psum_layout:
        raise ValueError(
            "k-grouped scales: got use_psum_layout=True, expected False on this architecture; "
            "pass the sizes of the groups"
        )
    _require_scales(sf, "fp32", function)
    rows = [ceil_div(k, gran_k) for k in ks_cpu]
    if len(sf.shape) != 2 or sum(rows) != sf.shape[0] or len(rows) != grouped_layout.shape[0]:
        raise ValueError(
            f"{function}: got sf of shape {tuple(sf.shape)} and {len(rows)} ks_cpu beside {grouped_layout.shape[0]} "
            f"in grouped_layout, expected as many and [{sum(rows)}, mn]: ceil(k / {gran_k}) rows for each group"
        )
    mn, packed_rows = sf.shape[1], [ceil_div(count, 4) for count in rows]
    result = arrays.empty_strided(sf, (sum(packed_rows), mn), (get_tma_aligned_size(mn, 4), 1), "int32")
    if _by_kernel(sf, device):
        _C.pack_fp32_into_ue8m0(sf.T, result.T, grouped_layout, gran_k, device=device)
        return result
    source = target = 0
    for count, packed_count in zip(rows, packed_rows, strict=True):
        _pack_on_host(sf[source : source + count].T, result[target : target + packed_count].T)
        source, target = source + count, target + packed_count
    return result


def transform_sf_into_required_layout(
    sf: Array,
    mn: int,
    k: int,
    recipe: tuple[int, ...],
    num_groups: int | None = None,
    is_sfa: bool | None = None,
    disable_ue8m0_cast: bool = False,
    psum_layout: Array | None = None,
) -> Array:
    """Scales as the kernels want them: fp32 (1, 128) MN-major and TMA-aligned, (128, 128) as given.

    `recipe` is (rows, k) of this operand, or (rows of a, rows of b, k) with `is_sfa` saying which this is.
    """
    del disable_ue8m0_cast, psum_layout  # Hopper reads fp32 scales: there is nothing to cast
    if not isinstance(recipe, tuple | list) or len(recipe) not in (2, 3):
        raise ValueError(
            f"transform_sf_into_required_layout: got recipe {recipe!r}, expected (rows, k) of this operand, or (rows "
            "of a, rows of b, k) with is_sfa; (1, 128) is one scale for each row and 128 elements of k"
        )
    if len(recipe) == 3:
        if is_sfa is None:
            raise ValueError(
                "transform_sf_into_required_layout: a recipe of three needs is_sfa; "
                "pass it, or a recipe of two"
            )
        gran_mn, gran_k = (recipe[0] if is_sfa else recipe[1]), recipe[2]
    else:
        gran_mn, gran_k = recipe
    _require_scales(sf, "fp32", "transform_sf_into_required_layout")
    expected: tuple[int, ...] = (ceil_div(mn, gran_mn), ceil_div(k, gran_k))
    if num_groups is not None:
        expected = (num_groups, *expected)
    if tuple(sf.shape) != expected:
        raise ValueError(
            f"transform_sf_into_required_layout: got shape {tuple(sf.shape)}, expected {expected} for mn={mn}, "
            f"k={k}, one scale for each {gran_mn} x {gran_k}; "
            "pass the scales of that operand"
        )
    if (gran_mn, gran_k) == (1, 128):
        return get_mn_major_tma_aligned_tensor(sf)
    if (gran_mn, gran_k) == (128, 128):
        return sf
    raise ValueError(
        f"transform_sf_into_required_layout: got one scale for each {gran_mn} x {gran_k}, expected (1, 128) or "
        "(128, 128); "
        "quantise with one of these"
    )


get_m_alignment_for_contiguous_layout = get_mk_alignment_for_contiguous_layout
get_k_alignment_for_contiguous_layout = get_mk_alignment_for_contiguous_layout

__all__ = [
    "get_k_alignment_for_contiguous_layout",
    "get_k_grouped_mn_major_tma_aligned_packed_ue8m0_tensor",
    "get_m_alignment_for_contiguous_layout",
    "get_mk_alignment_for_contiguous_layout",
    "get_mn_major_tma_aligned_packed_ue8m0_tensor",
    "get_mn_major_tma_aligned_tensor",
    "get_theoretical_mk_alignment_for_contiguous_layout",
    "get_tma_aligned_size",
    "set_mk_alignment_for_contiguous_layout",
    "transform_sf_into_required_layout",
]
