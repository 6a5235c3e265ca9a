// Projections for few rows (spec/project.h): a warp has one output column and S.rows rows of x. Correct and
// batch-invariant before fast: weights are read again for every S.rows rows. Called by op/project.cpp.
#pragma once

#include <deep_gemm/tile/dot.h>

namespace deep_gemm {

template <ProjectSpec S>
DG_KERNEL(kProjectThreads, 2)
project(DG_GRID_CONSTANT const ProjectParams p) {
    ptx::grid_dependency_launch();
    ptx::grid_dependency_wait();
    const u32 n_blocks = ceil_div(p.n, kProjectWarps), tiles = ceil_div(p.rows, S.rows);
    const u32 block = ptx::block_index();
    const u32 n = block % n_blocks * kProjectWarps + ptx::warp_index();
    const u32 first = block / n_blocks % tiles * S.rows, group = block / n_blocks / tiles;
    if (n >= p.n) return;
    u64 x_rows[S.rows], scale_rows[S.rows];
#pragma unroll
    for (u32 i = 0; i < S.rows; ++i) {
        const u32 row = first + i < p.rows ? first + i : p.rows - 1;  // computed again and dropped
        x_rows[i] = row * p.x.stride + group * p.x.inner_stride;
        scale_rows[i] = row * p.x_scale.stride + group * p.x_scale.inner_stride;
    }
    float sums[S.rows];
    tile::dot_rows<S>(p.w, group, n, p.x.data, x_rows, p.x_scale.data, scale_rows, p.k, sums);
#pragma unroll
    for (u32 i = 0; i < S.rows; ++i) {
        const u32 row = first + i;
        if (row >= p.rows || ptx::lane_index() != 0) continue;
        float y = sums[i];
        if constexpr (S.add != Format::none)
            y = ptx::add_rn_f32(
                tile::load<S.add>(p.add.data, row * p.add.stride + group * p.add.inner_stride + n), y);
        tile::store<S.y>(p.y.data, row * p.y.stride + group * p.y.inner_stride + n, y);
    }
}

}  // namespace deep_gemm
