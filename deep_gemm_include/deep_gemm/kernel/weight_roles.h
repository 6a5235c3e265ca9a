// The roles of a CTA of a weight-only GEMM: barriers are made, two warps load, the others multiply.
#pragma once

#include <deep_gemm/kernel/weight_load.h>

namespace deep_gemm::kernel {

/// This warp is done with the tokens of the stage before the cursor's; both CTAs of a pair learn it.
template <WeightGemmSpec S>
DG_DEVICE void release_tokens(tile::WeightSmem<S> smem, const pipe::Cursor<S.token_stages>& cursor) {
    const u32 before = (cursor.stage == 0 ? S.token_stages : cursor.stage) - 1;
    ptx::sync_warp();
    const u32 lane = ptx::lane_index();
    if constexpr (S.cluster == 1) {
        if (lane == 0) ptx::mbarrier_arrive(smem.tokens_empty(before));
    } else {
        if (lane < S.cluster) ptx::mbarrier_arrive_remote(ptx::map_to_rank(smem.tokens_empty(before), lane));
    }
}

/// The whole kernel: Multiplier(params, smem, warp).run() is what a math warp does.
template <WeightGemmSpec S, typename Multiplier>
DG_DEVICE void run_weight_roles(const WeightGemmParams& p) {
    const tile::WeightSmem<S> smem{ptx::dynamic_smem()};
    const u32 warp = ptx::warp_index(), loader = S.warpgroups * 4;
    if (warp == loader && ptx::elect_one()) {
        for (u32 matrix = 0; matrix < num_matrices_of(S); ++matrix) ptx::prefetch_tensor_map(p.w[matrix]);
        ptx::prefetch_tensor_map(p.x);
        for (u32 stage = 0; stage < S.weight_stages; ++stage) {
            ptx::mbarrier_init(smem.weights_full(stage), 1);
            ptx::mbarrier_init(smem.weights_empty(stage), S.warpgroups * 4);
        }
        for (u32 stage = 0; stage < S.token_stages; ++stage) {
            ptx::mbarrier_init(smem.tokens_full(stage), 1);
            ptx::mbarrier_init(smem.tokens_empty(stage), S.warpgroups * 4 * S.cluster);
        }
        ptx::fence_mbarrier_init();
    }
    if constexpr (S.cluster > 1)
        ptx::cluster_sync();
    else
        ptx::sync_threads();
    ptx::grid_dependency_launch();
    ptx::grid_dependency_wait();
    if (warp >= loader) {
        if constexpr (moves_registers(S)) ptx::setmaxnreg_dec<kWeightLoaderRegisters>();
        if (warp == loader && ptx::elect_one()) load_weights<S>(p, smem);
        if (warp == loader + 1 && ptx::elect_one()) load_tokens<S>(p, smem);
        ptx::sync_warp();
    } else {
        if constexpr (moves_registers(S)) ptx::setmaxnreg_inc<math_registers_of(S)>();
        Multiplier(p, smem, warp).run();
    }
    // A peer may still signal this CTA's barriers.
    if constexpr (S.cluster > 1) ptx::cluster_sync();
}

}  // namespace deep_gemm::kernel
