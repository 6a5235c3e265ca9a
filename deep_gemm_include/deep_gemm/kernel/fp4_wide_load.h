// The warps that feed the wide FP4 GEMM: one finds work items, one streams each warpgroup's weights by bulk
// copies and brings the tokens by TMA, one brings the tokens' scales by cp.async. (They start at any token,
// and TMA starts at multiples of 16 bytes.) CTAs of a cluster have the same tokens: each sends its share of a
// tile to all of them, so that L2 is read once.
#pragma once

#include <deep_gemm/kernel/fp4_load.h>
#include <deep_gemm/ptx/shared_words.h>

namespace deep_gemm::kernel {

/// One lane: a stage's tokens, kFp4BoxRows at a time, this CTA's share of them to every CTA of the cluster.
template <Fp4GemmSpec S>
DG_DEVICE void load_wide_tokens(const Fp4WideParams& p, tile::Fp4Smem<S> smem, u32 stage,
                                const sched::Fp4Item& item, u32 boxes, u32 kb, u64 policy) {
    constexpr u16 kAllCtas = (1u << S.cluster) - 1;
    const u32 group = S.groups == GroupMode::masked ? item.expert : 0;
    const ptx::SharedAddress full = smem.full(stage);
    for (u32 box = S.cluster > 1 ? ptx::cluster_rank() : 0; box < boxes; box += S.cluster) {
        const ptx::SharedAddress to = smem.tokens(stage, 0) + box * (kFp4BoxRows * kFp4BlockK);
        const u32 row = item.first + box * kFp4BoxRows;
        if constexpr (S.cluster > 1)
            ptx::tma_load_3d_multicast(to, p.tokens, full, kb * kFp4BlockK, row, group, kAllCtas, policy);
        else
            ptx::tma_load_3d(to, p.tokens, full, kb * kFp4BlockK, row, group, policy);
    }
}

/// One lane: the stages of one item.
template <Fp4GemmSpec S>
DG_DEVICE void load_wide_item(const Fp4WideParams& p, tile::Fp4Smem<S> smem, pipe::Cursor<S.stages>& cursor,
                              const sched::Fp4Item& item, u64 weight_policy, u64 token_policy) {
    constexpr u32 kBlob = fp4_blob_bytes_of(S.form);
    const u32 num_k = fp4_k_blocks(p.gemm.k), row_blocks = fp4_row_blocks(p.gemm.n);
    const u32 columns = fp4_columns_of(S, item.count);
    for (u32 pass = 0; pass < fp4_passes<S>(p.gemm, item); ++pass) {
        const u8* source[S.warpgroups];
#pragma unroll
        for (u32 i = 0; i < S.warpgroups; ++i) {
            // Rows beyond n, and runs that a block does not have, are read again: nobody uses them.
            const u32 row_block = item.n_block * S.warpgroups + i;
            const Fp4Runs runs =
                fp4_runs<S>(p.gemm, item.expert, row_block < row_blocks ? row_block : row_blocks - 1);
            source[i] = p.gemm.weights +
                        (runs.first + (pass < runs.count ? pass : 0)) * (static_cast<u64>(num_k) * kBlob);
        }
        for (u32 kb = 0; kb < num_k; ++kb, cursor.advance()) {
            ptx::mbarrier_wait(smem.empty(cursor.stage), cursor.phase ^ 1);
            const ptx::SharedAddress full = smem.full(cursor.stage);
            ptx::mbarrier_arrive_expect_tx(full, S.warpgroups * kBlob + columns * kFp4BlockK);
#pragma unroll
            for (u32 i = 0; i < S.warpgroups; ++i) {
                ptx::bulk_load(smem.blob(cursor.stage, i, 0), source[i], kBlob, full, weight_policy);
                source[i] += kBlob;
            }
            load_wide_tokens<S>(p, smem, cursor.stage, item, columns / kFp4BoxRows, kb, token_policy);
        }
    }
}

template <Fp4GemmSpec S>
DG_DEVICE void load_wide_items(const Fp4WideParams& p, tile::Fp4Smem<S> smem) {
    // Weights are read by the few CTAs that serve an expert's tokens now, tokens by all its blocks of rows.
    const u64 weight_policy = ptx::l2_evict_first(), token_policy = ptx::l2_evict_last();
    pipe::Cursor<S.stages> cursor;
    pipe::Cursor<kFp4ItemSlots> slot;
    for (sched::Fp4Item item; take_item<S>(smem, slot, item);) {
        if (item.count > 0 && ptx::lane_index() == 0)
            load_wide_item<S>(p, smem, cursor, item, weight_policy, token_policy);
        ptx::sync_warp();
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
                    ptx::copy_async_4(smem.scales(cursor.stage, 0) + token * 4, line + (present ? token : 0),
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
        }
        if constexpr (S.groups == GroupMode::contiguous) {
            zero = zero || static_cast<u32>(ptx::ld_global_s32(p.group_layout + row)) >= p.num_groups;
        }
        ptx::st_shared_u32(smem.rows(slot) + token * 4, row | (zero ? kFp4ZeroRow : 0));
    }
}

/// The warp that finds the items.
template <Fp4GemmSpec S>
DG_DEVICE void find_wide_items(const Fp4WideParams& p, tile::Fp4Smem<S> smem) {
    pipe::Cursor<kFp4ItemSlots> slot;
    sched::Fp4Items<S> items(p.gemm);
    for (sched::Fp4Item item; items.find(item); items.advance()) {
        if constexpr (has_row_table(S)) {
            ptx::mbarrier_wait(smem.item_empty(slot.stage), slot.phase ^ 1);
            write_row_table<S>(p.gemm, smem, slot.stage, item);
            ptx::sync_warp();
        }
        if (ptx::lane_index() == 0) publish_item<S>(smem, slot.stage, slot.phase, item);
        slot.advance();
        ptx::sync_warp();
    }
    if (ptx::lane_index() == 0) publish_item<S>(smem, slot.stage, slot.phase, {.expert = sched::kFp4NoItem});
}

}  // namespace deep_gemm::kernel
