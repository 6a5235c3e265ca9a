// GEMM on Hopper for few tokens: weights are the 64-row side of wgmma and tokens the short one, so no
// tensor-core row is padding. Bound by the weight stream: K is split over warpgroups (they take turns along
// K) and over the CTAs of a cluster, so that every SM pulls weights; partial sums meet through distributed
// shared memory in a fixed order. Launched by op/gemm.cpp.
#pragma once

#include <deep_gemm/kernel/gemm_reduce.h>
#include <deep_gemm/kernel/gemm_scales.h>
#include <deep_gemm/tile/operand.h>
#include <deep_gemm/tile/promotion.h>

namespace deep_gemm {
namespace sm90_gemm_swap_ab_detail {

/// Starts the four wgmma of one stage and commits them as a group.
template <GemmSpec S, u32 Count>
DG_DEVICE void start(float (&accumulator)[Count], ptx::SharedAddress weights, ptx::SharedAddress tokens,
                     bool accumulate) {
    using Mma = ptx::Wgmma<S.ab, S.block_m, tile::transpose_of(S.b_major), tile::transpose_of(S.a_major)>;
    constexpr u32 kWeightStep = tile::step_of<S.b_major>(), kTokenStep = tile::step_of<S.a_major>();
    const u64 weight_tile = tile::operand_descriptor<S.b_major>(weights);
    const u64 token_tile = tile::operand_descriptor<S.a_major>(tokens);
    ptx::wgmma_keep(accumulator);  // its registers are its own from here on, before the fence
    ptx::wgmma_fence();
    Mma::template mma4<kWeightStep, kTokenStep>(accumulator, weight_tile, token_tile, accumulate);
    ptx::wgmma_commit();
}

/// sum += scale_b[weight row] * scale_a[token] * partial, for one block of 128 along K.
template <GemmSpec S, u32 Count>
DG_DEVICE void promote(float (&sum)[Count], const float (&partial)[Count], tile::GemmSmem<S> smem, u32 stage,
                       u32 n_warpgroup) {
    const u32 lane = ptx::lane_index();
    float scale_b[2];
    if constexpr (S.scale_b == ScaleB::per_128x128) {
        scale_b[0] = ptx::ld_shared_f32(smem.scale_b(stage, n_warpgroup * kMmaRows / scale_b_run_of(S)));
        scale_b[1] = scale_b[0];
    } else {
        const u32 row = n_warpgroup * kMmaRows + ptx::warp_index() % 4 * 16 + lane / 4;
        scale_b[0] = ptx::ld_shared_f32(smem.scale_b(stage, row));
        scale_b[1] = ptx::ld_shared_f32(smem.scale_b(stage, row + 8));
    }
#pragma unroll
    for (u32 i = 0; i < Count; i += 4) {
        const ptx::Float2 a = ptx::ld_shared_v2_f32(smem.scale_a(stage, i * 2 + (lane % 4) * 2));
        sum[i] += a.x * scale_b[0] * partial[i];
        sum[i + 1] += a.y * scale_b[0] * partial[i + 1];
        sum[i + 2] += a.x * scale_b[1] * partial[i + 2];
        sum[i + 3] += a.y * scale_b[1] * partial[i + 3];
    }
}

template <GemmSpec S>
DG_DEVICE void release(tile::GemmSmem<S> smem, u32 stage) {
    ptx::sync_warp();
    if (ptx::lane_index() == 0) ptx::mbarrier_arrive(smem.empty(stage));
}

/// Every stage this warpgroup is due, FP8: `count` of them, k_warpgroups apart.
template <GemmSpec S, u32 Count>
DG_DEVICE void accumulate_scaled(float (&sum)[Count], tile::GemmSmem<S> smem, pipe::Cursor<S.stages>& cursor,
                                 u32 count, u32 n_warpgroup) {
    const auto launch = [&](float(&partial)[Count]) {
        const u32 stage = kernel::stage_of<S>(cursor);
        ptx::mbarrier_wait(smem.full(stage), cursor.phase);
        start<S>(partial, smem.b(stage) + n_warpgroup * kMmaRows * kBlockKBytes, smem.a(stage), false);
        cursor.advance(S.k_warpgroups);
        return stage;
    };
    const auto finish = [&](float(&partial)[Count], u32 stage) {
        promote<S>(sum, partial, smem, stage, n_warpgroup);
        release<S>(smem, stage);
    };
    tile::promote_overlapped<Count>(count, launch, finish);
}

/// The same for BF16, which accumulates in fp32 on its own.
template <GemmSpec S, u32 Count>
DG_DEVICE void accumulate_plain(float (&sum)[Count], tile::GemmSmem<S> smem, pipe::Cursor<S.stages>& cursor,
                                u32 count, u32 n_warpgroup) {
    u32 previous = 0;
    for (u32 i = 0; i < count; ++i, cursor.advance(S.k_warpgroups)) {
        const u32 stage = kernel::stage_of<S>(cursor);
        ptx::mbarrier_wait(smem.full(stage), cursor.phase);
        ptx::wgmma_keep(sum);
        start<S>(sum, smem.b(stage) + n_warpgroup * kMmaRows * kBlockKBytes, smem.a(stage), true);
        if (i > 0) {
            ptx::wgmma_wait<1>();
            release<S>(smem, previous);
        }
        previous = stage;
    }
    ptx::wgmma_wait<0>();
    ptx::wgmma_keep(sum);
    if (count > 0) release<S>(smem, previous);
}

template <GemmSpec S>
DG_DEVICE void multiply_blocks(const GemmParams& p, tile::GemmSmem<S> smem, u32 warpgroup) {
    constexpr u32 kCount = S.block_m / 2;
    const u32 n_warpgroup = warpgroup % n_warpgroups_of(S), k_warpgroup = warpgroup / n_warpgroups_of(S);
    const u32 rank = S.split_k > 1 ? ptx::cluster_rank() : 0;
    const kernel::KRange range = kernel::k_range<S>(p);
    const u32 num_k = range.end - range.begin;
    // Stages k_warpgroup, k_warpgroup + k_warpgroups, ... of each block are this warpgroup's.
    const u32 my_count = num_k > k_warpgroup ? (num_k - k_warpgroup - 1) / S.k_warpgroups + 1 : 0;
    pipe::Cursor<S.stages> block_start;
    kernel::PartialExchange<S> exchange(smem);
    sched::GemmBlocks<S> blocks(p);
    for (sched::Block block; blocks.next(block);) {
        if (block.loads) {
            float sum[kCount];
#pragma unroll
            for (u32 i = 0; i < kCount; ++i) sum[i] = 0;
            pipe::Cursor<S.stages> cursor = block_start;
            cursor.advance(k_warpgroup);
            if constexpr (has_scales(S))
                accumulate_scaled<S>(sum, smem, cursor, my_count, n_warpgroup);
            else
                accumulate_plain<S>(sum, smem, cursor, my_count, n_warpgroup);
            // Back to where the ring stands after num_k stages, whoever took the last ones.
            if constexpr (S.k_warpgroups == 1) {
                block_start = cursor;
            } else {
                for (u32 turn = 0; turn < num_k / S.k_warpgroups; ++turn) block_start.advance(S.k_warpgroups);
                block_start.advance(num_k % S.k_warpgroups);
            }
            exchange.begin();
            kernel::stage_weight_rows<S>(smem, n_warpgroup, k_warpgroup, sum);
            exchange.publish(rank);
        }
        kernel::reduce_and_store<S>(p, block, smem, rank, ptx::thread_index());
        if (block.loads) exchange.consumed();
    }
    exchange.end();
}

template <GemmSpec S>
DG_DEVICE void run(const GemmParams& p) {
    static_assert(why_illegal(S) == nullptr && S.swap_ab);
    const tile::GemmSmem<S> smem{ptx::dynamic_smem()};
    const u32 warp = ptx::warp_index(), loader = S.warpgroups * 4;
    if (warp == loader && ptx::elect_one()) {
        ptx::prefetch_tensor_map(p.a);
        ptx::prefetch_tensor_map(p.b);
        for (u32 stage = 0; stage < S.stages; ++stage) {
            ptx::mbarrier_init(smem.full(stage), 1 + scale_warps_of(S));
            ptx::mbarrier_init(smem.empty(stage), n_warpgroups_of(S) * 4);
        }
        kernel::PartialExchange<S>::init(smem);
        ptx::fence_mbarrier_init();
    }
    ptx::sync_threads();
    // The peers' barriers are needed first when partial sums meet: nobody waits for the cluster before that.
    if constexpr (S.split_k > 1) ptx::cluster_arrive();
    ptx::grid_dependency_launch();
    ptx::grid_dependency_wait();

    if (warp >= loader) {
        if constexpr (moves_registers(S)) ptx::setmaxnreg_dec<kLoaderRegisters>();
        if (warp == loader) kernel::load_operands<S>(p, smem);
        if constexpr (has_scales(S)) {
            if (warp - loader - 1 < scale_warps_of(S)) kernel::load_scales<S>(p, smem, warp - loader - 1);
        }
    } else {
        if constexpr (moves_registers(S)) ptx::setmaxnreg_inc<math_registers_of(S)>();
        multiply_blocks<S>(p, smem, warp / 4);
    }
    if constexpr (S.split_k > 1) {
        if (warp >= loader) ptx::cluster_wait();
        // A peer may still read this CTA's partial sums.
        ptx::cluster_sync();
    }
}

}  // namespace sm90_gemm_swap_ab_detail

template <GemmSpec S>
DG_KERNEL(threads_of(S), ctas_per_sm_of(S))
sm90_fp8_gemm_swap_ab(DG_GRID_CONSTANT const GemmParams p) {
    sm90_gemm_swap_ab_detail::run<S>(p);
}

template <GemmSpec S>
DG_KERNEL(threads_of(S), ctas_per_sm_of(S))
sm90_bf16_gemm_swap_ab(DG_GRID_CONSTANT const GemmParams p) {
    sm90_gemm_swap_ab_detail::run<S>(p);
}

}  // namespace deep_gemm
