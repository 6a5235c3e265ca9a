// GEMM on Hopper for many tokens: tokens are the 64-row side of wgmma. Persistent and warp-specialised: one
// warp drives TMA, up to three bring the scales, one to four warpgroups multiply; while one promotes its
// partial sums to fp32 the others keep the tensor cores busy. Launched by op/gemm.cpp.
#pragma once

#include <deep_gemm/kernel/gemm_reduce.h>
#include <deep_gemm/kernel/gemm_scales.h>
#include <deep_gemm/tile/operand.h>

namespace deep_gemm {
namespace sm90_gemm_detail {

/// One block along K for one 64-row wave: four wgmma over the 128 bytes of K in a stage.
template <GemmSpec S, u32 Count>
DG_DEVICE void multiply(float (&accumulator)[Count], ptx::SharedAddress a, ptx::SharedAddress b,
                        bool accumulate) {
    using Mma = ptx::Wgmma<S.ab, S.block_n, tile::transpose_of(S.a_major), tile::transpose_of(S.b_major)>;
    constexpr u32 kStepA = tile::step_of<S.a_major>(), kStepB = tile::step_of<S.b_major>();
    Mma::template mma4<kStepA, kStepB>(accumulator, tile::operand_descriptor<S.a_major>(a),
                                       tile::operand_descriptor<S.b_major>(b), accumulate);
}

/// sum += scale_a[row] * scale_b[run of columns] * partial. Hopper's FP8 accumulator keeps about 14 bits: 128
/// elements of K are as far as it is trusted.
template <GemmSpec S, u32 Count, u32 Runs>
DG_DEVICE void promote(float (&sum)[Count], const float (&partial)[Count], const float (&scale_a)[2],
                       const float (&scale_b)[Runs]) {
    constexpr u32 kRegisters = Count / Runs;
#pragma unroll
    for (u32 run = 0; run < Runs; ++run) {
        const float b = joins_scales(S) ? 1.0f : scale_b[run];
        const float scale[2] = {scale_a[0] * b, scale_a[1] * b};
#pragma unroll
        for (u32 i = run * kRegisters; i < (run + 1) * kRegisters; ++i)
            sum[i] += scale[i / 2 % 2] * partial[i];
    }
}

/// The same with one scale a column, read from the stage.
template <GemmSpec S, u32 Count>
DG_DEVICE void promote_columns(float (&sum)[Count], const float (&partial)[Count], const float (&scale_a)[2],
                               tile::GemmSmem<S> smem, u32 stage) {
    const u32 lane_column = (ptx::lane_index() % 4) * 2;
#pragma unroll
    for (u32 i = 0; i < Count; i += 4) {
        const ptx::Float2 b = ptx::ld_shared_v2_f32(smem.scale_b(stage, i * 2 + lane_column));
        sum[i] += scale_a[0] * b.x * partial[i];
        sum[i + 1] += scale_a[0] * b.y * partial[i + 1];
        sum[i + 2] += scale_a[1] * b.x * partial[i + 2];
        sum[i + 3] += scale_a[1] * b.y * partial[i + 3];
    }
}

/// Tells the loaders (of both CTAs when tiles are multicast) that this warp is done with a stage.
template <GemmSpec S>
DG_DEVICE void release(tile::GemmSmem<S> smem, u32 stage) {
    ptx::sync_warp();
    if constexpr (!multicasts(S)) {
        if (ptx::lane_index() == 0) ptx::mbarrier_arrive(smem.empty(stage));
    } else {
        const u32 lane = ptx::lane_index();
        if (lane < cluster_size_of(S)) ptx::mbarrier_arrive_remote(ptx::map_to_rank(smem.empty(stage), lane));
    }
}

/// Scales of one 64-row wave and one stage, in registers before the stage is given back.
template <GemmSpec S>
struct WaveScales {
    static constexpr bool kPerColumn = S.scale_b == ScaleB::per_row_128;
    static constexpr u32 kRuns = kPerColumn ? 1 : scale_runs_of(S);
    float a[2];
    float b[kRuns];

