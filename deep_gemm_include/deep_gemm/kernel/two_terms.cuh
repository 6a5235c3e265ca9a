// bf16 tokens -> two E4M3 terms under one scale of the row (spec/two_terms.h). A CTA has a row at a time: it
// holds what it reads in registers while the largest is found, so that rows up to 4096 elements are read once. Launched by
// op/fp4_arrange.cpp.
#pragma once

#include <deep_gemm/tile/two_terms.h>

namespace deep_gemm {
namespace two_terms_detail {

constexpr u32 kStep = kTwoTermThreads * kTwoTermChunk;  // elements of a CTA at a time

/// Four elements in two words.
DG_DEVICE float largest_of(const ptx::UInt2& words) {
    const float low =
        ptx::max_nan_f32(ptx::abs_f32(ptx::bf16_low(words.x)), ptx::abs_f32(ptx::bf16_high(words.x)));
    const float high =
        ptx::max_nan_f32(ptx::abs_f32(ptx::bf16_low(words.y)), ptx::abs_f32(ptx::bf16_high(words.y)));
    return ptx::max_nan_f32(low, high);
}
DG_DEVICE ptx::UInt2 load(const u8* row, u32 k, u32 column) {
    if (column >= k) return {0, 0};
    return {ptx::ld_global_u32(row + column * 2), ptx::ld_global_u32(row + column * 2 + 4)};
}
DG_DEVICE void store(u8* out, u32 padded_k, u32 column, const ptx::UInt2& words, float inverse) {
    if (column >= padded_k) return;
    const tile::TermWords terms = tile::terms_of(ptx::bf16_low(words.x), ptx::bf16_high(words.x),
                                                 ptx::bf16_low(words.y), ptx::bf16_high(words.y), inverse);
    ptx::st_global_u32(out + column, terms.high);
    ptx::st_global_u32(out + padded_k + column, terms.low);
}

/// One row, by all threads of the CTA.
template <TwoTermSpec S>
DG_DEVICE void split_row(const TwoTermParams& p, u32 group, u32 row) {
    const u8* const x = p.x + group * p.x_stride_group + row * p.x_stride_row;
    const u64 index = static_cast<u64>(group) * p.rows + row;
    u8* const out = p.out + index * 2 * p.padded_k;
    const u32 first = ptx::thread_index() * kTwoTermChunk;
    ptx::UInt2 held[kTwoTermHeld];
#pragma unroll
    for (u32 i = 0; i < kTwoTermHeld; ++i) held[i] = load(x, p.k, first + i * kStep);
    float largest = 0;
#pragma unroll
    for (u32 i = 0; i < kTwoTermHeld; ++i) largest = ptx::max_nan_f32(largest, largest_of(held[i]));
    for (u32 column = first + kTwoTermHeld * kStep; column < p.k; column += kStep)
        largest = ptx::max_nan_f32(largest, largest_of(load(x, p.k, column)));
    const tile::TermScale scale = tile::term_scale_of(
        tile::amax_over_cta<kTwoTermThreads>(ptx::dynamic_smem() + plan_smem(S).amax, largest));
    if (first == 0) ptx::st_global_f32(p.scales + index, scale.value);
#pragma unroll
    for (u32 i = 0; i < kTwoTermHeld; ++i) store(out, p.padded_k, first + i * kStep, held[i], scale.inverse);
    for (u32 column = first + kTwoTermHeld * kStep; column < p.padded_k; column += kStep)
        store(out, p.padded_k, column, load(x, p.k, column), scale.inverse);
}

}  // namespace two_terms_detail

template <TwoTermSpec S>
DG_KERNEL(kTwoTermThreads, 4)
two_terms(DG_GRID_CONSTANT const TwoTermParams p) {
    // In this order: the GEMM reads what kernels before this one wrote without waiting for it.
    ptx::grid_dependency_wait();
    ptx::grid_dependency_launch();
    const u32 group = ptx::block_index() / p.rows_at_once;
    u32 rows = p.rows;
    if constexpr (S.groups == GroupMode::masked) {
        const i32 count = ptx::ld_global_s32(p.group_layout + group);
        const u32 present = count < 0 ? 0 : static_cast<u32>(count);
        rows = present < rows ? present : rows;
    }
    for (u32 row = ptx::block_index() % p.rows_at_once; row < rows; row += p.rows_at_once) {
        two_terms_detail::split_row<S>(p, group, row);
        ptx::sync_threads();  // the warps' maxima have been read
    }
}

}  // namespace deep_gemm
