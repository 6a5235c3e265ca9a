// A chunk of latent attention on tensor cores (spec/latent_mma.h) whose rows and queries are in shared memory:
// scores and weights. What latent_mma and latent_few share.
#pragma once

#include <deep_gemm/kernel/latent_rows.h>
#include <deep_gemm/ptx/ldmatrix.h>
#include <deep_gemm/ptx/mma_sync.h>

namespace deep_gemm::latent_detail {

constexpr u32 kPitchBytes = kLatentPitch * 2, kWeightPitchBytes = kLatentWeightPitch * 2;
constexpr u32 kWarps = kLatentMmaThreads / 32;
constexpr u32 kWarpChannels = kFp8RowChannels / kWarps;  // of the weighted sum
constexpr u32 kTiles = kWarpChannels / 8;

constexpr u32 kWarpRows = kLatentChunk / kWarps;

/// Scores of all heads with the warp's eight rows, into shared memory.
template <LatentMmaSpec S>
DG_DEVICE void score_rows(ptx::SharedAddress smem, float scale) {
    constexpr LatentMmaSmem kPlan = plan_smem(S);
    const u32 lane = ptx::lane_index(), first = ptx::warp_index() * 8;
    const ptx::SharedAddress queries = smem + kPlan.queries + lane % 16 * kPitchBytes + lane / 16 * 16;
    const ptx::SharedAddress rows = smem + kPlan.rows + (first + lane % 8) * kPitchBytes + lane / 8 * 16;
    float sums[S.tiles][4] = {};
#pragma unroll 4
    for (u32 k = 0; k < kFp8RowChannels; k += 32) {
        u32 b[4];
        ptx::ldmatrix_x4(b, rows + k * 2);
#pragma unroll
        for (u32 tile = 0; tile < S.tiles; ++tile) {
            const ptx::SharedAddress heads = queries + tile * kLatentMmaHeads * kPitchBytes;
            u32 a[2][4];
            ptx::ldmatrix_x4(a[0], heads + k * 2);
            ptx::ldmatrix_x4(a[1], heads + k * 2 + 32);
            ptx::mma_m16n8k16_bf16(sums[tile], a[0], b[0], b[1]);
            ptx::mma_m16n8k16_bf16(sums[tile], a[1], b[2], b[3]);
        }
    }
#pragma unroll
    for (u32 i = 0; i < 4; ++i) {
        const u32 row = first + lane % 4 * 2 + i % 2;
        const bool present = ptx::ld_shared_u32(smem + kPlan.present + row * 4) != 0;
#pragma unroll
        for (u32 tile = 0; tile < S.tiles; ++tile) {
            const u32 head = tile * kLatentMmaHeads + lane / 4 + i / 2 * 8;
            ptx::st_shared_f32(smem + kPlan.scores + (head * kLatentWeightPitch + row) * 4,
                               present ? ptx::mul_rn_f32(sums[tile][i], scale) : kNothing);
        }
    }
}

template <LatentMmaSpec S>
constexpr u32 kHeadsOfWarp = latent_heads_of(S) / kWarps;

/// Where a warp's lane i keeps two floats of the warp's head i. Whole warps call.
template <LatentMmaSpec S>
DG_DEVICE ptx::SharedAddress stats_of_lane(ptx::SharedAddress smem) {
    return smem + plan_smem(S).stats + (ptx::warp_index() * kHeadsOfWarp<S> + ptx::lane_index()) * 8;
}

/// A warp turns the scores of some heads into weights. `stats` gets m and the sum of weights, or else what
/// the sums so far and the chunk's are scaled by: lane i has the chunks of the warp's head i so far.
template <LatentMmaSpec S>
DG_DEVICE void weigh(Merged& merged, ptx::SharedAddress smem) {
    constexpr LatentMmaSmem kPlan = plan_smem(S);
    constexpr u32 kHeads = kHeadsOfWarp<S>;
    const u32 lane = ptx::lane_index();
    const ptx::SharedAddress stats = stats_of_lane<S>(smem);
    float mine_m = 0, mine_sum = 0;
#pragma unroll
    for (u32 i = 0; i < kHeads; ++i) {
        const u32 head = ptx::warp_index() * kHeads + i;
        const ptx::SharedAddress at = smem + kPlan.scores + (head * kLatentWeightPitch + lane * 2) * 4;
        const ptx::Float2 score = ptx::ld_shared_v2_f32(at);
        const float m = tile::warp_max<32>(ptx::max_nan_f32(score.x, score.y));
        const float shift = m == kNothing ? 0.0f : m;  // of nothing, exp is 0 without a branch
        const float first = ptx::exp_f32(score.x - shift), second = ptx::exp_f32(score.y - shift);
        const float sum = tile::warp_sum(ptx::add_rn_f32(first, second));
        ptx::st_shared_u32(smem + kPlan.weights + head * kWeightPitchBytes + lane * 4,
                           ptx::cvt_bf16x2(first, second));
        mine_m = lane == i ? m : mine_m;
        mine_sum = lane == i ? sum : mine_sum;
    }
    if (lane >= kHeads) return;
    if constexpr (S.split) {
        ptx::st_shared_v2_f32(stats, mine_m, mine_sum);
    } else {
        const Factors factors = merged.add(mine_m, mine_sum);
        ptx::st_shared_v2_f32(stats, factors.before, factors.chunk);
    }
}

}  // namespace deep_gemm::latent_detail
