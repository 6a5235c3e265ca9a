// Experts for few rows (spec/project.h): a warp has one output of one (row, slot), or of one row. Called by
// op/expert.cpp.
#pragma once

#include <deep_gemm/tile/dot.h>
#include <deep_gemm/ptx/math.h>

namespace deep_gemm {

namespace expert_detail {

/// The expert of a slot; at or above num_experts: none.
DG_DEVICE u32 expert_of(const i32* experts, u32 slot) {
    return experts ? static_cast<u32>(ptx::ld_global_s32(experts + slot)) : 0;
}
DG_DEVICE float weight_of(const float* weights, u32 slot) {
    return weights ? ptx::ld_global_f32(weights + slot) : 1.0f;
}
/// silu(gate) * up with gate cut at the limit and up at both.
DG_DEVICE float swiglu(float gate, float up, float limit) {
    if (limit > 0) {
        gate = ptx::min_nan_f32(gate, limit);
        up = ptx::max_nan_f32(ptx::min_nan_f32(up, limit), -limit);
    }
    const float silu = ptx::div_rn_f32(gate, ptx::add_rn_f32(1.0f, ptx::exp_f32(-gate)));
    return ptx::mul_rn_f32(silu, up);
}

}  // namespace expert_detail

template <ProjectSpec S>
DG_KERNEL(kProjectThreads, 2)
expert_up(DG_GRID_CONSTANT const ExpertUpParams p) {
    ptx::grid_dependency_launch();
    ptx::grid_dependency_wait();
    const u32 n_blocks = ceil_div(p.n, kProjectWarps);
    const u32 n = ptx::block_index() % n_blocks * kProjectWarps + ptx::warp_index();
    const u32 slot = ptx::block_index() / n_blocks, row = slot / p.slots;
    if (n >= p.n) return;
    const u32 expert = expert_detail::expert_of(p.experts, slot);
    float mid = 0;
    if (expert < p.num_experts) {
        const u64 x_row[] = {row * p.x.stride}, scale_row[] = {row * p.x_scale.stride};
        float gate[1], up[1];
        tile::dot_rows<S>(p.w1, expert, n, p.x.data, x_row, p.x_scale.data, scale_row, p.k, gate);
        tile::dot_rows<S>(p.w3, expert, n, p.x.data, x_row, p.x_scale.data, scale_row, p.k, up);
        mid = ptx::mul_rn_f32(expert_detail::swiglu(gate[0], up[0], p.limit),
                              expert_detail::weight_of(p.weights, slot));
    }
    if (ptx::lane_index() == 0)
        tile::store<S.y>(p.mid.data, row * p.mid.stride + slot % p.slots * p.mid.inner_stride + n, mid);
}

template <ProjectSpec S>
DG_KERNEL(kProjectThreads, 2)
expert_down(DG_GRID_CONSTANT const ExpertDownParams p) {
    ptx::grid_dependency_launch();
    ptx::grid_dependency_wait();
    const u32 n_blocks = ceil_div(p.n, kProjectWarps);
    const u32 n = ptx::block_index() % n_blocks * kProjectWarps + ptx::warp_index();
    const u32 row = ptx::block_index() / n_blocks;
    if (n >= p.n) return;
    float sum = 0;
    if constexpr (S.add != Format::none) sum = tile::load<S.add>(p.add.data, row * p.add.stride + n);
    for (u32 j = 0; j < p.slots; ++j) {
        const u32 slot = row * p.slots + j, expert = expert_detail::expert_of(p.experts, slot);
        if (expert >= p.num_experts) continue;
        const u64 x_row[] = {row * p.mid.stride + j * p.mid.inner_stride};
        const u64 scale_row[] = {row * p.mid_scale.stride + j * p.mid_scale.inner_stride};
        float part[1];
        tile::dot_rows<S>(p.w, expert, n, p.mid.data, x_row, p.mid_scale.data, scale_row, p.k, part);
        sum = ptx::fma_rn_f32(part[0], expert_detail::weight_of(p.weights, slot), sum);
    }
    if (ptx::lane_index() == 0) tile::store<S.y>(p.y.data, row * p.y.stride + n, sum);
}

}  // namespace deep_gemm
