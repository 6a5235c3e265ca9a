// The named regions of an FP4 GEMM's shared memory, as addresses. All offsets come from plan_smem(S).
#pragma once

#include <deep_gemm/spec/fp4_gemm.h>
#include <deep_gemm/ptx/mbarrier.h>

namespace deep_gemm::tile {

template <Fp4GemmSpec S>
struct Fp4Smem {
    static constexpr Fp4SmemPlan kPlan = plan_smem(S);
    static constexpr u32 kBlobBytes = fp4_blob_bytes_of(S.form);
    ptx::SharedAddress base;

    /// 128 swizzled bytes of each token, for blob `kb` of the stage; of bf16 twice, the halves of K; by_32
    /// four times, a group's words each.
    DG_DEVICE ptx::SharedAddress tokens(u32 stage, u32 kb) const {
        return base + kPlan.tokens + stage * kPlan.token_stage_bytes +
               kb * (kPlan.token_stage_bytes / S.k_blocks);
    }
    DG_DEVICE ptx::SharedAddress blob(u32 stage, u32 warpgroup, u32 kb) const {
        return base + kPlan.weights + stage * kPlan.weight_stage_bytes +
               (warpgroup * S.k_blocks + kb) * kBlobBytes;
    }
    /// The tokens' scales for blob `kb` and, by_32, group `group` of its K, in the order of fp4_scale_slot().
    DG_DEVICE ptx::SharedAddress scales(u32 stage, u32 kb, u32 group = 0) const {
        return base + kPlan.scales + stage * kPlan.scale_stage_bytes +
               (kb * fp4_groups_of(S) + group) * (S.block_m * 4);
    }
    DG_DEVICE ptx::SharedAddress magnitudes() const { return base + kPlan.magnitudes; }
    DG_DEVICE ptx::SharedAddress full(u32 stage) const { return base + kPlan.full + stage * 8; }
    DG_DEVICE ptx::SharedAddress empty(u32 stage) const { return base + kPlan.empty + stage * 8; }
    DG_DEVICE ptx::SharedAddress item(u32 slot) const { return base + kPlan.items + slot * 16; }
    /// The rows of D that an item's tokens go to.
    DG_DEVICE ptx::SharedAddress rows(u32 slot) const {
        return base + kPlan.rows + slot * kPlan.row_table_bytes;
    }
    /// per_token: the scales of an item's tokens.
    DG_DEVICE ptx::SharedAddress token_scales(u32 slot) const {
        return base + kPlan.token_scales + slot * kPlan.scale_table_bytes;
    }
    DG_DEVICE ptx::SharedAddress item_full(u32 slot) const { return base + kPlan.items_full + slot * 8; }
    DG_DEVICE ptx::SharedAddress item_empty(u32 slot) const { return base + kPlan.items_empty + slot * 8; }
};

/// Where the scale of token `token` of `columns` lies among them: a thread of a wgmma fragment needs those of
/// columns 8 j + 2 q + {0, 1}, and finds them side by side.
DG_DEVICE u32 fp4_scale_slot(u32 token, u32 columns) {
    return token % 8 / 2 * (columns / 4) + token / 8 * 2 + token % 2;
}

}  // namespace deep_gemm::tile
