// Latent attention of many tokens (spec/latent_mma.h) with the bits of latent_mma: a CTA has 64 heads of a
// token, which share the rows that it decodes, and goes on to further tokens. wgmma adds the same sixteen
// products to a sum as mma.sync does there. Both warpgroups find all scores and weights, and have half of the
// channels of the weighted sum each. Called by op/attention.cpp.
#pragma once

#include <deep_gemm/kernel/latent_wide_load.h>
#include <deep_gemm/ptx/wgmma.h>

namespace deep_gemm {

namespace latent_detail {

/// What a lane has of scores and of 64 channels: columns 8 (i / 4) + 2 (lane % 4) + i % 2 of heads lane / 4
/// and that plus 8.
constexpr u32 kLaneSums = 32;
constexpr u32 kPieces = kFp8RowChannels / 2 / 64;  // of a warpgroup's channels

DG_DEVICE u32 head_half(u32 sum) {
    return sum / 2 % 2;
}
/// Largest and sum over the four lanes of a head.
DG_DEVICE float max_of_four(float value) {
    value = ptx::max_nan_f32(value, ptx::shfl_bfly_f32(value, 2));
    return ptx::max_nan_f32(value, ptx::shfl_bfly_f32(value, 1));
}
DG_DEVICE float sum_of_four(float value) {
    value = ptx::add_rn_f32(value, ptx::shfl_bfly_f32(value, 2));
    return ptx::add_rn_f32(value, ptx::shfl_bfly_f32(value, 1));
}

template <LatentMmaSpec S>
class WideHeads {
  public:
    DG_DEVICE WideHeads(const AttentionParams& p, ptx::SharedAddress smem)
        : p_(p), smem_(smem), group_(ptx::warp_index() / 4) {}

    DG_DEVICE void run() {
        const u32 groups = ceil_div(p_.heads, kLatentWideHeads);
        for (u32 unit = ptx::block_index(); unit < p_.tokens * groups; unit += ptx::grid_size()) {
            const u32 token = unit / groups, first_head = unit % groups * kLatentWideHeads;
            load_queries(token, first_head);
            attend(token, first_head + ptx::warp_index() % 4 * 16 + ptx::lane_index() / 4);
        }
    }

  private:
    static constexpr LatentWideSmem kPlan = plan_latent_wide();

    /// Both warpgroups have multiplied the queries before; then these are there for both.
    DG_DEVICE void load_queries(u32 token, u32 first_head) const {
        constexpr u32 kUnits = kFp8RowChannels / 8;  // of 16 bytes
        ptx::named_barrier_sync(1, kLatentWideMathThreads);
        if (Seen<S>(p_, token).total > 0) {
#pragma unroll 8
            for (u32 i = ptx::thread_index(); i < kLatentWideHeads * kUnits; i += kLatentWideMathThreads) {
                const u32 head = i / kUnits, unit = i % kUnits;
                ptx::UInt4 v{};
                if (first_head + head < p_.heads)
                    v = ptx::ld_global_v4_u32(
                        static_cast<const u8*>(p_.q.data) +
                        (token * p_.q.stride + (first_head + head) * p_.q.inner_stride) * 2 + unit * 16);
                ptx::st_shared_v4_u32(slab_unit(smem_ + kPlan.queries, head, unit), v);
            }
            ptx::fence_proxy_async();
        }
        ptx::named_barrier_sync(1, kLatentWideMathThreads);
    }

    /// Scores of all heads with the rows of a stage.
    DG_DEVICE void multiply_rows(float (&scores)[kLaneSums], ptx::SharedAddress rows) const {
        ptx::wgmma_keep(scores);
        ptx::wgmma_fence();
#pragma unroll
        for (u32 slab = 0; slab < kLatentSlabs; ++slab)
            ptx::Wgmma<Format::bf16, 64>::mma4<2, 2>(
                scores, ptx::wgmma_descriptor(smem_ + kPlan.queries + slab * kLatentSlabBytes),
                ptx::wgmma_descriptor(rows + slab * kLatentSlabBytes), slab > 0);
        ptx::wgmma_commit();
        ptx::wgmma_wait<0>();
        ptx::wgmma_keep(scores);
    }

