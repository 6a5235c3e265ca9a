// hc_few (spec/hc_few.h): a cluster has all rows. A lane of four has four channels of a token, from which they are
// streams until they are mixed; then a warp has a token's channels of its group. Called by
// op/hyper_connection.cpp.
#pragma once

#include <deep_gemm/spec/hc_few.h>
#include <deep_gemm/kernel/hc_parts.h>
#include <deep_gemm/tile/narrow_copy.h>
#include <deep_gemm/ptx/copy.h>
#include <deep_gemm/ptx/mbarrier.h>
#include <deep_gemm/ptx/mma_sync.h>
#include <deep_gemm/ptx/stream.h>

namespace deep_gemm {

namespace hc_few_detail {

using hc_detail::kFnParts;
using hc_detail::kFnTiles;
using hc_detail::Loaded;
using hc_detail::Taken;

template <HcFewSpec S>
class Share {
  public:
    DG_DEVICE explicit Share(const HcParams& p) : p_(p), smem_(ptx::dynamic_smem()) {}

    /// Of what no launch writes: fn, a group of copies for each step and stream; with the first all else.
    DG_DEVICE void ask() const {
        if (warp_ == 0) ask_terms();
        if (warp_ % kHcSumsWarps == 1) ask_weight();
#pragma unroll
        for (u32 step = 0; step < S.steps; ++step)
#pragma unroll
            for (u32 stream = 0; stream < kHcStreams; ++stream) {
#pragma unroll
                for (u32 tile = 0; tile < kFnTiles; ++tile)
                {
                    const float* from = fn_from(step, stream, tile);
                    if constexpr (S.l1) {
                        u32 word;
                        asm volatile("ld.global.u32 %0, [%1];" : "=r"(word) : "l"(from));
                    } else ptx::cp_async_16(fn_at(step, stream * kFnTiles + tile), from, has(step) ? 16 : 0);
                }
                ptx::cp_async_commit();
            }
    }

    /// The cluster meets without a fence: what a CTA tells another one completes on its mbarriers.
    DG_DEVICE void begin() const {
        if constexpr (S.fenced) return ptx::cluster_arrive();
        if (ptx::thread_index() == 0) {
            const u32 slices = p_.d / kHcSliceChannels;
            expect(kTotals, p_.rows * kHcFewRanks * kHcFewPitch * 4);
            if constexpr (S.weight != Format::none) expect(kSquares, p_.rows * slices * 4);
            if constexpr (kRowAmax) expect(kLargest, p_.rows * slices * 4);
            ptx::fence_mbarrier_init();
        }
        ptx::sync_warp();
        ptx::cluster_arrive_relaxed();
    }

    /// Where the lane's four channels of its row begin, found while the launch before still runs.
    DG_DEVICE void find_places() {
        const u32 row = row_of_lane();
        const u64 first = static_cast<u64>(channel(0)) * 2;
        const u64 x = reinterpret_cast<u64>(p_.x.data) + row * p_.x.stride * 2 + first;
#pragma unroll
        for (u32 a = 0; a < kHcStreams; ++a) x_[a] = x + a * p_.x.inner_stride * 2, ptx::pin(x_[a]);
        if constexpr (!kAdds) return;
        add_ = reinterpret_cast<u64>(p_.add.data) + row * p_.add.stride * 2 + first;
        post_ = reinterpret_cast<u64>(p_.post + row * kHcStreams);
        comb_ = reinterpret_cast<u64>(p_.comb + row * kHcStreams * kHcStreams);
        ptx::pin(add_), ptx::pin(post_), ptx::pin(comb_);
    }

