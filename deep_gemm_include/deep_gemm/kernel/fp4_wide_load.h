// The warps that feed the wide FP4 GEMM: one finds work items, one streams each warpgroup's weights by bulk
// copies, one brings the tokens by TMA, one the tokens' scales by cp.async. (They start at any token,
// and TMA starts at multiples of 16 bytes.) CTAs of a cluster have the same tokens: each sends its share of a
// tile to all of them, so that L2 is read once.
#pragma once

#include <deep_gemm/kernel/fp4_load.h>
#include <deep_gemm/ptx/shared_words.h>

namespace deep_gemm::kernel {

/// A stage's tokens, kFp4BoxRows at a time, this CTA's share of them to every CTA of the cluster. Scope: an
/// elected lane.
template <Fp4GemmSpec S>
DG_DEVICE void load_wide_tokens(const Fp4WideParams& p, tile::Fp4Smem<S> smem, u32 stage, u32 first,
                                u32 group, u32 boxes, u32 kb, u64 policy) {
    constexpr u16 kAllCtas = (1u << S.cluster) - 1;
    constexpr u32 kColumns = S.block_m * S.token_terms,
                  kMostBoxes = ceil_div(kColumns / kFp4BoxRows, S.cluster);
    constexpr u32 kTiles = bytes_of(S.a), kTileK = kFp4BlockK / kTiles;  // of 128 bytes along K
    const u32 rank = S.cluster > 1 ? ptx::cluster_rank() : 0;
    const ptx::SharedAddress full = smem.full(stage);
#pragma unroll
    for (u32 turn = 0; turn < kMostBoxes; ++turn) {
        const u32 box = turn * S.cluster + rank;
        if (box >= boxes) break;
        const u32 row = first + box * kFp4BoxRows;
#pragma unroll
        for (u32 tile = 0; tile < kTiles; ++tile) {
            const u32 k = kb * kFp4BlockK + tile * kTileK;
            const ptx::SharedAddress to =
                smem.tokens(stage, 0) + (tile * kColumns + box * kFp4BoxRows) * kFp4BlockK;
            if constexpr (S.cluster > 1)
                ptx::tma_load_3d_multicast(to, p.tokens, full, k, row, group, kAllCtas, policy);
            else
                ptx::tma_load_3d(to, p.tokens, full, k, row, group, policy);
        }
    }
}

/// The warp that brings tokens. All lanes walk the stages and one of them issues the copies: addresses stay
/// in uniform registers, where TMA wants them. (A branch of one lane around the walk makes ptxas vote for
/// each.)
template <Fp4GemmSpec S>
DG_DEVICE void load_wide_items(const Fp4WideParams& p, tile::Fp4Smem<S> smem) {
    const u64 policy = ptx::l2_evict_last();  // all blocks of an expert's rows read them
    const u32 num_k = fp4_k_blocks(p.gemm.k);
    pipe::Cursor<S.stages> cursor;
    pipe::Cursor<kFp4ItemSlots> slot;
    for (sched::Fp4Item item; take_item<S>(smem, slot, item);) {
        if (item.count == 0) continue;
        const u32 columns = fp4_columns_of(S, item.count) * S.token_terms;
        const u32 group = S.groups == GroupMode::masked ? item.expert : 0, first = item.first * S.token_terms;
        for (u32 pass = 0; pass < fp4_passes<S>(p.gemm, item); ++pass) {
            for (u32 kb = 0; kb < num_k; ++kb, cursor.advance()) {
                const u32 stage = cursor.uniform_stage();
                ptx::mbarrier_wait(smem.empty(stage), cursor.phase ^ 1);
                if (!ptx::elect_one()) continue;
                ptx::mbarrier_arrive_expect_tx(smem.full(stage), columns * kFp4BlockK * bytes_of(S.a));
                load_wide_tokens<S>(p, smem, stage, first, group, columns / kFp4BoxRows, kb, policy);
            }
        }
    }
}

/// The warp that brings weights.
template <Fp4GemmSpec S>
DG_DEVICE void load_wide_weights(const Fp4WideParams& p, tile::Fp4Smem<S> smem) {
    constexpr u32 kBlob = fp4_blob_bytes_of(S.form);
    const u64 policy = ptx::l2_evict_first();  // the few CTAs that serve an expert's tokens read them now
    const u32 num_k = fp4_k_blocks(p.gemm.k), row_blocks = fp4_row_blocks(p.gemm.n);
    pipe::Cursor<S.stages> cursor;
    pipe::Cursor<kFp4ItemSlots> slot;
    for (sched::Fp4Item item; take_item<S>(smem, slot, item);) {
        if (item.count == 0) continue;
        for (u32 pass = 0; pass < fp4_passes<S>(p.gemm, item); ++pass) {
            u32 first_blob[S.warpgroups];
#pragma unroll
            for (u32 i = 0; i < S.warpgroups; ++i) {
                // Rows beyond n, and runs that a block does not have, are read again: nobody uses them.
                const u32 row_block = item.n_block * S.warpgroups + i;
                const Fp4Runs runs =
                    fp4_runs<S>(p.gemm, item.expert, row_block < row_blocks ? row_block : row_blocks - 1);
                first_blob[i] = ptx::shfl_idx((runs.first + (pass < runs.count ? pass : 0)) * num_k, 0);
            }
            for (u32 kb = 0; kb < num_k; ++kb, cursor.advance()) {
                const u32 stage = cursor.uniform_stage();
                ptx::mbarrier_wait(smem.empty(stage), cursor.phase ^ 1);
                if (!ptx::elect_one()) continue;
                const ptx::SharedAddress full = smem.full(stage);
                ptx::mbarrier_arrive_expect_tx(full, S.warpgroups * kBlob);
#pragma unroll
                for (u32 i = 0; i < S.warpgroups; ++i)
                    ptx::bulk_load(smem.blob(stage, i, 0),
                                   p.gemm.weights + static_cast<u64>(first_blob[i] + kb) * kBlob, kBlob, full,
                                   policy);
            }
        }
    }
}

/// The warp that brings scales. The copies of a lane arrive at the stage's barrier when they have landed.
template <Fp4GemmSpec S>
DG_DEVICE void load_wide_scales(const Fp4WideParams& p, tile::Fp4Smem<S> smem) {
    const u32 num_k = fp4_k_blocks(p.gemm.k), lane = ptx::lane_index();
    pipe::Cursor<S.stages> cursor;
    pipe::Cursor<kFp4ItemSlots> slot;
    for (sched::Fp4Item item; take_item<S>(smem, slot, item);) {
        if (item.count == 0) continue;
        const u32 group = S.groups == GroupMode::masked ? item.expert : 0;
        const u32 columns = fp4_columns_of(S, item.count);
        const float* const first = p.scales + static_cast<u64>(group) * num_k * p.scale_stride + item.first;
        for (u32 pass = 0; pass < fp4_passes<S>(p.gemm, item); ++pass) {
            const float* line = first;
            for (u32 kb = 0; kb < num_k; ++kb, line += p.scale_stride, cursor.advance()) {
                ptx::mbarrier_wait(smem.empty(cursor.stage), cursor.phase ^ 1);
#pragma unroll
                for (u32 turn = 0; turn < ceil_div(S.block_m, ptx::kWarpThreads); ++turn) {
                    const u32 token = turn * ptx::kWarpThreads + lane;
                    if (turn * ptx::kWarpThreads >= columns) break;
                    const bool present = token < item.count;  // zeros for the other columns
                    ptx::cp_async<4>(smem.scales(cursor.stage, 0) + token * 4, line + (present ? token : 0),
                                     present ? 4 : 0);
                }
                ptx::copy_async_arrive(smem.full(cursor.stage));
            }
        }
    }
    ptx::copy_async_wait_all();
}

/// The rows of D that the item's tokens go to, into the table of its slot. Scope: warp.
template <Fp4GemmSpec S>
DG_DEVICE void write_row_table(const Fp4GemmParams& p, tile::Fp4Smem<S> smem, u32 slot,
                               const sched::Fp4Item& item) {
    // An entry for each column: they are read without a look at the number of tokens.
    const u32 end = fp4_columns_of(S, item.count > 0 ? item.count : 1);
    for (u32 token = ptx::lane_index(); token < end; token += ptx::kWarpThreads) {
        u32 row = item.first + token;
        bool zero = token >= item.count;
        if constexpr (S.groups == GroupMode::gathered) {
            if (p.d_rows != nullptr && !zero) row = static_cast<u32>(ptx::ld_global_s32(p.d_rows + row));
            zero = zero || row >= p.d_num_rows;
        }
        if constexpr (S.groups == GroupMode::contiguous) {
            zero = zero || static_cast<u32>(ptx::ld_global_s32(p.group_layout + row)) >= p.num_groups;
        }
        ptx::st_shared_u32(smem.rows(slot) + token * 4, row | (zero ? kFp4ZeroRow : 0));
    }
}

/// per_token: the scales of the item's tokens, zeros for the other columns. Scope: warp.
template <Fp4GemmSpec S>
DG_DEVICE void write_scale_table(const Fp4WideParams& p, tile::Fp4Smem<S> smem, u32 slot,
                                 const sched::Fp4Item& item) {
    const u32 group = S.groups == GroupMode::masked ? item.expert : 0;
    const float* const first = p.scales + static_cast<u64>(group) * p.scale_stride + item.first;
    const u32 end = fp4_columns_of(S, item.count > 0 ? item.count : 1);
    for (u32 token = ptx::lane_index(); token < end; token += ptx::kWarpThreads)
        ptx::st_shared_f32(smem.token_scales(slot) + token * 4,
                           token < item.count ? ptx::ld_global_f32(first + token) : 0);
}

/// The warp that finds the items.
template <Fp4GemmSpec S>
DG_DEVICE void find_wide_items(const Fp4WideParams& p, tile::Fp4Smem<S> smem) {
    pipe::Cursor<kFp4ItemSlots> slot;
    sched::Fp4Items<S> items(p.gemm);
    for (sched::Fp4Item item; items.find(item); items.advance()) {
        if constexpr (has_row_table(S) || S.per_token) {
            ptx::mbarrier_wait(smem.item_empty(slot.stage), slot.phase ^ 1);
            if constexpr (has_row_table(S)) write_row_table<S>(p.gemm, smem, slot.stage, item);
            if constexpr (S.per_token) write_scale_table<S>(p, smem, slot.stage, item);
            ptx::sync_warp();
        }
        if (ptx::lane_index() == 0) publish_item<S>(smem, slot.stage, slot.phase, item);
        slot.advance();
        ptx::sync_warp();
    }
    if (ptx::lane_index() == 0) publish_item<S>(smem, slot.stage, slot.phase, {.expert = sched::kFp4NoItem});
}

}  // namespace deep_gemm::kernel
