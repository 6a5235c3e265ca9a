// The warps that feed an FP4 GEMM: one finds work items and streams weights by bulk copies, the others bring
// the items' tokens by cp.async, so that tokens may lie anywhere. A token's 4-byte words are put where the
// packed weights expect them (spec/fp4_weights.h) and swizzled by 128 bytes.
#pragma once

#include <deep_gemm/pipe/ring.h>
#include <deep_gemm/sched/fp4_items.h>
#include <deep_gemm/tile/fp4_smem.h>
#include <deep_gemm/ptx/copy.h>
#include <deep_gemm/ptx/stream.h>

namespace deep_gemm::kernel {

/// First run and number of runs of a block of 64 rows.
struct Fp4Runs {
    u32 first, count;
};
template <Fp4GemmSpec S>
DG_DEVICE Fp4Runs fp4_runs(const Fp4GemmParams& p, u32 expert, u32 row_block) {
    const u32 index = expert * fp4_row_blocks(p.n) + row_block;
    if constexpr (!S.split) return {index, 1};
    const u32 packed = ptx::ld_global_u32(p.runs + index);
    return {packed >> 8, packed & 0xff};
}
/// Trips through the K of an item: as many as the block of the cluster with the most runs needs.
template <Fp4GemmSpec S>
DG_DEVICE u32 fp4_passes(const Fp4GemmParams& p, const sched::Fp4Item& item) {
    if constexpr (!S.split) return 1;
    u32 passes = 1;
    for (u32 i = 0; i < S.warpgroups * S.cluster; ++i) {
        const u32 row_block = item.n_block / S.cluster * S.cluster * S.warpgroups + i;
        if (row_block >= fp4_row_blocks(p.n)) continue;
        const u32 count = fp4_runs<S>(p, item.expert, row_block).count;
        if (count > passes) passes = count;
    }
    return passes;
}

/// Items as they pass through shared memory, to every warp but the one that finds them.
template <Fp4GemmSpec S>
DG_DEVICE void publish_item(tile::Fp4Smem<S> smem, u32 slot, u32 phase, const sched::Fp4Item& item) {
    ptx::mbarrier_wait(smem.item_empty(slot), phase ^ 1);
    ptx::st_shared_v4_u32(smem.item(slot),
                          {item.expert, item.n_block, item.first, item.count | item.rows << 16});
    ptx::mbarrier_arrive(smem.item_full(slot));
}
/// Who read an item's slot, and will not look at it again, gives it back. Scope: warp.
template <Fp4GemmSpec S>
DG_DEVICE void release_item(tile::Fp4Smem<S> smem, u32 slot) {
    ptx::sync_warp();
    if (ptx::lane_index() == 0) ptx::mbarrier_arrive(smem.item_empty(slot));
}
/// The item in a slot, for a whole warp; false at the end of the list.
template <Fp4GemmSpec S>
DG_DEVICE bool read_item(tile::Fp4Smem<S> smem, u32 slot, u32 phase, sched::Fp4Item& item) {
    ptx::mbarrier_wait(smem.item_full(slot), phase);
    const ptx::UInt4 v = ptx::ld_shared_v4_u32(smem.item(slot));
    // The same in every lane, and provably so: what follows branches on it around wgmma.
    item.expert = ptx::shfl_idx(v.x, 0);
    item.n_block = ptx::shfl_idx(v.y, 0);
    item.first = ptx::shfl_idx(v.z, 0);
    const u32 tokens = ptx::shfl_idx(v.w, 0);
    item.count = tokens & 0xffff;
    item.rows = tokens >> 16;
    return item.expert != sched::kFp4NoItem;
}
template <Fp4GemmSpec S>
DG_DEVICE bool take_item(tile::Fp4Smem<S> smem, pipe::Cursor<kFp4ItemSlots>& slot, sched::Fp4Item& item) {
    const bool found = read_item<S>(smem, slot.stage, slot.phase, item);
    release_item<S>(smem, slot.stage);
    slot.advance();
    return found;
}

/// One lane: the weights of one item, stage by stage.
template <Fp4GemmSpec S>
DG_DEVICE void load_item_weights(const Fp4GemmParams& p, tile::Fp4Smem<S> smem,
                                 pipe::Cursor<S.stages>& cursor, const sched::Fp4Item& item, u64 policy) {
    constexpr u32 kBlob = fp4_blob_bytes_of(S.form), kCopy = S.k_blocks * kBlob;
    const u32 num_k = fp4_k_blocks(p.k), row_blocks = fp4_row_blocks(p.n);
    const u64 run_bytes = static_cast<u64>(num_k) * kBlob;
    for (u32 pass = 0; pass < fp4_passes<S>(p, item); ++pass) {
        const u8* source[S.warpgroups];
#pragma unroll
        for (u32 i = 0; i < S.warpgroups; ++i) {
            // Rows beyond n, and runs that a block does not have, are read again: nobody uses them.
            const u32 row_block = item.n_block * S.warpgroups + i;
            const Fp4Runs runs =
                fp4_runs<S>(p, item.expert, row_block < row_blocks ? row_block : row_blocks - 1);
            source[i] = p.weights + (runs.first + (pass < runs.count ? pass : 0)) * run_bytes;
        }
        for (u32 kb = 0; kb < num_k; kb += S.k_blocks, cursor.advance()) {
            ptx::mbarrier_wait(smem.empty(cursor.stage), cursor.phase ^ 1);
            const ptx::SharedAddress full = smem.full(cursor.stage);
            ptx::mbarrier_arrive_expect_tx(full, S.warpgroups * kCopy);
#pragma unroll
            for (u32 i = 0; i < S.warpgroups; ++i) {
                ptx::bulk_load(smem.blob(cursor.stage, i, 0), source[i], kCopy, full, policy);
                source[i] += kCopy;
            }
        }
    }
}

template <Fp4GemmSpec S>
DG_DEVICE void load_weights(const Fp4GemmParams& p, tile::Fp4Smem<S> smem, sched::Fp4Items<S>& items) {
    const u64 policy = ptx::l2_evict_first();
    pipe::Cursor<S.stages> cursor;
    pipe::Cursor<kFp4ItemSlots> slot;
    for (sched::Fp4Item item; items.find(item); items.advance()) {
        items.request();
        if (ptx::lane_index() == 0) {
            publish_item<S>(smem, slot.stage, slot.phase, item);
            if (item.count > 0) load_item_weights<S>(p, smem, cursor, item, policy);
        }
        slot.advance();
        ptx::sync_warp();
    }
    if (ptx::lane_index() == 0) publish_item<S>(smem, slot.stage, slot.phase, {.expert = sched::kFp4NoItem});
    items.finish();
}

/// by_32: zeros where a token's words of other groups would be; nobody writes there. All threads but those of
/// the warp that finds items, followed by a barrier.
template <Fp4GemmSpec S>
DG_DEVICE void clear_tokens(tile::Fp4Smem<S> smem) {
    constexpr u32 kLoader = S.warpgroups * kWarpgroup, kThreads = threads_of(S) - ptx::kWarpThreads;
    const u32 thread = ptx::thread_index(), mine = thread < kLoader ? thread : thread - ptx::kWarpThreads;
    constexpr u32 kChunks = S.stages * tile::Fp4Smem<S>::kPlan.token_stage_bytes / 16;
    for (u32 chunk = mine; chunk < kChunks; chunk += kThreads)
        ptx::st_shared_v4_u32(smem.tokens(0, 0) + chunk * 16, {0, 0, 0, 0});
    ptx::fence_proxy_async();  // wgmma reads them
}

/// Tokens of one item. `warp` of S.load_warps: of each eight columns it brings 8 / load_warps, of the scales
/// those of every load_warps-th 32.
template <Fp4GemmSpec S>
class TokenLoader {
  public:
    DG_DEVICE TokenLoader(const Fp4GemmParams& params, tile::Fp4Smem<S> smem, u32 warp)
        : params_(params), smem_(smem), warp_(warp) {}