    DG_DEVICE void run() {
        take_streams();
        multiply<0>();
        ptx::sync_threads();
        if constexpr (S.trigger == 1) ptx::grid_dependency_launch();
        if constexpr (S.l1) ptx::cluster_wait();  // all CTAs have begun
        share_totals();
        meet(kTotals);
        if constexpr (S.trigger == 2) ptx::grid_dependency_launch();
        // A warp finishes its row; the last one, which has none but of eight rows, finds post and comb
        // meanwhile.
        tile::Float4 u[S.steps];
        if (has_row()) mix(u);
        if constexpr (S.weight != Format::none) {
            if (has_row()) share_squares(u);
            if constexpr (S.fenced) ptx::cluster_arrive();
            if constexpr (!kRowAmax) between();
            if constexpr (S.fenced) ptx::cluster_wait();
            if (has_row()) norm(u);
        }
        if constexpr (kRowAmax) {
            if (has_row()) share_largest(u);
            if constexpr (S.fenced) ptx::cluster_arrive();
            between();
            if constexpr (S.fenced) ptx::cluster_wait();
        }
        if (has_row()) store(u);
        if constexpr (S.weight == Format::none && !kRowAmax) between();
    }

  private:
    static constexpr bool kRowAmax = S.narrow && S.recipe == Recipe::nvfp4;
    static constexpr bool kAdds = S.add != Format::none;
    static constexpr bool kKeepsEarly = hc_few_keeps_early(S);
    static constexpr u32 kStepChannels = kHcFewGroups * kHcFewRanks * kHcSliceChannels;
    enum Meeting : u32 { kTotals, kSquares, kLargest };
    static constexpr u32 kCopies = S.steps * kHcStreams;  // groups of them

    [[nodiscard]] DG_DEVICE ptx::SharedAddress meeting(Meeting which) const {
        return smem_ + plan_smem(S).meetings + which * 8;
    }
    DG_DEVICE void expect(Meeting which, u32 bytes) const {
        ptx::mbarrier_init(meeting(which), 1);
        ptx::mbarrier_arrive_expect_tx(meeting(which), bytes);
    }
    DG_DEVICE void meet(Meeting which) const {
        if constexpr (S.fenced) {
            if (which == kTotals) ptx::cluster_sync();
        } else {
            ptx::mbarrier_wait(meeting(which), 0);
        }
    }

    // --- Where: a slice of each step, 16 channels of it, four channels of a token; the token of the warp.
    [[nodiscard]] DG_DEVICE u32 slice(u32 step, u32 group) const {
        return rank_ + (step * kHcFewGroups + group) * kHcFewRanks;
    }
    [[nodiscard]] DG_DEVICE bool has(u32 step) const {
        return slice(step, group_) * kHcSliceChannels < p_.d;
    }
    [[nodiscard]] DG_DEVICE u32 channel(u32 step) const {
        return slice(step, group_) * kHcSliceChannels + warp_ % kHcSumsWarps * 16 + lane_ % 4 * 4;
    }
    [[nodiscard]] DG_DEVICE u32 channel_or_first(u32 step) const {
        return has(step) ? channel(step) : 0;
    }
    [[nodiscard]] DG_DEVICE u32 row_of_lane() const {
        return lane_ / 4 < p_.rows ? lane_ / 4 : p_.rows - 1;
    }
    [[nodiscard]] DG_DEVICE u32 row_of_warp() const {
        return warp_ % kHcSumsWarps;
    }
    [[nodiscard]] DG_DEVICE bool has_row() const {
        return row_of_warp() < p_.rows;
    }
    [[nodiscard]] DG_DEVICE ptx::SharedAddress fn_at(u32 step, u32 fragment) const {
        return smem_ + (step * kHcFewWarps + warp_) * fn_bytes(S) + (fragment * 32 + lane_) * 16;
    }
    [[nodiscard]] DG_DEVICE ptx::SharedAddress sums(u32 step, u32 warp, u32 token) const {
        return smem_ + (step * kHcFewWarps + warp) * fn_bytes(S) + token * kHcSumsPitch * 4;
    }
    [[nodiscard]] DG_DEVICE ptx::SharedAddress totals(u32 rank, u32 token) const {
        return smem_ + plan_smem(S).totals + (rank * kHcFewTokens + token) * kHcFewPitch * 4;
    }
    /// Four channels of a token's stream that warp `warp` has taken; tokens of neighbours lie in other banks.
    [[nodiscard]] DG_DEVICE ptx::SharedAddress kept(u32 step, u32 warp, u32 token, u32 stream,
                                                    u32 quad) const {
        return smem_ + plan_smem(S).kept + (step * kHcFewWarps + warp) * plan_smem(S).kept_stride +
               (stream * kHcFewTokens + (token + warp) % kHcFewTokens) * 32 + quad * 8;
    }
    [[nodiscard]] DG_DEVICE ptx::SharedAddress weight_at(u32 step) const {
        return smem_ + plan_smem(S).weight +
               ((step * kHcFewGroups + group_) * kHcSliceChannels + lane_ * 4) * bytes_of(S.weight);
    }

