// The warp that drives TMA for the operand tiles of a GEMM. It walks the same blocks and the same ring as the
// math warps; kernel/gemm_scales.h is its neighbour for the scales.
#pragma once

#include <deep_gemm/pipe/ring.h>
#include <deep_gemm/sched/gemm_blocks.h>
#include <deep_gemm/tile/gemm_smem.h>
#include <deep_gemm/ptx/copy.h>

namespace deep_gemm::kernel {

/// First and last block along K of this CTA: all of them, or its share when a cluster splits K. Shares are
/// whole chunks of scales, so that their 16-byte loads stay aligned.
struct KRange {
    u32 begin, end;
};

template <GemmSpec S>
DG_DEVICE KRange k_range(const GemmParams& p) {
    const u32 num_k = ceil_div(p.k, block_k_of(S));
    if constexpr (S.split_k == 1) return {0, num_k};
    const u32 rank = ptx::cluster_rank(), chunks = ceil_div(num_k, kScaleChunk);
    const u32 end = chunks * (rank + 1) / S.split_k * kScaleChunk;
    return {chunks * rank / S.split_k * kScaleChunk, end < num_k ? end : num_k};
}

/// The cursor's stage for addresses of wgmma and TMA, in a uniform register. Where groups are scanned the
/// compiler cannot see that lanes agree (sched/gemm_blocks.h): one broadcast a stage replaces many moves.
template <GemmSpec S>
DG_DEVICE u32 stage_of(const pipe::Cursor<S.stages>& cursor) {
    return sched::scans_groups<S>() ? cursor.uniform_stage() : cursor.stage;
}

constexpr u16 kBothCtas = 3;  // of a multicast

/// Brings the tile of an operand that is contiguous along its rows, chunk by chunk. Of two CTAs that share it
/// each brings half of the k into both.
template <GemmSpec S, u32 BlockRows, u32 Sharers>
DG_DEVICE void load_chunks(ptx::SharedAddress tile, const TensorMap& map, ptx::SharedAddress full, u32 k,
                           u32 row, u32 group, u32 rank, u64 policy) {
    const u32 share = Sharers == 2 ? rank * (block_k_of(S) / 2) : 0;
#pragma unroll
    for (u32 chunk = 0; chunk < stage_rows_of(Major::mn, BlockRows); chunk += kMmaRows) {
        const ptx::SharedAddress destination = tile + (chunk + share) * kBlockKBytes;
        if constexpr (Sharers == 2)
            ptx::tma_load_3d_multicast(destination, map, full, row + chunk, k + share, group, kBothCtas,
                                       policy);
        else
            ptx::tma_load_3d(destination, map, full, row + chunk, k, group, policy);
    }
}

template <GemmSpec S>
DG_DEVICE void load_operands(const GemmParams& p, tile::GemmSmem<S> smem) {
    constexpr SmemPlan kPlan = plan_smem(S);
    // Few tokens: weights are read once, activations by every CTA. Many tokens: both are shared, keep both.
    const u64 a_policy = ptx::l2_evict_last();
    const u64 b_policy = S.swap_ab ? ptx::l2_evict_first() : ptx::l2_evict_last();
    const KRange range = k_range<S>(p);
    const u32 rank = cluster_size_of(S) > 1 ? ptx::cluster_rank() : 0;
    pipe::Cursor<S.stages> cursor;
    sched::GemmBlocks<S> blocks(p);
    for (sched::Block block; blocks.next(block);) {
        if (!block.loads) continue;
        for (u32 kb = range.begin; kb < range.end; ++kb, cursor.advance()) {
            ptx::mbarrier_wait(smem.empty(cursor.stage), cursor.phase ^ 1);
            if (!ptx::elect_one()) continue;
            const u32 k = kb * block_k_of(S);
            const ptx::SharedAddress full = smem.full(cursor.stage);
            ptx::mbarrier_arrive_expect_tx(full, kPlan.a_stage_bytes + kPlan.b_stage_bytes);
            if constexpr (S.a_major == Major::mn) {
                load_chunks<S, S.block_m, S.cluster_n>(smem.a(cursor.stage), p.a, full, k, block.m,
                                                       block.a_group, rank, a_policy);
            } else if constexpr (S.cluster_n == 2) {
                constexpr u32 kHalf = S.block_m / 2;
                ptx::tma_load_3d_multicast(smem.a(cursor.stage) + rank * kHalf * kBlockKBytes, p.a, full, k,
                                           block.m + rank * kHalf, block.a_group, kBothCtas, a_policy);
            } else {
                ptx::tma_load_3d(smem.a(cursor.stage), p.a, full, k, block.m, block.a_group, a_policy);
            }
            if constexpr (S.b_major == Major::mn) {
                load_chunks<S, S.block_n, S.cluster_m>(smem.b(cursor.stage), p.b, full, k, block.n,
                                                       block.group, rank, b_policy);
            } else if constexpr (S.cluster_m == 2) {
                constexpr u32 kHalf = S.block_n / 2;
                ptx::tma_load_3d_multicast(smem.b(cursor.stage) + rank * kHalf * kBlockKBytes, p.b, full, k,
                                           block.n + rank * kHalf, block.group, kBothCtas, b_policy);
            } else {
                ptx::tma_load_3d(smem.b(cursor.stage), p.b, full, k, block.n, block.group, b_policy);
            }
        }
    }
}

}  // namespace deep_gemm::kernel