    DG_DEVICE void run() {
        pipe::Cursor<kFp4ItemSlots> slot;
        for (sched::Fp4Item item;;) {
            const u32 number = slot.stage;
            if (!take_item<S>(smem_, slot, item)) break;
            if (item.count == 0) continue;
            aim(item);
            bring_tables(item, number);
            const u32 num_k = fp4_k_blocks(params_.k);
            for (u32 pass = 0; pass < fp4_passes<S>(params_, item); ++pass)
                for (u32 kb = 0; kb < num_k; kb += S.k_blocks, cursor_.advance()) load_stage(kb);
        }
        ptx::copy_async_wait_all();
    }

  private:
    static constexpr u32 kElementBytes = bytes_of(S.a);
    static constexpr u32 kOfEight = 8 / S.load_warps;  // columns of each eight
    static constexpr u32 kEights = S.block_m * S.token_terms / 8;
    static constexpr u32 kRowsOfEight = kOfEight / S.token_terms, kRows = kEights * kRowsOfEight;
    static constexpr u32 kScaleTurns = ceil_div(S.block_m, 32 * S.load_warps);

    /// Row of A of slot `token` of the item; the columns beyond its tokens repeat the first.
    DG_DEVICE u32 row_of(const sched::Fp4Item& item, u32 token) const {
        const u32 slot = item.first + (token < item.count ? token : 0);
        if constexpr (S.groups == GroupMode::gathered) {
            if (params_.a_rows != nullptr) {
                const u32 row = static_cast<u32>(ptx::ld_global_s32(params_.a_rows + slot));
                return row < params_.a_num_rows ? row : 0;
            }
        }
        return slot;
    }