    DG_DEVICE const float* fn_from(u32 step, u32 stream, u32 tile) const {
        return p_.fn + (static_cast<u64>(tile * 8 + lane_ / 4) * kHcStreams + stream) * p_.d + channel_or_first(step);
    }
    DG_DEVICE void ask_terms() const {
        const u32 scale = lane_ < kHcMixes + 3 ? lane_ - kHcMixes : 0;
        ptx::cp_async<4>(smem_ + plan_smem(S).terms + lane_ * 4,
                         lane_ < kHcMixes ? p_.base + lane_ : p_.scale + scale, 4);
    }
    DG_DEVICE void ask_weight() const {
        if constexpr (S.weight != Format::none) {
            constexpr u32 kBytes = bytes_of(S.weight);
#pragma unroll
            for (u32 step = 0; step < S.steps; ++step) {
                const u64 first = has(step) ? slice(step, group_) * kHcSliceChannels + lane_ * 4 : 0;
                ptx::cp_async<kBytes * 4>(weight_at(step), static_cast<const u8*>(p_.weight) + first * kBytes,
                                          kBytes * 4);
            }
        }
    }

    // --- The streams, with the output that they take in.
    static DG_DEVICE const u8* pointer(u64 place, u32 step = 0) {
        return reinterpret_cast<const u8*>(place) + step * kStepChannels * 2;
    }
    DG_DEVICE void take_streams() {
        Loaded loaded[S.steps];
#pragma unroll
        for (u32 step = 0; step < S.steps; ++step) {
            loaded[step] = {};
            if (!has(step)) continue;
#pragma unroll
            for (u32 a = 0; a < kHcStreams; ++a) {
                const ptx::Word2 w = ptx::ld_global_v2_u32(pointer(x_[a], step));
                loaded[step].x[a][0] = w.x, loaded[step].x[a][1] = w.y;
            }
            if constexpr (kAdds) {
                const ptx::Word2 w = ptx::ld_global_v2_u32(pointer(add_, step));
                loaded[step].y[0] = w.x, loaded[step].y[1] = w.y;
            }
        }
        tile::Float4 post{}, comb[kHcStreams]{};
        if constexpr (kAdds) {
            post = ptx::ld_global_v4_f32(pointer(post_));
#pragma unroll
            for (u32 a = 0; a < kHcStreams; ++a)
                comb[a] = ptx::ld_global_v4_f32(pointer(comb_) + a * kHcStreams * 4);
        }
#pragma unroll
        for (u32 step = 0; step < S.steps; ++step)
            if constexpr (kAdds) {
                hc_detail::take_in(taken_[step], loaded[step], post, [&](u32 a) { return comb[a]; });
            } else {
#pragma unroll
                for (u32 a = 0; a < kHcStreams; ++a)
                    taken_[step].pair[a][0] = loaded[step].x[a][0],
                    taken_[step].pair[a][1] = loaded[step].x[a][1];
            }
        if constexpr (kKeepsEarly) keep(0);
    }
    DG_DEVICE void keep(u32 step) const {
#pragma unroll
        for (u32 b = 0; b < kHcStreams; ++b)
            ptx::st_shared_v2_u32(kept(step, warp_, lane_ / 4, b, lane_ % 4), taken_[step].pair[b][0],
                                  taken_[step].pair[b][1]);
    }
    DG_DEVICE void put_back() const {
        if (!kAdds || lane_ / 4 >= p_.rows) return;
#pragma unroll
        for (u32 step = 0; step < S.steps; ++step)
            if (has(step))
#pragma unroll
                for (u32 b = 0; b < kHcStreams; ++b) {
                    const ptx::UInt2 w = ptx::ld_shared_v2_u32(kept(step, warp_, lane_ / 4, b, lane_ % 4));
                    ptx::st_global_v2_u32(static_cast<u16*>(p_.x.data) + lane_ / 4 * p_.x.stride +
                                              b * p_.x.inner_stride + channel(step),
                                          w.x, w.y);
                }
    }

