// y = x / sqrt(mean(x^2) + eps) * weight, a CTA a row. Called by op/norm.cpp.
#pragma once

#include <deep_gemm/spec/norm.h>
#include <deep_gemm/tile/narrow_copy.h>
#include <deep_gemm/tile/norm.h>
#include <deep_gemm/tile/real.h>
#include <deep_gemm/tile/reduce.h>
#include <deep_gemm/ptx/math.h>

namespace deep_gemm {

template <NormSpec S>
DG_DEVICE void norm_block(const NormParams& p, u32 block) {
    const u32 row = block / p.inner, inner = block % p.inner;
    const u64 x = row * p.x.stride + inner * p.x.inner_stride,
              y = row * p.y.stride + inner * p.y.inner_stride;
    const u32 first = ptx::thread_index() * 4;
    float squares = 0;
    for (u32 i = first; i < p.d; i += kNormThreads * 4)
        squares = tile::add_squares(tile::load4<S.x>(p.x.data, x + i), squares);
    squares = tile::cta_sum<kNormThreads>(ptx::dynamic_smem() + plan_smem(S).sums, squares);
    constexpr bool kRowAmax = S.narrow && S.recipe == Recipe::nvfp4;
    float amax = 0;
    const float factor = tile::norm_factor(squares, p.d, p.eps);
    for (u32 i = first; i < p.d; i += kNormThreads * 4) {
        tile::Float4 v = tile::times(tile::load4<S.x>(p.x.data, x + i), factor);
        if constexpr (S.weight != Format::none) v = tile::times(v, tile::load4<S.weight>(p.weight, i));
        tile::store4<S.y>(p.y.data, y + i, v);
        if constexpr (kRowAmax)
            amax = ptx::max_nan_f32(amax, tile::amax_of_four(tile::through_bf16(v)));
        else if constexpr (S.narrow)  // d is a multiple of 128: whole warps are here
            tile::store_copy<S.recipe, S.rule>(p.codes, p.scales, row, p.d, i, v);
    }
    if constexpr (!kRowAmax) return;
    const float global =
        tile::nvfp4_global(tile::cta_max<kNormThreads>(ptx::dynamic_smem() + plan_smem(S).sums, amax));
    if (ptx::thread_index() == 0) ptx::st_global_f32(p.global + row, global);
    for (u32 i = first; i < p.d; i += kNormThreads * 4)  // what the thread has stored itself
        tile::store_copy<S.recipe, S.rule>(p.codes, p.scales, row, p.d, i, tile::load4<S.y>(p.y.data, y + i),
                                           global);
}

template <NormSpec S>
DG_KERNEL(kNormThreads, 8)
rms_norm(DG_GRID_CONSTANT const NormParams p) {
    ptx::grid_dependency_launch();
    ptx::grid_dependency_wait();
    norm_block<S>(p, ptx::block_index());
}

}  // namespace deep_gemm
