// One warp's dot products of a weight row with a few rows of x (order: spec/project.h).
#pragma once

#include <deep_gemm/spec/project.h>
#include <deep_gemm/tile/real.h>
#include <deep_gemm/tile/reduce.h>

namespace deep_gemm::tile {

template <Format F>
DG_DEVICE float load_scale(const void* base, u64 index) {
    if constexpr (F == Format::fp32)
        return ptx::ld_global_f32(static_cast<const float*>(base) + index);
    else
        return codec::ue8m0_to_f32(ptx::ld_global_u8(static_cast<const u8*>(base) + index));
}

/// sums[i] = x row i . w row n, complete in every lane. x_rows and scale_rows are element indices of the
/// rows.
template <ProjectSpec S, u32 Rows>
DG_DEVICE void dot_rows(const WeightView& w, u32 matrix, u32 n, const void* x, const u64 (&x_rows)[Rows],
                        const void* x_scale, const u64 (&scale_rows)[Rows], u32 k, float (&sums)[Rows]) {
    const u64 w_row = matrix * w.stride_matrix + n * w.stride_row;
    const u64 w_scale_row = matrix * w.scale_stride_matrix +
                            (S.w == Format::fp8_e4m3 ? n / kProjectColumns : n) * w.scale_stride_row;
#pragma unroll
    for (u32 i = 0; i < Rows; ++i) sums[i] = 0;
    for (u32 column = ptx::lane_index() * 4; column < k; column += kProjectColumns) {
        const Float4 b = load4<S.w>(w.data, w_row + column);
        float scale = 1;
        if constexpr (S.w_scale != Format::none)
            scale = load_scale<S.w_scale>(
                w.scale, w_scale_row + column / (S.w == Format::fp4_e2m1 ? 32 : kProjectColumns));
#pragma unroll
        for (u32 i = 0; i < Rows; ++i) {
            const Float4 a = load4<S.x>(x, x_rows[i] + column);
            if constexpr (S.w_scale == Format::none) {
                sums[i] = ptx::fma_rn_f32(a.x, b.x, sums[i]);
                sums[i] = ptx::fma_rn_f32(a.y, b.y, sums[i]);
                sums[i] = ptx::fma_rn_f32(a.z, b.z, sums[i]);
                sums[i] = ptx::fma_rn_f32(a.w, b.w, sums[i]);
            } else {
                float part = ptx::mul_rn_f32(a.x, b.x);
                part = ptx::fma_rn_f32(a.y, b.y, part);
                part = ptx::fma_rn_f32(a.z, b.z, part);
                part = ptx::fma_rn_f32(a.w, b.w, part);
                float both = scale;
                if constexpr (S.x == Format::fp8_e4m3)
                    both = ptx::mul_rn_f32(
                        scale, load_scale<Format::fp32>(x_scale, scale_rows[i] + column / kProjectColumns));
                sums[i] = ptx::fma_rn_f32(part, both, sums[i]);
            }
        }
    }
#pragma unroll
    for (u32 i = 0; i < Rows; ++i) sums[i] = warp_sum(sums[i]);
}

}  // namespace deep_gemm::tile
