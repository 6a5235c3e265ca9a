"""Layouts of scales, under DeepGEMM's names. On Hopper the GEMMs read fp32 scales in any layout, so a caller may
skip these; code written for DeepGEMM calls them, and gets what it expects.

MN-major, TMA-aligned: row stride 1, so that the scales of neighbouring rows are neighbours, and the stride between
columns rounded up to 16 bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

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


def _mn_major_strides(sf: Array, itemsize: int) -> tuple[int, ...]:
    mn, columns = sf.shape[-2:]
    aligned = get_tma_aligned_size(mn, itemsize)
    return (1, aligned) if len(sf.shape) == 2 else (aligned * columns, 1, aligned)


def _require_scales(sf: Array, name: str, function: str) -> None:
    if len(sf.shape) not in (2, 3) or not arrays.has_type(sf, name):
        raise ValueError(
            f"{function}: got {sf.dtype} of shape {tuple(sf.shape)}, expected {name} scales [mn, k] or "
            "[groups, mn, k]"
        )


def get_mn_major_tma_aligned_tensor(sf: Array) -> Array:
    """fp32 scales [mn, k] or [groups, mn, k], MN-major and TMA-aligned; the same object if they are already."""
    _require_scales(sf, "fp32", "get_mn_major_tma_aligned_tensor")
    steps = _mn_major_strides(sf, 4)
    if arrays.strides(sf) == steps:
        return sf
    result = arrays.empty_strided(sf, sf.shape, steps, "fp32")
    result[...] = sf
    return result


def get_mn_major_tma_aligned_packed_ue8m0_tensor(sf: Array, psum_layout: Array | None = None) -> Array:
    """fp32 powers of two -> int32 of four exponents along k, MN-major and TMA-aligned; missing ones are 0."""
    del psum_layout  # rows of gaps are packed too: their values are never read
    _require_scales(sf, "fp32", "get_mn_major_tma_aligned_packed_ue8m0_tensor")
    *groups, mn, columns = sf.shape
    filled = arrays.zeros(sf, (*groups, mn, align(columns, 4)), "fp32")
    filled[..., :columns] = sf
    packed = pack_ue8m0_to_int(filled)
    result = arrays.empty_strided(sf, packed.shape, _mn_major_strides(packed, 4), "int32")
    result[...] = packed
    return result


def get_k_grouped_mn_major_tma_aligned_packed_ue8m0_tensor(
    sf: Array,
    grouped_layout: Array,
    ks_cpu: Sequence[int],
    gran_k: int,
    k_alignment: int,
    use_psum_layout: bool = False,
) -> Array:
    """fp32 scales [sum of k / gran_k, mn], grouped along k -> int32 [sum of packed rows, mn], group by group."""
    del grouped_layout, k_alignment
    if use_psum_layout:
        raise ValueError("k-grouped scales: got use_psum_layout=True, expected False on this architecture")
    _require_scales(sf, "fp32", "get_k_grouped_mn_major_tma_aligned_packed_ue8m0_tensor")
    mn = sf.shape[1]
    rows = [ceil_div(k, gran_k) for k in ks_cpu]
    packed_rows = [ceil_div(count, 4) for count in rows]
    aligned = get_tma_aligned_size(mn, 4)
    result = arrays.empty_strided(sf, (sum(packed_rows), mn), (aligned, 1), "int32")
    source = target = 0
    for count, packed_count in zip(rows, packed_rows, strict=True):
        filled = arrays.zeros(sf, (mn, packed_count * 4), "fp32")
        filled[:, :count] = sf[source : source + count].T
        result[target : target + packed_count] = pack_ue8m0_to_int(filled).T
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
    if len(recipe) == 3:
        if is_sfa is None:
            raise ValueError("transform_sf_into_required_layout: a recipe of three needs is_sfa")
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
            f"k={k}, one scale for each {gran_mn} x {gran_k}"
        )
    if (gran_mn, gran_k) == (1, 128):
        return get_mn_major_tma_aligned_tensor(sf)
    if (gran_mn, gran_k) == (128, 128):
        return sf
    raise ValueError(
        f"transform_sf_into_required_layout: got one scale for each {gran_mn} x {gran_k}, expected (1, 128) or "
        "(128, 128)"
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
