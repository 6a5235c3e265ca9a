// hc_few (spec/hc_few.h): what a thread has of channels, tokens and shared memory, and what it asks for before it
// knows whether the launch before has ended.
#pragma once

#include <deep_gemm/spec/hc_few.h>
#include <deep_gemm/kernel/hc_parts.h>
#include <deep_gemm/ptx/mbarrier.h>
#include <deep_gemm/ptx/stream.h>

namespace deep_gemm::hc_few_detail {

using hc_detail::kFnTiles;

// Of the cluster: a CTA waits until all have told it theirs.
enum class Meeting : u32 { totals, squares, largest };

/// A slice of each step, 16 channels of it, four channels of a token; and the token of the warp.
template <HcFewSpec S>
struct Places {
    static constexpr bool kRowAmax = S.narrow && S.recipe == Recipe::nvfp4;

    const HcParams& p;
    ptx::SharedAddress smem = ptx::dynamic_smem();
    u32 rank = ptx::cluster_rank(), warp = ptx::warp_index(), lane = ptx::lane_index(),
        group = warp / kHcSumsWarps;

    DG_DEVICE explicit Places(const HcParams& params) : p(params) {}

    [[nodiscard]] DG_DEVICE u32 slice(u32 step, u32 group_of_warps) const {
        return rank + (step * kHcFewGroups + group_of_warps) * kHcFewRanks;
    }
    [[nodiscard]] DG_DEVICE bool has(u32 step) const { return slice(step, group) * kHcSliceChannels < p.d; }
    [[nodiscard]] DG_DEVICE u32 channel(u32 step) const {
        return slice(step, group) * kHcSliceChannels + warp % kHcSumsWarps * 16 + lane % 4 * 4;
    }
    [[nodiscard]] DG_DEVICE u32 channel_or_first(u32 step) const { return has(step) ? channel(step) : 0; }
    [[nodiscard]] DG_DEVICE u32 row_of_lane() const { return lane / 4 < p.rows ? lane / 4 : p.rows - 1; }
    [[nodiscard]] DG_DEVICE u32 row_of_warp() const { return warp % kHcSumsWarps; }
    [[nodiscard]] DG_DEVICE bool has_row() const { return row_of_warp() < p.rows; }
    [[nodiscard]] DG_DEVICE ptx::SharedAddress fn_at(u32 step, u32 fragment) const {
        return smem + (step * kHcFewWarps + warp) * kHcFewFnBytes + (fragment * 32 + lane) * 16;
    }
    [[nodiscard]] DG_DEVICE ptx::SharedAddress sums(u32 step, u32 of_warp, u32 token) const {
        return smem + (step * kHcFewWarps + of_warp) * kHcFewFnBytes + token * kHcSumsPitch * 4;
    }
    [[nodiscard]] DG_DEVICE ptx::SharedAddress totals(u32 of_rank, u32 token) const {
        return smem + plan_smem(S).totals + (of_rank * kHcFewTokens + token) * kHcFewPitch * 4;
    }
    /// Four channels of a token's stream that a warp has taken; tokens of neighbours lie in other banks.
    [[nodiscard]] DG_DEVICE ptx::SharedAddress kept(u32 step, u32 of_warp, u32 token, u32 stream,
                                                    u32 quad) const {
        return smem + plan_smem(S).kept + (step * kHcFewWarps + of_warp) * plan_smem(S).kept_stride +
               (stream * kHcFewTokens + (token + of_warp) % kHcFewTokens) * 32 + quad * 8;
    }
    [[nodiscard]] DG_DEVICE ptx::SharedAddress weight_at(u32 step) const {
        return smem + plan_smem(S).weight +
               ((step * kHcFewGroups + group) * kHcSliceChannels + lane * 4) * bytes_of(S.weight);
    }

    [[nodiscard]] DG_DEVICE ptx::SharedAddress meeting(Meeting which) const {
        return smem + plan_smem(S).meetings + static_cast<u32>(which) * 8;
    }
    DG_DEVICE void meet(Meeting which) const { ptx::mbarrier_wait(meeting(which), 0); }

    /// The cluster meets without a fence: what a CTA tells another one completes on its mbarriers.
    DG_DEVICE void begin() const {
        if (ptx::thread_index() == 0) {
            const u32 slices = p.d / kHcSliceChannels;
            expect(Meeting::totals, p.rows * kHcFewRanks * kHcFewPitch * 4);
            if constexpr (S.weight != Format::none) expect(Meeting::squares, p.rows * slices * 4);
            if constexpr (kRowAmax) expect(Meeting::largest, p.rows * slices * 4);
            ptx::fence_mbarrier_init();
        }
        ptx::sync_warp();
        ptx::cluster_arrive_relaxed();
    }

    /// Of what no launch writes: fn, a group of copies for each step and stream; with the first all else.
    DG_DEVICE void ask() const {
        if (warp == 0) ask_terms();
        if (warp % kHcSumsWarps == 1) ask_weight();
#pragma unroll
        for (u32 step = 0; step < S.steps; ++step)
#pragma unroll
            for (u32 stream = 0; stream < kHcStreams; ++stream) {
#pragma unroll
                for (u32 tile = 0; tile < kFnTiles; ++tile)
                    ptx::cp_async_16(fn_at(step, stream * kFnTiles + tile), fn_from(step, stream, tile),
                                     has(step) ? 16 : 0);
                ptx::cp_async_commit();
            }
    }

  private:
    DG_DEVICE void expect(Meeting which, u32 bytes) const {
        ptx::mbarrier_init(meeting(which), 1);
        ptx::mbarrier_arrive_expect_tx(meeting(which), bytes);
    }
    DG_DEVICE const float* fn_from(u32 step, u32 stream, u32 tile) const {
        return p.fn + (static_cast<u64>(tile * 8 + lane / 4) * kHcStreams + stream) * p.d +
               channel_or_first(step);
    }
    DG_DEVICE void ask_terms() const {
        const u32 scale = lane < kHcMixes + 3 ? lane - kHcMixes : 0;
        ptx::cp_async<4>(smem + plan_smem(S).terms + lane * 4,
                         lane < kHcMixes ? p.base + lane : p.scale + scale, 4);
    }
    DG_DEVICE void ask_weight() const {
        if constexpr (S.weight != Format::none) {
            constexpr u32 kBytes = bytes_of(S.weight);
#pragma unroll
            for (u32 step = 0; step < S.steps; ++step) {
                const u64 first = has(step) ? slice(step, group) * kHcSliceChannels + lane * 4 : 0;
                ptx::cp_async<kBytes * 4>(weight_at(step), static_cast<const u8*>(p.weight) + first * kBytes,
                                          kBytes * 4);
            }
        }
    }
};

}  // namespace deep_gemm::hc_few_detail