    /// Scores become weights, in shared memory; returns what sums so far and the chunk's are scaled by.
    DG_DEVICE void weigh(Factors (&factors)[2], Merged (&merged)[2], float (&scores)[kLaneSums],
                         u32 stage) const {
        const u32 lane = ptx::lane_index(), q = lane % 4;
        const u64 bits = ptx::ld_shared_u64(smem_ + kPlan.present + stage * 8);
        const u32 low = static_cast<u32>(bits), high = static_cast<u32>(bits >> 32);
        const ptx::SharedAddress weights = smem_ + kPlan.weights + group_ * kLatentSlabBytes;
#pragma unroll
        for (u32 half = 0; half < 2; ++half) {
            float m = kNothing;
#pragma unroll
            for (u32 i = 0; i < kLaneSums; ++i) {
                if (head_half(i) != half) continue;
                const u32 row = i / 4 * 8 + q * 2 + i % 2;
                const bool present = ((i < kLaneSums / 2 ? low : high) >> row % 32 & 1) != 0;
                scores[i] = present ? ptx::mul_rn_f32(scores[i], p_.scale) : kNothing;
                m = ptx::max_nan_f32(m, scores[i]);
            }
            m = max_of_four(m);
            const bool empty = m == kNothing;
            float sums[kLaneSums / 4];
#pragma unroll
            for (u32 group = 0; group < kLaneSums / 4; ++group) {
                const u32 i = group * 4 + half * 2;
                const float first = empty ? 0.0f : ptx::exp_f32(scores[i] - m),
                            second = empty ? 0.0f : ptx::exp_f32(scores[i + 1] - m);
                sums[group] = ptx::add_rn_f32(first, second);
                const u32 head = ptx::warp_index() % 4 * 16 + lane / 4 + half * 8;
                ptx::st_shared_u32(slab_unit(weights, head, group) + q * 4, ptx::cvt_bf16x2(first, second));
            }
            // As warp_sum() adds where lane i has the weights of rows 2 i and 2 i + 1.
#pragma unroll
            for (u32 step = kLaneSums / 8; step > 0; step /= 2)
#pragma unroll
                for (u32 i = 0; i < step; ++i) sums[i] = ptx::add_rn_f32(sums[i], sums[i + step]);
            factors[half] = merged[half].add(m, sum_of_four(sums[0]));
        }
        ptx::fence_proxy_async();
        ptx::named_barrier_sync(2 + group_, 128);
    }

    /// The weighted sums of the chunk's rows, 64 channels at a time, into `sums`.
    DG_DEVICE void add_rows(float (&sums)[kPieces][kLaneSums], const Factors (&factors)[2],
                            ptx::SharedAddress rows) const {
        const u64 weights = ptx::wgmma_descriptor(smem_ + kPlan.weights + group_ * kLatentSlabBytes);
#pragma unroll
        for (u32 piece = 0; piece < kPieces; ++piece) {
            float chunk[kLaneSums];
            const ptx::SharedAddress slab = rows + (group_ * kPieces + piece) * kLatentSlabBytes;
            ptx::wgmma_keep(chunk);
            ptx::wgmma_fence();
            ptx::Wgmma<Format::bf16, 64, 0, 1>::template mma4<2, 128>(
                chunk, weights, ptx::wgmma_descriptor_mn_major(slab, kLatentSlabBytes), 0);
            ptx::wgmma_commit();
            ptx::wgmma_wait<0>();
            ptx::wgmma_keep(chunk);
#pragma unroll
            for (u32 i = 0; i < kLaneSums; ++i)
                sums[piece][i] = factors[head_half(i)].apply(sums[piece][i], chunk[i]);
        }
    }

