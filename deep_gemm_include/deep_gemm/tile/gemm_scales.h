// Scales of an FP8 GEMM: the warp that brings them and the reader of the math warps. They travel in chunks of four blocks
// of K through a ring of their own, in the layout the caller has (no transpose kernel): row-major scales are 16
// contiguous bytes a row. (TMA would take them too, but a box of 16-byte rows is slow and holds up the operands.)
//
//   scale_a: [block_m][4]; if m is contiguous [4][block_m]
//   scale_b: [runs][4]; a run is the columns that share a scale
#pragma once

#include <deep_gemm/tile/gemm_load.h>

namespace deep_gemm::tile {

template <GemmSpec S>
DG_DEVICE void init_scale_barriers(GemmSmem<S> smem) {
    // A chunk is complete when every lane's copies are in, and what TMA was told to expect.
    constexpr u32 kFullArrivals = ptx::kWarpThreads + (S.scale_a_load == ScaleALoad::tma_m_contiguous ? 1 : 0);
    if constexpr (has_scales(S)) {
        for (u32 chunk = 0; chunk < scale_chunks_of(S); ++chunk) {
            ptx::mbarrier_init(smem.scale_full(chunk), kFullArrivals);
            ptx::mbarrier_init(smem.scale_empty(chunk), S.warpgroups * 4);
        }
    }
}

template <GemmSpec S>
DG_DEVICE void copy_scale_a(const GemmParams& p, ptx::SharedAddress to, const sched::Block& block, u32 kb, u32 num_k) {
    const float* scales = p.scale_a + block.a_group * p.scale_a_stride_group;
    if constexpr (S.scale_a_load == ScaleALoad::rows_16_bytes) {
#pragma unroll
        for (u32 i = 0; i < S.block_m; i += ptx::kWarpThreads) {
            const u32 row = i + ptx::lane_index();
            const bool valid = block.m + row < p.m;
            const float* from = scales + static_cast<u64>(valid ? block.m + row : 0) * p.scale_a_stride_m + kb;
            if (row < S.block_m) ptx::cp_async_16(to + row * 16, from, valid);
        }
    } else {
        for (u32 i = ptx::lane_index(); i < S.block_m * kScaleChunk; i += ptx::kWarpThreads) {
            const u32 row = block.m + i / kScaleChunk, column = kb + i % kScaleChunk;
            const bool valid = row < p.m && column < num_k;
            const u64 at = static_cast<u64>(row) * p.scale_a_stride_m + static_cast<u64>(column) * p.scale_a_stride_k;
            ptx::cp_async_4(to + i * 4, scales + (valid ? at : 0), valid);
        }
    }
}

template <GemmSpec S>
DG_DEVICE void copy_scale_b(const GemmParams& p, ptx::SharedAddress to, const sched::Block& block, u32 kb, u32 num_k) {
    constexpr u32 kRun = scale_b_run_of(S), kRowsPerScale = S.scale_b == ScaleB::per_row_128 ? 1 : kScaleBlock;
    const float* scales = p.scale_b + block.group * p.scale_b_stride_group;
    for (u32 i = ptx::lane_index(); i < S.block_n / kRun * kScaleChunk; i += ptx::kWarpThreads) {
        const u32 n = block.n + i / kScaleChunk * kRun, column = kb + i % kScaleChunk;
        const bool valid = n < p.n && column < num_k;
        const u64 at = static_cast<u64>(n / kRowsPerScale) * p.scale_b_stride_n +
                       static_cast<u64>(column) * p.scale_b_stride_k;
        ptx::cp_async_4(to + i * 4, scales + (valid ? at : 0), valid);
    }
}

template <GemmSpec S>
DG_DEVICE void load_scales(const GemmParams& p, GemmSmem<S> smem) {
    const KRange range = k_range<S>(p);
    const u32 num_k = ceil_div(p.k, kScaleBlock);
    const u64 policy = ptx::l2_evict_last();
    pipe::Cursor<scale_chunks_of(S)> cursor;
    sched::GemmBlocks<S> blocks(p);
    for (sched::Block block; blocks.next(block);) {
        if (!block.loads) continue;
        for (u32 kb = range.begin; kb < range.end; kb += kScaleChunk, cursor.advance()) {
            const ptx::SharedAddress full = smem.scale_full(cursor.stage), to = smem.scale_a(cursor.stage);
            ptx::mbarrier_wait(smem.scale_empty(cursor.stage), cursor.phase ^ 1);
            if constexpr (S.scale_a_load != ScaleALoad::tma_m_contiguous) {
                copy_scale_a<S>(p, to, block, kb, num_k);
            } else if (ptx::elect_one()) {
                ptx::mbarrier_arrive_expect_tx(full, plan_smem(S).scale_a_chunk_bytes);
                ptx::tma_load_3d(to, p.scale_a_map, full, block.m, kb, block.a_group, policy);
            }
            copy_scale_b<S>(p, smem.scale_b(cursor.stage), block, kb, num_k);
            ptx::cp_async_arrive(full);
        }
    }
}

/// What a math warp sees of the scale ring. Within a block: enter(chunk) in rising order, then leave(chunks).
template <GemmSpec S>
class ScaleReader {
  public:
    DG_DEVICE explicit ScaleReader(GemmSmem<S> smem) : smem_(smem) {}

    /// Waits for `chunk` of the current block and gives back the one before it. No warp skips a chunk: warpgroups that
    /// take turns along K are at most kScaleChunk.
    DG_DEVICE void enter(u32 chunk) {
        static_assert(S.k_warpgroups <= kScaleChunk);
        if (entered_ > chunk) return;
        if (entered_ > 0) give_back();
        ptx::mbarrier_wait(smem_.scale_full(cursor_.stage), cursor_.phase);
        ++entered_;
    }
    /// Ends a block of `chunks` chunks.
    DG_DEVICE void leave(u32 chunks) {
        if (chunks == 0) return;
        enter(chunks - 1);
        give_back();
        entered_ = 0;
    }
    DG_DEVICE float a(u32 row, u32 kb) const {
        constexpr bool kRowMajor = S.scale_a_load != ScaleALoad::tma_m_contiguous;
        const u32 index = kRowMajor ? row * kScaleChunk + kb % kScaleChunk : kb % kScaleChunk * S.block_m + row;
        return ptx::ld_shared_f32(smem_.scale_a(cursor_.stage) + index * 4);
    }
    DG_DEVICE float b(u32 run, u32 kb) const {
        return ptx::ld_shared_f32(smem_.scale_b(cursor_.stage) + (run * kScaleChunk + kb % kScaleChunk) * 4);
    }

  private:
    DG_DEVICE void give_back() {
        ptx::sync_warp();
        if (ptx::lane_index() == 0) ptx::mbarrier_arrive(smem_.scale_empty(cursor_.stage));
        cursor_.advance();
    }

    GemmSmem<S> smem_;
    pipe::Cursor<scale_chunks_of(S)> cursor_;
    u32 entered_ = 0;
};

}  // namespace deep_gemm::tile
