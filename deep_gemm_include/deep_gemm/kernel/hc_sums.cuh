// hc_sums (spec/hc_sums.h): a CTA has 128 channels of all streams, and rows in turn; a lane of four has four
// channels of two of sixteen tokens. Called by op/hyper_connection.cpp.
#pragma once

#include <deep_gemm/spec/hc_sums.h>
#include <deep_gemm/kernel/hc_parts.h>
#include <deep_gemm/ptx/mma_sync.h>
#include <deep_gemm/ptx/shared_words.h>
#include <deep_gemm/ptx/stream.h>

namespace deep_gemm {

namespace hc_sums_detail {

using hc_detail::kFnParts;
using hc_detail::kFnTiles;
using hc_detail::Loaded;
using hc_detail::Taken;

/// fn of the warp's 16 channels as the right operand of mma.sync.
struct FnFragments {
    u32 word[kHcStreams][kFnTiles][kFnParts][2];

    DG_DEVICE FnFragments(const HcParams& p, u32 channel) {
        const u32 mix = ptx::lane_index() / 4;
#pragma unroll
        for (u32 stream = 0; stream < kHcStreams; ++stream)
#pragma unroll
            for (u32 tile = 0; tile < kFnTiles; ++tile)
                hc_detail::split_fn(
                    word[stream][tile],
                    ptx::ld_global_v4_f32(
                        p.fn + (static_cast<u64>(tile * 8 + mix) * kHcStreams + stream) * p.d + channel));
    }
};

template <HcSumsSpec S>
class Slice {
  public:
    DG_DEVICE Slice(const HcTwoParams& params, u32 slice)
        : params_(params),
          p_(params.p),
          smem_(ptx::dynamic_smem()),
          slice_(slice),
          channel_(slice * kHcSliceChannels + ptx::warp_index() * 16 + ptx::lane_index() % 4 * 4),
          fn_(p_, channel_) {}

    /// Tokens first, first + step, ..: sixteen at each.
    DG_DEVICE void run(u32 first, u32 step) {
        Loaded loaded[2];
        bring_terms(first, 0);
        load(loaded, first);
        for (u32 buffer = 0; first < p_.rows; first += step, buffer ^= 1) {
            if constexpr (kAdds) {
                ptx::cp_async_wait<0>();
                ptx::sync_threads();
            }
            Taken taken[2];
#pragma unroll
            for (u32 half = 0; half < 2; ++half) take_in(taken[half], loaded[half], token_of(half), buffer);
            bring_terms(first + step, buffer ^ 1);
            load(loaded, first + step);  // arrives meanwhile
            if constexpr (kAdds) put_back(taken, first);
            multiply(taken, buffer);
            ptx::sync_threads();
            add_warps(first, buffer);
        }
    }

  private:
    static constexpr bool kAdds = S.add != Format::none;

    static DG_DEVICE u32 token_of(u32 half) {
        return ptx::lane_index() / 4 + half * 8;
    }
    [[nodiscard]] DG_DEVICE u64 index_of(u32 row, u32 stream) const {
        return row * p_.x.stride + stream * p_.x.inner_stride + channel_;
    }

    DG_DEVICE void load(Loaded (&loaded)[2], u32 first) const {
#pragma unroll
        for (u32 half = 0; half < 2; ++half) {
            const u32 row = first + token_of(half);
            loaded[half] = {};
            if (row >= p_.rows) continue;
#pragma unroll
            for (u32 a = 0; a < kHcStreams; ++a) {
                const ptx::Word2 w =
                    ptx::ld_global_v2_u32(static_cast<const u16*>(p_.x.data) + index_of(row, a));
                loaded[half].x[a][0] = w.x, loaded[half].x[a][1] = w.y;
            }
            if constexpr (kAdds) {
                const ptx::Word2 w = ptx::ld_global_v2_u32(static_cast<const u16*>(p_.add.data) +
                                                           row * p_.add.stride + channel_);
                loaded[half].y[0] = w.x, loaded[half].y[1] = w.y;
            }
        }
    }

    [[nodiscard]] DG_DEVICE ptx::SharedAddress terms(u32 buffer, u32 token) const {
        return smem_ + plan_smem(S).terms + (buffer * kHcSumsTokens + token) * kHcTerms * 4;
    }
    /// post and comb of sixteen tokens on their way to shared memory; zeros where there is none.
    DG_DEVICE void bring_terms(u32 first, u32 buffer) const {
        if constexpr (!kAdds) return;
        for (u32 i = ptx::thread_index(); i < kHcSumsTokens * kHcTerms; i += kHcSumsThreads) {
            const u32 token = i / kHcTerms, term = i % kHcTerms;
            const bool there = first + token < p_.rows;
            const u64 row = there ? first + token : 0;
            const float* from = term < kHcStreams
                                    ? p_.post + row * kHcStreams + term
                                    : p_.comb + row * kHcStreams * kHcStreams + term - kHcStreams;
            ptx::cp_async<4>(terms(buffer, token) + term * 4, from, there ? 4 : 0);
        }
        ptx::cp_async_commit();
    }