    DG_DEVICE WaveScales(tile::GemmSmem<S> smem, u32 stage, u32 lane_row) {
        if constexpr (joins_scales(S)) {
            const ptx::Float2 both = ptx::ld_shared_v2_f32(smem.scale_a(stage, joined_scale_of(lane_row)));
            a[0] = both.x;
            a[1] = both.y;
        } else {
            a[0] = ptx::ld_shared_f32(smem.scale_a(stage, lane_row));
            a[1] = ptx::ld_shared_f32(smem.scale_a(stage, lane_row + 8));
        }
        if constexpr (!kPerColumn && !joins_scales(S)) {
#pragma unroll
            for (u32 run = 0; run < kRuns; ++run) b[run] = ptx::ld_shared_f32(smem.scale_b(stage, run));
        }
    }
};

/// Promotes a finished partial sum; `last` says that nobody of this warp reads the stage any more.
template <GemmSpec S, u32 Count>
DG_DEVICE void promote_and_release(float (&sum)[Count], const float (&partial)[Count],
                                   const WaveScales<S>& scales, tile::GemmSmem<S> smem, u32 stage,
                                   bool last) {
    if constexpr (WaveScales<S>::kPerColumn) {
        promote_columns<S>(sum, partial, scales.a, smem, stage);
        if (last) release<S>(smem, stage);
    } else {
        if (last) release<S>(smem, stage);
        promote<S>(sum, partial, scales.a, scales.b);
    }
}

/// Blocks of K a trip of the main loop. Four let the next stage's wait and addresses start beneath a
/// promotion (1 % of a large GEMM); the kernels of short or scattered work stay small and quick to compile.
template <GemmSpec S>
constexpr u32 unroll_of() {
    return S.groups != GroupMode::masked && S.block_m * S.block_n >= 128 * 128 && S.split_k == 1 ? 4 : 1;
}

/// All of K for this warpgroup's waves, FP8. A stage is released as soon as the last wave has read it;
/// promotion then runs beside the other warpgroup's wgmma. (Keeping a second partial sum in flight, as the
/// swapped kernel does, was no faster.)
template <GemmSpec S, u32 Waves, u32 Count>
DG_DEVICE void multiply_scaled(float (&sum)[Waves][Count], tile::GemmSmem<S> smem,
                               pipe::Cursor<S.stages>& cursor, u32 num_k, u32 wave_row) {
    const u32 lane_row = wave_row + ptx::warp_index() % 4 * 16 + ptx::lane_index() / 4;
#pragma unroll(unroll_of <S>())
    for (u32 kb = 0; kb < num_k; ++kb, cursor.advance()) {
        const u32 stage = kernel::stage_of<S>(cursor);
        ptx::mbarrier_wait(smem.full(stage), cursor.phase);
#pragma unroll
        for (u32 wave = 0; wave < Waves; ++wave) {
            const u32 row = wave * kMmaRows;
            const WaveScales<S> scales(smem, stage, row + lane_row);
            float partial[Count];
            ptx::wgmma_keep(partial);  // its registers are its own from here on, before the fence
            ptx::wgmma_fence();
            multiply<S>(partial, smem.a(stage) + (wave_row + row) * kBlockKBytes, smem.b(stage), false);
            ptx::wgmma_commit();
            ptx::wgmma_wait<0>();
            ptx::wgmma_keep(partial);
            promote_and_release<S>(sum[wave], partial, scales, smem, stage, wave == Waves - 1);
        }
    }
}

/// All of K, BF16: the tensor core's own fp32 accumulation, one stage in flight while the next is started.
template <GemmSpec S, u32 Waves, u32 Count>
DG_DEVICE void multiply_plain(float (&sum)[Waves][Count], tile::GemmSmem<S> smem,
                              pipe::Cursor<S.stages>& cursor, u32 num_k, u32 wave_row) {
    u32 previous = 0;
    for (u32 kb = 0; kb < num_k; ++kb, cursor.advance()) {
        const u32 stage = kernel::stage_of<S>(cursor);
        ptx::mbarrier_wait(smem.full(stage), cursor.phase);
#pragma unroll
        for (u32 wave = 0; wave < Waves; ++wave) ptx::wgmma_keep(sum[wave]);
        ptx::wgmma_fence();
#pragma unroll
        for (u32 wave = 0; wave < Waves; ++wave)
            multiply<S>(sum[wave], smem.a(stage) + (wave_row + wave * kMmaRows) * kBlockKBytes, smem.b(stage),
                        true);
        ptx::wgmma_commit();
        if (kb > 0) {
            ptx::wgmma_wait<1>();
            release<S>(smem, previous);
        }
        previous = stage;
    }
    ptx::wgmma_wait<0>();
#pragma unroll
    for (u32 wave = 0; wave < Waves; ++wave) ptx::wgmma_keep(sum[wave]);
    if (num_k > 0) release<S>(smem, previous);
}

/// C by TMA into where the warpgroup will stage D, as soon as the block before has left it.
template <GemmSpec S>
DG_DEVICE void load_c(const GemmParams& p, const sched::Block& block, tile::GemmSmem<S> smem, u32 warpgroup) {
    if (ptx::thread_index() % kWarpgroup != 0) return;
    constexpr u32 kWaves = waves_of(S);
    ptx::tma_store_wait_read<0>();
    kernel::load_c_waves<S>(p, block, block.m + warpgroup * kWaves * kMmaRows, kWaves,
                            smem.d() + warpgroup * kWaves * kMmaRows * S.block_n * bytes_of(S.d),
                            smem.c_full(warpgroup));
}

/// D by TMA: the warpgroup stages its waves and one thread sends them. `c_phase`: of the barrier of C.
template <GemmSpec S, u32 Waves, u32 Count>
DG_DEVICE void store_waves(const GemmParams& p, const sched::Block& block, tile::GemmSmem<S> smem,
                           u32 warpgroup, const kernel::WaveGroups<S> (&groups)[Waves],
                           float (&sum)[Waves][Count], u32 c_phase) {
    constexpr u32 kWaveBytes = kMmaRows * S.block_n * bytes_of(S.d);
    const bool stores = ptx::thread_index() % kWarpgroup == 0;
    const ptx::SharedAddress staging = smem.d() + warpgroup * Waves * kWaveBytes;
    const u32 first_row = block.m + warpgroup * Waves * kMmaRows;
    if constexpr (loads_c_by_tma(S)) {
        ptx::mbarrier_wait(smem.c_full(warpgroup), c_phase);
    } else {
        if (stores) ptx::tma_store_wait_read<0>();
        ptx::named_barrier_sync(1 + warpgroup, kWarpgroup);
    }
#pragma unroll
    for (u32 wave = 0; wave < Waves; ++wave) {
        kernel::blank_wave<S>(p, block, first_row + wave * kMmaRows, groups[wave], sum[wave]);
        kernel::stage_wave<S>(staging + wave * kWaveBytes, sum[wave]);
    }
    ptx::fence_proxy_async();
    ptx::named_barrier_sync(1 + warpgroup, kWarpgroup);
    if (stores) {
#pragma unroll
        for (u32 wave = 0; wave < Waves; ++wave)
            kernel::store_wave<S>(p, block, first_row + wave * kMmaRows, staging + wave * kWaveBytes);
        ptx::tma_store_commit();
    }
}

/// Gives back the stages of a block that this warpgroup has no rows in.
template <GemmSpec S>
DG_DEVICE void skip_stages(tile::GemmSmem<S> smem, pipe::Cursor<S.stages>& cursor, u32 num_k) {
    for (u32 kb = 0; kb < num_k; ++kb, cursor.advance()) {
        ptx::mbarrier_wait(smem.full(cursor.stage), cursor.phase);
        release<S>(smem, cursor.stage);
    }
}

template <GemmSpec S>
DG_DEVICE void multiply_blocks(const GemmParams& p, tile::GemmSmem<S> smem, u32 warpgroup) {
    constexpr u32 kWaves = waves_of(S), kCount = S.block_n / 2;
    const u32 wave_row = warpgroup * kWaves * kMmaRows, rank = S.split_k > 1 ? ptx::cluster_rank() : 0;
    const kernel::KRange range = kernel::k_range<S>(p);
    pipe::Cursor<S.stages> cursor;
    kernel::PartialExchange<S> exchange(smem);
    sched::GemmBlocks<S> blocks(p);
    kernel::WaveGroups<S> groups[kWaves];
    const auto load_groups = [&](kernel::WaveGroups<S>(&target)[kWaves]) {
        if constexpr (S.groups == GroupMode::contiguous) {
            const u32 row = blocks.upcoming_row() + wave_row;
#pragma unroll
            for (u32 wave = 0; wave < kWaves; ++wave) target[wave].load(p, row + wave * kMmaRows);
        }
    };
    load_groups(groups);
    u32 c_phase = 0;
    for (sched::Block block; blocks.next(block);) {
        const u32 num_k = block.loads ? range.end - range.begin : 0;
        if constexpr (sched::block_straddles_groups<S>()) {
            if (ptx::ballot(wave_row < block.begin || wave_row >= block.end) != 0) {
                skip_stages<S>(smem, cursor, num_k);
                load_groups(groups);
                continue;
            }
        }
        if constexpr (loads_c_by_tma(S)) load_c<S>(p, block, smem, warpgroup);
        float sum[kWaves][kCount];
#pragma unroll
        for (u32 wave = 0; wave < kWaves; ++wave)
#pragma unroll
            for (u32 i = 0; i < kCount; ++i) sum[wave][i] = 0;

        const auto multiply_all = [&] {
            if constexpr (has_scales(S))
                multiply_scaled<S>(sum, smem, cursor, num_k, wave_row);
            else
                multiply_plain<S>(sum, smem, cursor, num_k, wave_row);
        };
        if constexpr (exchanges_partials(S)) {
            multiply_all();
            exchange.begin();
#pragma unroll
            for (u32 wave = 0; wave < kWaves; ++wave)
                kernel::stage_token_rows<S>(smem, wave_row + wave * kMmaRows, sum[wave]);
            exchange.publish(rank);
            kernel::reduce_and_store<S>(p, block, smem, rank, ptx::thread_index());
            exchange.consumed();
        } else {
            multiply_all();
            kernel::WaveGroups<S> upcoming[kWaves];
            load_groups(upcoming);
            store_waves<S>(p, block, smem, warpgroup, groups, sum, c_phase);
            c_phase = 1 - c_phase;
#pragma unroll
            for (u32 wave = 0; wave < kWaves; ++wave) groups[wave] = upcoming[wave];
        }
    }
    if constexpr (exchanges_partials(S))
        exchange.end();
    else if (ptx::thread_index() % kWarpgroup == 0)
        ptx::tma_store_wait_read<0>();
}

template <GemmSpec S>
DG_DEVICE void run(const GemmParams& p) {
    static_assert(why_illegal(S) == nullptr && !S.swap_ab);
    const tile::GemmSmem<S> smem{ptx::dynamic_smem()};
    const u32 warp = ptx::warp_index(), loader = S.warpgroups * 4;
    if (warp == loader && ptx::elect_one()) {
        ptx::prefetch_tensor_map(p.a);
        ptx::prefetch_tensor_map(p.b);
        if constexpr (stores_by_tma(S)) ptx::prefetch_tensor_map(p.d);
        for (u32 stage = 0; stage < S.stages; ++stage) {
            ptx::mbarrier_init(smem.full(stage), 1 + scale_warps_of(S));
            ptx::mbarrier_init(smem.empty(stage), S.warpgroups * 4 * S.cluster_m * S.cluster_n);
        }
        if constexpr (exchanges_partials(S)) kernel::PartialExchange<S>::init(smem);
        if constexpr (loads_c_by_tma(S)) {
            ptx::prefetch_tensor_map(p.c);
            for (u32 warpgroup = 0; warpgroup < S.warpgroups; ++warpgroup)
                ptx::mbarrier_init(smem.c_full(warpgroup), 1);
        }
        ptx::fence_mbarrier_init();
    }
    if constexpr (multicasts(S))
        ptx::cluster_sync();
    else
        ptx::sync_threads();
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
    }
    // A peer may still signal this CTA's barriers or read its partial sums.
    if constexpr (cluster_size_of(S) > 1) ptx::cluster_sync();
}

}  // namespace sm90_gemm_detail

template <GemmSpec S>
DG_KERNEL(threads_of(S), ctas_per_sm_of(S))
sm90_fp8_gemm_nt(DG_GRID_CONSTANT const GemmParams p) {
    sm90_gemm_detail::run<S>(p);
}

template <GemmSpec S>
DG_KERNEL(threads_of(S), ctas_per_sm_of(S))
sm90_bf16_gemm_nt(DG_GRID_CONSTANT const GemmParams p) {
    sm90_gemm_detail::run<S>(p);
}

}  // namespace deep_gemm
