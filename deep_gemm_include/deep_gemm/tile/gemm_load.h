// The two loading warps of a GEMM. One drives TMA for the operand tiles; the other brings the scales with 4-byte
// asynchronous copies, which take any layout (row-major or transposed), so no transpose kernel ever runs.
// Both walk the same blocks and the same ring as the math warps.
#pragma once

#include <deep_gemm/pipe/ring.h>
#include <deep_gemm/sched/gemm_blocks.h>
#include <deep_gemm/tile/gemm_smem.h>
#include <deep_gemm/ptx/copy.h>

namespace deep_gemm::tile {

/// First and last block along K of this CTA: all of them, or its share when a cluster splits K.
struct KRange {
    u32 begin, end;
};

template <GemmSpec S>
DG_DEVICE KRange k_range(const GemmParams& p) {
    const u32 num_k = ceil_div(p.k, block_k_of(S));
    if constexpr (S.split_k == 1) return {0, num_k};
    const u32 rank = ptx::cluster_rank();
    return {num_k * rank / S.split_k, num_k * (rank + 1) / S.split_k};
}

template <GemmSpec S>
DG_DEVICE void load_operands(const GemmParams& p, GemmSmem<S> smem) {
    constexpr SmemPlan kPlan = plan_smem(S);
    constexpr u16 kBothCtas = 3;
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
            if constexpr (S.cluster_n == 2) {
                constexpr u32 kHalf = S.block_m / 2;
                ptx::tma_load_3d_multicast(smem.a(cursor.stage) + rank * kHalf * kBlockKBytes, p.a, full, k,
                                           block.m + rank * kHalf, block.a_group, kBothCtas, a_policy);
            } else {
                ptx::tma_load_3d(smem.a(cursor.stage), p.a, full, k, block.m, block.a_group, a_policy);
            }
            if constexpr (S.cluster_m == 2) {
                constexpr u32 kHalf = S.block_n / 2;
                ptx::tma_load_3d_multicast(smem.b(cursor.stage) + rank * kHalf * kBlockKBytes, p.b, full, k,
                                           block.n + rank * kHalf, block.group, kBothCtas, b_policy);
            } else {
                ptx::tma_load_3d(smem.b(cursor.stage), p.b, full, k, block.n, block.group, b_policy);
            }
        }
    }
}

template <GemmSpec S>
DG_DEVICE void load_scales(const GemmParams& p, GemmSmem<S> smem) {
    constexpr u32 kRun = scale_b_run_of(S), kRuns = S.block_n / kRun;
    constexpr u32 kRowsPerScale = S.scale_b == ScaleB::per_row_128 ? 1 : kScaleBlock;
    const KRange range = k_range<S>(p);
    const u32 lane = ptx::lane_index();
    pipe::Cursor<S.stages> cursor;
    sched::GemmBlocks<S> blocks(p);
    for (sched::Block block; blocks.next(block);) {
        if (!block.loads) continue;
        const float* a_row = p.scale_a + block.a_group * p.scale_a_stride_group;
        const float* b_row = p.scale_b + block.group * p.scale_b_stride_group;
        for (u32 kb = range.begin; kb < range.end; ++kb, cursor.advance()) {
            ptx::mbarrier_wait(smem.empty(cursor.stage), cursor.phase ^ 1);
            const u64 a_column = static_cast<u64>(kb) * p.scale_a_stride_k;
            const u64 b_column = static_cast<u64>(kb) * p.scale_b_stride_k;
#pragma unroll
            for (u32 i = 0; i < S.block_m; i += ptx::kWarpThreads) {
                const u32 row = i + lane;
                const bool valid = block.m + row < p.m;
                const u64 at = static_cast<u64>(valid ? block.m + row : 0) * p.scale_a_stride_m + a_column;
                if (S.block_m % ptx::kWarpThreads == 0 || row < S.block_m)
                    ptx::cp_async_4(smem.scale_a(cursor.stage) + row * 4, a_row + at, valid);
            }
#pragma unroll
            for (u32 i = 0; i < kRuns; i += ptx::kWarpThreads) {
                const u32 run = i + lane, n = block.n + run * kRun;
                const bool valid = n < p.n;
                const u64 at = static_cast<u64>(valid ? n / kRowsPerScale : 0) * p.scale_b_stride_n + b_column;
                if (kRuns % ptx::kWarpThreads == 0 || run < kRuns)
                    ptx::cp_async_4(smem.scale_b(cursor.stage) + run * 4, b_row + at, valid);
            }
            ptx::cp_async_arrive(smem.full(cursor.stage));
        }
    }
}

}  // namespace deep_gemm::tile
