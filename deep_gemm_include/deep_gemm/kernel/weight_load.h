// The two warps that drive TMA for a weight-only GEMM, one for each ring. Both walk the blocks that the math
// warps walk. With a cluster each CTA brings half of the tokens, for both.
#pragma once

#include <deep_gemm/pipe/ring.h>
#include <deep_gemm/sched/weight_blocks.h>
#include <deep_gemm/tile/weight_smem.h>
#include <deep_gemm/ptx/copy.h>

namespace deep_gemm::kernel {

/// Stages of weights along K.
template <WeightGemmSpec S>
DG_DEVICE u32 weight_stages_of(const WeightGemmParams& p) {
    return ceil_div(p.k, weight_stage_k_of(S.w));
}

/// One lane. Rows and columns outside W arrive as zeros.
template <WeightGemmSpec S>
DG_DEVICE void load_weights(const WeightGemmParams& p, tile::WeightSmem<S> smem) {
    // Weights of the only block of tokens are read once.
    const u64 policy = p.m <= S.block_m ? ptx::l2_evict_first() : ptx::l2_evict_last();
    const u32 stages = weight_stages_of<S>(p);
    pipe::Cursor<S.weight_stages> cursor;
    sched::WeightBlocks<S> blocks(p);
    for (sched::WeightBlock block; blocks.next(block);) {
        for (u32 i = 0; i < stages; ++i, cursor.advance()) {
            const ptx::SharedAddress full = smem.weights_full(cursor.stage);
            ptx::mbarrier_wait(smem.weights_empty(cursor.stage), cursor.phase ^ 1);
            ptx::mbarrier_arrive_expect_tx(full, smem.kPlan.weight_stage_bytes);
#pragma unroll
            for (u32 matrix = 0; matrix < num_matrices_of(S); ++matrix)
                ptx::tma_load_3d(smem.weights(cursor.stage) + matrix * matrix_rows_of(S) * kWeightTileBytes,
                                 p.w[matrix], full, i * kWeightTileBytes, block.row, 0, policy);
        }
    }
}

/// One lane. As many tiles as the weights' stages need: those beyond k are zeros.
template <WeightGemmSpec S>
DG_DEVICE void load_tokens(const WeightGemmParams& p, tile::WeightSmem<S> smem) {
    constexpr u32 kShare = S.block_m / S.cluster;
    constexpr u16 kBothCtas = 3;
    const u64 policy = ptx::l2_evict_last();
    const u32 tiles = weight_stages_of<S>(p) * token_tiles_of(S);
    const u32 rank = S.cluster > 1 ? ptx::cluster_rank() : 0;
    pipe::Cursor<S.token_stages> cursor;
    sched::WeightBlocks<S> blocks(p);
    for (sched::WeightBlock block; blocks.next(block);) {
        for (u32 i = 0; i < tiles; ++i, cursor.advance()) {
            const ptx::SharedAddress full = smem.tokens_full(cursor.stage);
            const ptx::SharedAddress to = smem.tokens(cursor.stage) + rank * kShare * kBlockKBytes;
            ptx::mbarrier_wait(smem.tokens_empty(cursor.stage), cursor.phase ^ 1);
            ptx::mbarrier_arrive_expect_tx(full, smem.kPlan.token_stage_bytes);
            if constexpr (S.cluster > 1)
                ptx::tma_load_3d_multicast(to, p.x, full, i * token_tile_k_of(S), block.token + rank * kShare,
                                           0, kBothCtas, policy);
            else
                ptx::tma_load_3d(to, p.x, full, i * token_tile_k_of(S), block.token, 0, policy);
        }
    }
}

}  // namespace deep_gemm::kernel