    DG_DEVICE void aim(const sched::Fp4Item& item) {
        columns_ = fp4_columns_of(S, item.count);
        const u64 group = S.groups == GroupMode::masked ? item.expert : 0;
        const u32 lane = ptx::lane_index();
        a_ = params_.a + group * params_.a_stride_group + lane * 4;
        scale_ = params_.scale_a + group * params_.scale_a_stride_group;
#pragma unroll
        for (u32 turn = 0; turn < kScaleTurns; ++turn) {
            if constexpr (has_bf16_tokens(S)) continue;
            const u32 token = token_of(turn);
            scale_offset_[turn] =
                static_cast<u64>(row_of(item, token < S.block_m ? token : 0)) * params_.scale_a_stride_m;
        }
#pragma unroll
        for (u32 i = 0; i < kRows; ++i) {
            const u32 column = i / kRowsOfEight * 8 + warp_ * kOfEight + i % kRowsOfEight * S.token_terms;
            word_offset_[i] = row_of(item, column / S.token_terms) * (params_.a_stride_m / 4);
        }
    }

    /// Whose scales, and row of D, this lane brings.
    DG_DEVICE u32 token_of(u32 turn) const {
        return (turn * S.load_warps + warp_) * 32 + ptx::lane_index();
    }

    /// The tables of the item's slot land with its first stage, whose barrier covers them: who stores waits
    /// for no memory. Their last readers have given the slot back.
    DG_DEVICE void bring_tables(const sched::Fp4Item& item, u32 slot) const {
        if constexpr (!has_row_table(S) && !S.per_token) return;
#pragma unroll
        for (u32 turn = 0; turn < kScaleTurns; ++turn) {
            const u32 token = token_of(turn);
            if (token >= columns_) continue;
            const u32 present = token < item.count ? 4 : 0;  // zeros for the other columns
            if constexpr (has_row_table(S)) {
                if (params_.d_rows != nullptr)
                    ptx::cp_async<4>(smem_.rows(slot) + token * 4,
                                     params_.d_rows + item.first + (present != 0 ? token : 0), present);
            }
            if constexpr (S.per_token)
                ptx::cp_async<4>(smem_.token_scales(slot) + token * 4, scale_ + scale_offset_[turn], present);
        }
    }

