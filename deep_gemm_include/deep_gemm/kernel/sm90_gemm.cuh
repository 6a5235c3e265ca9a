// GEMM on Hopper for many tokens: tokens are the 64-row side of wgmma. Persistent and warp-specialised: one warp drives
// TMA, one brings the scales, one or two warpgroups multiply; while one promotes its partial sums to fp32 the other
// keeps the tensor cores busy. Launched by op/gemm.cpp.
#pragma once

#include <deep_gemm/tile/gemm_load.h>
#include <deep_gemm/tile/gemm_store.h>
#include <deep_gemm/ptx/wgmma.h>

namespace deep_gemm {
namespace sm90_gemm_detail {

/// One block along K for one 64-row wave: four wgmma over the 128 bytes of K in a stage.
template <GemmSpec S, u32 Count>
DG_DEVICE void multiply(float (&accumulator)[Count], ptx::SharedAddress a, ptx::SharedAddress b, bool accumulate) {
    const u64 a_tile = ptx::wgmma_descriptor(a), b_tile = ptx::wgmma_descriptor(b);
#pragma unroll
    for (u32 step = 0; step < 4; ++step)
        ptx::Wgmma<S.ab, S.block_n>::mma(accumulator, a_tile + 2 * step, b_tile + 2 * step, step > 0 || accumulate);
}

/// sum += scale_a[row] * scale_b[column] * partial. Hopper's FP8 accumulator keeps about 14 bits: 128 elements of K are
/// as far as it is trusted.
template <GemmSpec S, u32 Count>
DG_DEVICE void promote(float (&sum)[Count], const float (&partial)[Count], const float (&scale_a)[2],
                       ptx::SharedAddress scale_b) {
    constexpr u32 kRun = scale_b_run_of(S);
    if constexpr (S.scale_b == ScaleB::per_128x128) {
#pragma unroll
        for (u32 run = 0; run < S.block_n / kRun; ++run) {
            const float b = ptx::ld_shared_f32(scale_b + run * 4);
            const float scale[2] = {scale_a[0] * b, scale_a[1] * b};
#pragma unroll
            for (u32 i = run * kRun / 2; i < (run + 1) * kRun / 2; ++i) sum[i] += scale[i / 2 % 2] * partial[i];
        }
    } else {
        const u32 lane_column = (ptx::lane_index() % 4) * 2;
#pragma unroll
        for (u32 i = 0; i < Count; i += 4) {
            const ptx::Float2 b = ptx::ld_shared_v2_f32(scale_b + (i * 2 + lane_column) * 4);
            sum[i] += scale_a[0] * b.x * partial[i];
            sum[i + 1] += scale_a[0] * b.y * partial[i + 1];
            sum[i + 2] += scale_a[1] * b.x * partial[i + 2];
            sum[i + 3] += scale_a[1] * b.y * partial[i + 3];
        }
    }
}

/// Tells the loaders (of both CTAs when tiles are multicast) that this warp is done with a stage.
template <GemmSpec S>
DG_DEVICE void release(tile::GemmSmem<S> smem, u32 stage) {
    ptx::sync_warp();
    if constexpr (cluster_size_of(S) == 1) {
        if (ptx::lane_index() == 0) ptx::mbarrier_arrive(smem.empty(stage));
    } else {
        const u32 lane = ptx::lane_index();
        if (lane < cluster_size_of(S)) ptx::mbarrier_arrive_cluster(ptx::map_to_rank(smem.empty(stage), lane));
    }
}

template <GemmSpec S>
DG_DEVICE void multiply_blocks(const GemmParams& p, tile::GemmSmem<S> smem, u32 warpgroup) {
    constexpr u32 kWaves = waves_of(S), kCount = S.block_n / 2;
    constexpr u32 kWaveBytes = kMmaRows * S.block_n * bytes_of(S.d);
    const u32 num_k = ceil_div(p.k, block_k_of(S));
    const u32 wave_row = warpgroup * kWaves * kMmaRows;
    const u32 scale_row = ptx::warp_index() % 4 * 16 + ptx::lane_index() / 4;
    const bool stores = ptx::thread_index() % kWarpgroup == 0;
    const ptx::SharedAddress staging = smem.d() + warpgroup * kWaves * kWaveBytes;
    pipe::Cursor<S.stages> cursor;
    sched::GemmBlocks<S> blocks(p);
    for (sched::Block block; blocks.next(block);) {
        float sum[kWaves][kCount];
#pragma unroll
        for (u32 wave = 0; wave < kWaves; ++wave)
#pragma unroll
            for (u32 i = 0; i < kCount; ++i) sum[wave][i] = 0;

        const u32 last = block.loads ? num_k : 0;
        if constexpr (has_scales(S)) {
            for (u32 kb = 0; kb < last; ++kb, cursor.advance()) {
                ptx::mbarrier_wait(smem.full(cursor.stage), cursor.phase);
#pragma unroll
                for (u32 wave = 0; wave < kWaves; ++wave) {
                    const u32 row = wave_row + wave * kMmaRows;
                    const ptx::SharedAddress scales = smem.scale_a(cursor.stage) + (row + scale_row) * 4;
                    const float scale_a[2] = {ptx::ld_shared_f32(scales), ptx::ld_shared_f32(scales + 32)};
                    float partial[kCount];
                    ptx::wgmma_fence();
                    multiply<S>(partial, smem.a(cursor.stage) + row * kBlockKBytes, smem.b(cursor.stage), false);
                    ptx::wgmma_commit();
                    ptx::wgmma_wait<0>();
                    ptx::wgmma_keep(partial);
                    promote<S>(sum[wave], partial, scale_a, smem.scale_b(cursor.stage));
                }
                release<S>(smem, cursor.stage);
            }
        } else {
            u32 previous = 0;
            for (u32 kb = 0; kb < last; ++kb, cursor.advance()) {
                ptx::mbarrier_wait(smem.full(cursor.stage), cursor.phase);
#pragma unroll
                for (u32 wave = 0; wave < kWaves; ++wave) ptx::wgmma_keep(sum[wave]);
                ptx::wgmma_fence();
#pragma unroll
                for (u32 wave = 0; wave < kWaves; ++wave)
                    multiply<S>(sum[wave], smem.a(cursor.stage) + (wave_row + wave * kMmaRows) * kBlockKBytes,
                                smem.b(cursor.stage), true);
                ptx::wgmma_commit();
                if (kb > 0) {
                    ptx::wgmma_wait<1>();
                    release<S>(smem, previous);
                }
                previous = cursor.stage;
            }
            ptx::wgmma_wait<0>();
#pragma unroll
            for (u32 wave = 0; wave < kWaves; ++wave) ptx::wgmma_keep(sum[wave]);
            if (last > 0) release<S>(smem, previous);
        }

        if (stores) ptx::tma_store_wait_read<0>();
        ptx::named_barrier_sync(1 + warpgroup, kWarpgroup);
#pragma unroll
        for (u32 wave = 0; wave < kWaves; ++wave) {
            tile::finish_wave<S>(p, block, block.m + wave_row + wave * kMmaRows, sum[wave]);
            tile::stage_wave<S>(staging + wave * kWaveBytes, sum[wave]);
        }
        ptx::fence_proxy_async();
        ptx::named_barrier_sync(1 + warpgroup, kWarpgroup);
        if (stores) {
#pragma unroll
            for (u32 wave = 0; wave < kWaves; ++wave)
                tile::store_wave<S>(p, block, block.m + wave_row + wave * kMmaRows, staging + wave * kWaveBytes);
            ptx::tma_store_commit();
        }
    }
    if (stores) ptx::tma_store_wait_read<0>();
}

template <GemmSpec S>
DG_DEVICE void run(const GemmParams& p) {
    static_assert(why_illegal(S) == nullptr && !S.swap_ab);
    const tile::GemmSmem<S> smem{ptx::dynamic_smem()};
    const u32 warp = ptx::warp_index(), loader = S.warpgroups * 4;
    if (warp == loader && ptx::elect_one()) {
        ptx::prefetch_tensor_map(p.a);
        ptx::prefetch_tensor_map(p.b);
        ptx::prefetch_tensor_map(p.d);
        for (u32 stage = 0; stage < S.stages; ++stage) {
            // TMA's expect_tx, and one arrival of each lane that copies scales.
            ptx::mbarrier_init(smem.full(stage), 1 + (has_scales(S) ? ptx::kWarpThreads : 0));
            ptx::mbarrier_init(smem.empty(stage), S.warpgroups * 4 * cluster_size_of(S));
        }
        ptx::fence_mbarrier_init();
    }
    if constexpr (cluster_size_of(S) > 1) ptx::cluster_sync();
    else ptx::sync_threads();
    ptx::grid_dependency_launch();
    ptx::grid_dependency_wait();

    if (warp >= loader) {
        if constexpr (moves_registers(S)) ptx::setmaxnreg_dec<kLoaderRegisters>();
        if (warp == loader) tile::load_operands<S>(p, smem);
        if (has_scales(S) && warp == loader + 1) tile::load_scales<S>(p, smem);
    } else {
        if constexpr (moves_registers(S)) ptx::setmaxnreg_inc<math_registers_of(S)>();
        multiply_blocks<S>(p, smem, warp / 4);
    }
    // A peer may still signal this CTA's barriers.
    if constexpr (cluster_size_of(S) > 1) ptx::cluster_sync();
}

}  // namespace sm90_gemm_detail

template <GemmSpec S>
DG_KERNEL(threads_of(S), ctas_per_sm_of(S)) sm90_fp8_gemm_nt(DG_GRID_CONSTANT const GemmParams p) {
    sm90_gemm_detail::run<S>(p);
}

template <GemmSpec S>
DG_KERNEL(threads_of(S), ctas_per_sm_of(S)) sm90_bf16_gemm_nt(DG_GRID_CONSTANT const GemmParams p) {
    sm90_gemm_detail::run<S>(p);
}

}  // namespace deep_gemm