    // --- What fn makes of them.
    /// Copies `Copy` and later: a stream of a step each. The order of products is that of hc_sums.
    template <u32 Copy>
    DG_DEVICE void multiply() {
        constexpr u32 kStep = Copy / kHcStreams, kStream = Copy % kHcStreams;
        ptx::cp_async_wait<kCopies - 1 - Copy>();
        const u32 a[4] = {taken_[kStep].pair[kStream][0], 0, taken_[kStep].pair[kStream][1], 0};
        if constexpr (kStream == 0)
#pragma unroll
            for (u32 tile = 0; tile < kFnTiles; ++tile)
#pragma unroll
                for (u32 i = 0; i < 4; ++i) product_[tile][i] = 0;
#pragma unroll
        for (u32 tile = 0; tile < kFnTiles; ++tile) {
            u32 word[kFnParts][2];
            if constexpr (S.l1) hc_detail::split_fn(word, ptx::ld_global_v4_f32(fn_from(kStep, kStream, tile)));
            else hc_detail::split_fn(word, ptx::ld_shared_v4_f32(fn_at(kStep, kStream * kFnTiles + tile)));
#pragma unroll
            for (u32 part = 0; part < kFnParts; ++part)
                ptx::mma_m16n8k16_bf16(product_[tile], a, word[part][0], word[part][1]);
        }
        if constexpr (kStream == kHcStreams - 1) {
            ptx::sync_warp();  // fn of the step has been read
            const ptx::SharedAddress to = sums(kStep, warp_, lane_ / 4);
#pragma unroll
            for (u32 tile = 0; tile < kFnTiles; ++tile)
                ptx::st_shared_v2_f32(to + (tile * 8 + lane_ % 4 * 2) * 4, product_[tile][0],
                                      product_[tile][1]);
            const float squares = taken_[kStep].squares();
            if (lane_ % 4 == 0) ptx::st_shared_f32(to + kHcMixes * 4, squares);
            if constexpr (!kKeepsEarly) keep(kStep);
        }
        if constexpr (Copy + 1 < kCopies) multiply<Copy + 1>();
    }
    /// A warp has a token, and half the CTAs to tell.
    DG_DEVICE void share_totals() const {
        if (!has_row()) return;
        const u32 token = row_of_warp(), item = lane_ < kHcMixes ? lane_ : kHcMixes;
        float total = 0;
#pragma unroll
        for (u32 step = 0; step < S.steps; ++step)
#pragma unroll
            for (u32 group = 0; group < kHcFewGroups; ++group) {
                float sum = 0;
#pragma unroll
                for (u32 warp = 0; warp < kHcSumsWarps; ++warp)
                    sum = ptx::add_rn_f32(
                        sum, ptx::ld_shared_f32(sums(step, group * kHcSumsWarps + warp, token) + item * 4));
                if (slice(step, group) * kHcSliceChannels < p_.d) total = ptx::add_rn_f32(total, sum);
            }
        constexpr u32 kRanks = kHcFewRanks / kHcFewGroups;
        if constexpr (!S.fenced) {
            // Seven lanes have the 28 floats that go to a CTA, four CTAs at a time.
            constexpr u32 kLanes = kHcFewPitch / 4, kAtOnce = 4;
            const u32 quad = lane_ % kLanes;
            const auto of = [&](u32 i) {
                return codec::float_of_bits(ptx::shfl_idx(codec::bits_of_float(total), quad * 4 + i));
            };
            const tile::Float4 v{of(0), of(1), of(2), of(3)};
            if (lane_ >= kLanes * kAtOnce) return;
#pragma unroll
            for (u32 i = 0; i < kRanks; i += kAtOnce) {
                const u32 rank = group_ * kRanks + i + lane_ / kLanes;
                ptx::st_async_v4_f32(ptx::map_to_rank(totals(rank_, token) + quad * 16, rank), v,
                                     ptx::map_to_rank(meeting(kTotals), rank));
            }
            return;
        }
        if (lane_ > kHcMixes) return;
#pragma unroll
        for (u32 i = 0; i < kRanks; ++i)
            ptx::st_cluster_f32(ptx::map_to_rank(totals(rank_, token) + lane_ * 4, group_ * kRanks + i),
                                total);
    }