    DG_DEVICE void attend(u32 token, u32 first_head) {
        const u32 total = Seen<S>(p_, token).total;
        float sums[kPieces][kLaneSums] = {};
        Merged merged[2];
        for (u32 base = 0; base < total; base += kLatentChunk) {
            const ptx::SharedAddress rows =
                smem_ + kPlan.rows + at_.stage * (kLatentSlabs * kLatentSlabBytes);
            ptx::mbarrier_wait(smem_ + kPlan.barriers + at_.stage * 16, at_.phase);
            ptx::fence_proxy_async();  // others have written the rows, with ordinary stores
            float scores[kLaneSums];
            Factors factors[2];
            multiply_rows(scores, rows);
            weigh(factors, merged, scores, at_.stage);
            add_rows(sums, factors, rows);
            ptx::sync_warp();
            if (ptx::lane_index() == 0) ptx::mbarrier_arrive(smem_ + kPlan.barriers + at_.stage * 16 + 8);
            at_.advance();
        }
        float factor[2];
#pragma unroll
        for (u32 half = 0; half < 2; ++half) {
            const u32 head = first_head + half * 8;
            factor[half] = head < p_.heads ? normalizer<S>(merged[half], p_, head) : 0.0f;
        }
#pragma unroll
        for (u32 piece = 0; piece < kPieces; ++piece)
            store_piece(sums[piece], factor, token, first_head, piece);
    }

    DG_DEVICE void store_piece(const float (&sums)[kLaneSums], const float (&factor)[2], u32 token,
                               u32 first_head, u32 piece) const {
        const u32 first = (group_ * kPieces + piece) * 64 + ptx::lane_index() % 4 * 2;
        const Seen<S> seen(p_, token);
#pragma unroll
        for (u32 group = 0; group < kLaneSums / 4; ++group) {
            const u32 channel = first + group * 8;
            // Only the last slab's may be rotated (op/attention.cpp sees to it).
            const bool turns = piece + 1 == kPieces && is_rotated(p_, seen, channel);
            tile::Rotation back{};
            if (turns) back = rotation_of(p_, seen, channel);
#pragma unroll
            for (u32 half = 0; half < 2; ++half) {
                float a = ptx::mul_rn_f32(sums[group * 4 + half * 2], factor[half]),
                      b = ptx::mul_rn_f32(sums[group * 4 + half * 2 + 1], factor[half]);
                if (turns) tile::rotate(a, b, back);
                if (first_head + half * 8 < p_.heads)
                    store_bf16(p_, token, first_head + half * 8, channel, a, b);
            }
        }
    }

    const AttentionParams& p_;
    ptx::SharedAddress smem_;
    u32 group_;  // warpgroup
    pipe::Cursor<kLatentWideStages> at_;
};

}  // namespace latent_detail

template <LatentMmaSpec S>
DG_KERNEL(kLatentWideThreads, 1)
latent_wide(DG_GRID_CONSTANT const LatentMmaParams params) {
    using namespace latent_detail;
    static_assert(S.wide && !S.split);
    constexpr LatentWideSmem kPlan = plan_latent_wide();
    const ptx::SharedAddress smem = ptx::dynamic_smem();
    if (ptx::thread_index() == 0) {
        for (u32 stage = 0; stage < kLatentWideStages; ++stage) {
            ptx::mbarrier_init(smem + kPlan.barriers + stage * 16, 4);
            ptx::mbarrier_init(smem + kPlan.barriers + stage * 16 + 8, kLatentWideMathThreads / 32);
        }
        ptx::fence_mbarrier_init();
    }
    ptx::sync_threads();
    ptx::grid_dependency_launch();
    ptx::grid_dependency_wait();
    if (ptx::warp_index() >= kLatentWideMathThreads / 32) {
        ptx::setmaxnreg_dec<kLatentWideLoadRegisters>();
        load_tokens_rows<S>(params.attention, smem);
    } else {
        ptx::setmaxnreg_inc<kLatentWideMathRegisters>();
        WideHeads<S>(params.attention, smem).run();
    }
}

}  // namespace deep_gemm
