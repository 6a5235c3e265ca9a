// The warps that bring the scales of an FP8 GEMM, in whatever layout the caller has: no transpose kernel ever
// runs. Each lane owns a few scale rows (tokens, and runs of columns of B). It loads four blocks of K of a
// row at once, 16 bytes if they are contiguous and aligned, keeps them in registers, and stores one block's
// worth to each stage as [rows]. So shared memory, which bounds the multiplication, sees one conflict-free
// store a stage.
#pragma once

#include <deep_gemm/kernel/gemm_load.h>

namespace deep_gemm::kernel {

/// One scale row of a block: where it starts, how its blocks of K are spaced, and if it lies inside the
/// matrix.
struct ScaleRow {
    const float* data;
    u32 stride_k;
    bool valid;
    bool vector;  // 16-byte loads are legal
};

template <GemmSpec S>
DG_DEVICE ScaleRow scale_row(const GemmParams& p, const sched::Block& block, u32 item) {
    ScaleRow row;
    u32 stride_row;
    if (item < S.block_m) {
        const u32 m = block.m + item;
        row.valid = m < p.m;
        row.stride_k = p.scale_a_stride_k;
        stride_row = p.scale_a_stride_m;
        row.data = p.scale_a + block.a_group * p.scale_a_stride_group +
                   static_cast<u64>(row.valid ? m : 0) * stride_row;
    } else {
        constexpr u32 kRowsPerScale = S.scale_b == ScaleB::per_row_128 ? 1 : kScaleBlock;
        const u32 n = block.n + (item - S.block_m) * scale_b_run_of(S);
        row.valid = item < S.block_m + scale_runs_of(S) && n < p.n;
        row.stride_k = p.scale_b_stride_k;
        stride_row = p.scale_b_stride_n;
        row.data = p.scale_b + block.group * p.scale_b_stride_group +
                   static_cast<u64>(row.valid ? n / kRowsPerScale : 0) * stride_row;
    }
    row.vector = row.stride_k == 1 && reinterpret_cast<u64>(row.data) % 16 == 0;
    return row;
}

/// Scales of blocks kb ... kb + 3 of a row; zero where there is none.
DG_DEVICE ptx::Float4 load_scale_chunk(const ScaleRow& row, u32 kb, u32 num_k) {
    ptx::Float4 v{0, 0, 0, 0};
    if (!row.valid || kb >= num_k) return v;
    if (row.vector && kb + kScaleChunk <= num_k) return ptx::ld_global_v4_f32(row.data + kb);
    const float* at = row.data + static_cast<u64>(kb) * row.stride_k;
    v.x = ptx::ld_global_f32(at);
    if (kb + 1 < num_k) v.y = ptx::ld_global_f32(at + row.stride_k);
    if (kb + 2 < num_k) v.z = ptx::ld_global_f32(at + 2 * static_cast<u64>(row.stride_k));
    if (kb + 3 < num_k) v.w = ptx::ld_global_f32(at + 3 * static_cast<u64>(row.stride_k));
    return v;
}

/// `warp` counts the scale warps from 0.
template <GemmSpec S>
DG_DEVICE void load_scales(const GemmParams& p, tile::GemmSmem<S> smem, u32 warp) {
    constexpr u32 kLanes = scale_warps_of(S) * ptx::kWarpThreads;
    constexpr u32 kItems = staged_scales_of(S), kPerLane = ceil_div(kItems, kLanes);
    const KRange range = k_range<S>(p);
    const u32 first = warp * ptx::kWarpThreads + ptx::lane_index();
    pipe::Cursor<S.stages> cursor;
    sched::GemmBlocks<S> blocks(p);
    for (sched::Block block; blocks.next(block);) {
        if (!block.loads) continue;
        ScaleRow rows[kPerLane];
#pragma unroll
        for (u32 i = 0; i < kPerLane; ++i) rows[i] = scale_row<S>(p, block, first + i * kLanes);
        const ScaleRow row_of_b = scale_row<S>(p, block, S.block_m);
        for (u32 kb = range.begin; kb < range.end;) {
            // In flight while this warp waits for the stage: the ring runs ahead of the math by more than a
            // load takes.
            ptx::Float4 chunk[kPerLane];
#pragma unroll
            for (u32 i = 0; i < kPerLane; ++i) chunk[i] = load_scale_chunk(rows[i], kb, range.end);
            if constexpr (joins_scales(S)) {
                const ptx::Float4 b = load_scale_chunk(row_of_b, kb, range.end);
#pragma unroll
                for (u32 i = 0; i < kPerLane; ++i)
                    chunk[i] = {chunk[i].x * b.x, chunk[i].y * b.y, chunk[i].z * b.z, chunk[i].w * b.w};
            }
#pragma unroll
            for (u32 step = 0; step < kScaleChunk; ++step) {
                if (kb == range.end) break;
                ptx::mbarrier_wait(smem.empty(cursor.stage), cursor.phase ^ 1);
#pragma unroll
                for (u32 i = 0; i < kPerLane; ++i) {
                    const u32 item = first + i * kLanes;
                    const float value = step == 0   ? chunk[i].x
                                        : step == 1 ? chunk[i].y
                                        : step == 2 ? chunk[i].z
                                                    : chunk[i].w;
                    const u32 slot = joins_scales(S) ? joined_scale_of(item) : item;
                    if (item < kItems) ptx::st_shared_f32(smem.scales(cursor.stage) + slot * 4, value);
                }
                ptx::sync_warp();
                if (ptx::lane_index() == 0) ptx::mbarrier_arrive(smem.full(cursor.stage));
                cursor.advance();
                ++kb;
            }
        }
    }
}

}  // namespace deep_gemm::kernel