    // --- The coefficients.
    [[nodiscard]] DG_DEVICE float total_of(u32 token, u32 item) const {
        float total = 0;
#pragma unroll
        for (u32 rank = 0; rank < kHcFewRanks; ++rank)
            total = ptx::add_rn_f32(total, ptx::ld_shared_f32(totals(rank, token) + item * 4));
        return total;
    }
    [[nodiscard]] DG_DEVICE float z_of(u32 token, u32 mix) const {
        const ptx::SharedAddress terms = smem_ + plan_smem(S).terms;
        return hc_detail::z_of(p_, total_of(token, mix), total_of(token, kHcMixes),
                               ptx::ld_shared_f32(terms + (kHcMixes + hc_detail::scale_of(mix)) * 4),
                               ptx::ld_shared_f32(terms + mix * 4));
    }
    /// What waits for nothing but the sums: beside the last meeting of the cluster, whose arrival waits for no
    /// store of these.
    DG_DEVICE void between() const {
        put_back();
        if (warp_ == kHcFewWarps - 1 && rank_ < p_.rows)
            hc_detail::store_post<kHcStreams>(p_, rank_, z_of(rank_, lane_ < kHcMixes ? lane_ : 0));
    }

    // --- The sublayer's input: the warp's row, of which a lane has four channels a step.
    DG_DEVICE void mix(tile::Float4 (&u)[S.steps]) const {
        const float pre_of_lane = hc_detail::sigmoid(z_of(row_of_warp(), lane_ % kHcStreams)) + p_.hc_eps;
        float pre[kHcStreams];
#pragma unroll
        for (u32 a = 0; a < kHcStreams; ++a)
            pre[a] = codec::float_of_bits(ptx::shfl_idx(codec::bits_of_float(pre_of_lane), a));
#pragma unroll
        for (u32 step = 0; step < S.steps; ++step) {
            u[step] = {};
#pragma unroll
            for (u32 a = 0; a < kHcStreams; ++a) {
                const ptx::UInt2 w = ptx::ld_shared_v2_u32(
                    kept(step, group_ * kHcSumsWarps + lane_ / 4, row_of_warp(), a, lane_ % 4));
                hc_detail::mix_in(u[step], pre[a], w.x, w.y);
            }
        }
    }
    /// Lane r tells CTA r of the cluster.
    DG_DEVICE void share(Meeting which, u32 where, u32 step, float value) const {
        if (!has(step) || lane_ >= kHcFewRanks) return;
        const ptx::SharedAddress to =
            smem_ + where + (row_of_warp() * slices_of(S) + slice(step, group_)) * 4;
        if constexpr (S.fenced)
            ptx::st_cluster_f32(ptx::map_to_rank(to, lane_), value);
        else
            ptx::st_async_f32(ptx::map_to_rank(to, lane_), value, ptx::map_to_rank(meeting(which), lane_));
    }
    DG_DEVICE void share_squares(const tile::Float4 (&u)[S.steps]) const {
#pragma unroll
        for (u32 step = 0; step < S.steps; ++step)
            share(kSquares, plan_smem(S).squares, step, hc_detail::squares_of(u[step]));
    }
    DG_DEVICE void share_largest(const tile::Float4 (&u)[S.steps]) const {
#pragma unroll
        for (u32 step = 0; step < S.steps; ++step)
            share(kLargest, plan_smem(S).largest, step,
                  tile::warp_max(tile::amax_of_four(tile::through_bf16(u[step]))));
    }
    template <typename Add>
    [[nodiscard]] DG_DEVICE float over_slices(Meeting which, u32 where, Add add) const {
        meet(which);
        float value = 0;
#pragma unroll
        for (u32 first = 0; first < slices_of(S); first += 32)
            if (first + lane_ < p_.d / kHcSliceChannels)
                value = add(value, ptx::ld_shared_f32(smem_ + where +
                                                      (row_of_warp() * slices_of(S) + first + lane_) * 4));
        return value;
    }
    DG_DEVICE void norm(tile::Float4 (&u)[S.steps]) const {
        const float factor = hc_detail::norm_of(
            p_, over_slices(kSquares, plan_smem(S).squares, [](float a, float b) { return ptx::add_rn_f32(a, b); }));
#pragma unroll
        for (u32 step = 0; step < S.steps; ++step)
            u[step] = hc_detail::normed(u[step], factor, tile::load4_shared<S.weight>(weight_at(step)));
    }
    DG_DEVICE void store(const tile::Float4 (&u)[S.steps]) const {
        const u32 row = row_of_warp();
        float global = 0;
        if constexpr (kRowAmax) {
            global = tile::nvfp4_global(tile::warp_max(
                over_slices(kLargest, plan_smem(S).largest, [](float a, float b) { return ptx::max_nan_f32(a, b); })));
            if (rank_ == 0 && group_ == 0 && lane_ == 0) ptx::st_global_f32(p_.global + row, global);
        }
#pragma unroll
        for (u32 step = 0; step < S.steps; ++step) {
            if (!has(step)) continue;
            const u32 at = slice(step, group_) * kHcSliceChannels + lane_ * 4;
            tile::store4<S.y>(p_.y.data, row * p_.y.stride + at, u[step]);
            constexpr ScaleRule kRule = kRowAmax ? ScaleRule::exact : ScaleRule::up;
            if constexpr (S.narrow)
                tile::store_copy<S.recipe, kRule>(p_.codes, p_.scales, row, p_.d, at, u[step], global);
        }
    }

    const HcParams& p_;
    ptx::SharedAddress smem_;
    u32 rank_ = ptx::cluster_rank(), warp_ = ptx::warp_index(), lane_ = ptx::lane_index(),
        group_ = warp_ / kHcSumsWarps;
    u64 x_[kHcStreams], add_, post_, comb_;  // addresses
    Taken taken_[S.steps];
    float product_[kFnTiles][4];
};

}  // namespace hc_few_detail

template <HcFewSpec S>
DG_KERNEL(kHcFewThreads, S.steps == 1 ? 2 : 1)
hc_few(DG_GRID_CONSTANT const HcParams p) {
    if constexpr (S.trigger == 0) ptx::grid_dependency_launch();
    hc_few_detail::Share<S> share(p);
    share.begin();
    share.ask();
    share.find_places();
    if constexpr (!S.l1) ptx::cluster_wait();
    ptx::grid_dependency_wait();
    share.run();
}

}  // namespace deep_gemm