    DG_DEVICE void take_in(Taken& taken, const Loaded& loaded, u32 token, u32 buffer) const {
        if constexpr (!kAdds) {
#pragma unroll
            for (u32 b = 0; b < kHcStreams; ++b)
                taken.pair[b][0] = loaded.x[b][0], taken.pair[b][1] = loaded.x[b][1];
        } else {
            const ptx::SharedAddress at = terms(buffer, token);
            hc_detail::take_in(taken, loaded, ptx::ld_shared_v4_f32(at),
                               [&](u32 a) { return ptx::ld_shared_v4_f32(at + (1 + a) * kHcStreams * 4); });
        }
    }
    DG_DEVICE void put_back(const Taken (&taken)[2], u32 first) const {
#pragma unroll
        for (u32 half = 0; half < 2; ++half) {
            const u32 row = first + token_of(half);
            if (row >= p_.rows) continue;
#pragma unroll
            for (u32 b = 0; b < kHcStreams; ++b)
                ptx::st_global_v2_u32(static_cast<u16*>(p_.x.data) + index_of(row, b), taken[half].pair[b][0],
                                      taken[half].pair[b][1]);
        }
    }

    [[nodiscard]] DG_DEVICE ptx::SharedAddress sums(u32 buffer, u32 warp, u32 token) const {
        return smem_ + ((buffer * kHcSumsWarps + warp) * kHcSumsTokens + token) * kHcSumsPitch * 4;
    }
    /// The warp's share of the records, into shared memory.
    DG_DEVICE void multiply(const Taken (&taken)[2], u32 buffer) const {
        float product[kFnTiles][4] = {};
#pragma unroll
        for (u32 b = 0; b < kHcStreams; ++b) {
            const u32 a[4] = {taken[0].pair[b][0], taken[1].pair[b][0], taken[0].pair[b][1],
                              taken[1].pair[b][1]};
#pragma unroll
            for (u32 part = 0; part < kFnParts; ++part)
#pragma unroll
                for (u32 tile = 0; tile < kFnTiles; ++tile)
                    ptx::mma_m16n8k16_bf16(product[tile], a, fn_.word[b][tile][part][0],
                                           fn_.word[b][tile][part][1]);
        }
        const u32 q = ptx::lane_index() % 4;
#pragma unroll
        for (u32 half = 0; half < 2; ++half) {
            const ptx::SharedAddress to = sums(buffer, ptx::warp_index(), token_of(half));
#pragma unroll
            for (u32 tile = 0; tile < kFnTiles; ++tile)
                ptx::st_shared_v2_f32(to + (tile * 8 + q * 2) * 4, product[tile][half * 2],
                                      product[tile][half * 2 + 1]);
            const float squares = taken[half].squares();
            if (q == 0) ptx::st_shared_f32(to + kHcMixes * 4, squares);
        }
    }
    /// The warps' shares, the first one's first, to memory.
    DG_DEVICE void add_warps(u32 first, u32 buffer) const {
        const u32 lane = ptx::lane_index(), item = lane < kHcMixes ? lane : kHcMixes;
#pragma unroll
        for (u32 i = 0; i < kHcSumsTokens / kHcSumsWarps; ++i) {
            const u32 token = ptx::warp_index() + i * kHcSumsWarps, row = first + token;
            float total = 0;
#pragma unroll
            for (u32 warp = 0; warp < kHcSumsWarps; ++warp)
                total = ptx::add_rn_f32(total, ptx::ld_shared_f32(sums(buffer, warp, token) + item * 4));
            if (row < p_.rows && lane <= kHcMixes)
                ptx::st_global_f32(
                    params_.records + (static_cast<u64>(row) * params_.slices + slice_) * kHcRecord + lane,
                    total);
        }
    }

    const HcTwoParams& params_;
    const HcParams& p_;
    ptx::SharedAddress smem_;
    u32 slice_, channel_;
    FnFragments fn_;
};

}  // namespace hc_sums_detail

template <HcSumsSpec S>
DG_KERNEL(kHcSumsThreads, 1)
hc_sums(DG_GRID_CONSTANT const HcTwoParams params) {
    ptx::grid_dependency_launch();
    const u32 slice = ptx::block_index() % params.slices, row_block = ptx::block_index() / params.slices;
    hc_sums_detail::Slice<S> of(params, slice);
    ptx::grid_dependency_wait();
    of.run(row_block * kHcSumsTokens, params.row_blocks * kHcSumsTokens);
}

}  // namespace deep_gemm