    DG_DEVICE void load_stage(u32 first_kb) {
        ptx::mbarrier_wait(smem_.empty(cursor_.stage), cursor_.phase ^ 1);
#pragma unroll
        for (u32 kb = 0; kb < S.k_blocks; ++kb) {
            const u32 k = (first_kb + kb) * kFp4BlockK;
#pragma unroll
            for (u32 turn = 0; turn < kElementBytes; ++turn) load_words(kb, k, turn);
            if constexpr (scales_in_loop(S)) load_scales(first_kb + kb, kb);
        }
        ptx::copy_async_arrive(smem_.full(cursor_.stage));
    }

    /// The tokens' scales for blob `blob` of K, which is the stage's `kb`th.
    DG_DEVICE void load_scales(u32 blob, u32 kb) const {
        constexpr u32 kGroups = fp4_groups_of(S), kAlongK = kFp4BlockK / kGroups;
#pragma unroll
        for (u32 group = 0; group < kGroups; ++group) {
            const u32 number = blob * kGroups + group;
            const u32 present = number * kAlongK < params_.k ? 4 : 0;
            const u64 along_k = present != 0 ? static_cast<u64>(number) * params_.scale_a_stride_k : 0;
#pragma unroll
            for (u32 turn = 0; turn < kScaleTurns; ++turn) {
                const u32 token = token_of(turn);
                if (token < columns_)
                    ptx::cp_async<4>(
                        smem_.scales(cursor_.stage, kb, group) + tile::fp4_scale_slot(token, columns_) * 4,
                        scale_ + scale_offset_[turn] + along_k, present);
            }
        }
    }

    /// 4-byte word `lane`, and 32 further for each turn, of the tokens' K from `k` on; the swizzle xors a
    /// chunk's number with the token's.
    DG_DEVICE void load_words(u32 kb, u32 k, u32 turn) const {
        const u32 index = turn * 32 + ptx::lane_index();
        const u32 chunk = activation_chunk(index, kElementBytes) % 8;
        const u32 tile = activation_chunk(index, kElementBytes) / 8 * (S.block_m * kFp4BlockK);
        const u32 present = k + index * (4 / kElementBytes) < params_.k ? 4 : 0;
        const u8* const source = a_ + (present != 0 ? k * kElementBytes + turn * 128 : 0);
        constexpr u32 kEightBytes = 8 * fp4_groups_of(S) * kFp4BlockK;
        const u32 group = S.by_32 ? index / (32 / fp4_groups_of(S)) : 0;
        const ptx::SharedAddress tokens = smem_.tokens(cursor_.stage, kb) + tile + group * (8 * kFp4BlockK) +
                                          activation_word(index, kElementBytes) * 4;
#pragma unroll
        for (u32 eight = 0; eight < kEights; ++eight) {
            if (eight * 8 >= columns_ * S.token_terms) break;
#pragma unroll
            for (u32 i = 0; i < kOfEight; ++i) {
                const u32 column = warp_ * kOfEight + i, row = eight * kRowsOfEight + i / S.token_terms;
                // The second term of a token follows the first.
                const u64 term = i % S.token_terms * (params_.a_stride_m / 2);
                ptx::cp_async<4>(tokens + eight * kEightBytes + column * kFp4BlockK + (chunk ^ column) * 16,
                                 source + static_cast<u64>(word_offset_[row]) * 4 + term, present);
            }
        }
    }

    const Fp4GemmParams& params_;
    tile::Fp4Smem<S> smem_;
    u32 warp_;
    pipe::Cursor<S.stages> cursor_;
    u32 columns_ = 0;
    const u8* a_ = nullptr;  // of this lane's word
    const float* scale_ = nullptr;
    u64 scale_offset_[kScaleTurns];
    u32 word_offset_[kRows];
};

}  // namespace deep_gemm::kernel
