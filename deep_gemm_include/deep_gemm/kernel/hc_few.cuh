// hc_few (spec/hc_few.h): a cluster has all rows. A lane of four has four channels of a token, from which they are
// streams until they are mixed; then a warp has a token's channels of its group. Called by
// op/hyper_connection.cpp.
#pragma once

#include <deep_gemm/kernel/hc_few_places.h>
#include <deep_gemm/kernel/hc_parts.h>
#include <deep_gemm/tile/narrow_copy.h>
#include <deep_gemm/ptx/copy.h>
#include <deep_gemm/ptx/mma_sync.h>

namespace deep_gemm {

namespace hc_few_detail {

using hc_detail::kFnParts;
using hc_detail::Loaded;
using hc_detail::Taken;

template <HcFewSpec S>
class Share {
  public:
    DG_DEVICE explicit Share(const Places<S>& at) : at_(at) {}

    /// Where the lane's four channels of its row begin, found while the launch before still runs.
    DG_DEVICE void find_rows() {
        const u32 row = at_.row_of_lane();
        const u64 first = static_cast<u64>(at_.channel(0)) * 2;
        const u64 x = reinterpret_cast<u64>(at_.p.x.data) + row * at_.p.x.stride * 2 + first;
#pragma unroll
        for (u32 a = 0; a < kHcStreams; ++a) x_[a] = x + a * at_.p.x.inner_stride * 2, ptx::pin(x_[a]);
        if constexpr (!kAdds) return;
        add_ = reinterpret_cast<u64>(at_.p.add.data) + row * at_.p.add.stride * 2 + first;
        post_ = reinterpret_cast<u64>(at_.p.post + row * kHcStreams);
        comb_ = reinterpret_cast<u64>(at_.p.comb + row * kHcStreams * kHcStreams);
        ptx::pin(add_), ptx::pin(post_), ptx::pin(comb_);
    }

    DG_DEVICE void run() {
        take_streams();
        multiply<0>();
        ptx::sync_threads();
        share_totals();
        at_.meet(Meeting::totals);
        // A warp finishes its row; the last one, which has none, finds post and comb meanwhile.
        tile::Float4 u[S.steps];
        if (at_.has_row()) mix(u);
        if constexpr (S.weight != Format::none) {
            if (at_.has_row()) share_squares(u);
            if constexpr (!kRowAmax) between();
            if (at_.has_row()) norm(u);
        }
        if constexpr (kRowAmax) {
            if (at_.has_row()) share_largest(u);
            between();
        }
        if (at_.has_row()) store(u);
        if constexpr (S.weight == Format::none && !kRowAmax) between();
    }

  private:
    static constexpr bool kRowAmax = Places<S>::kRowAmax;
    static constexpr bool kAdds = S.add != Format::none;
    static constexpr bool kKeepsEarly = hc_few_keeps_early(S);
    static constexpr u32 kStepChannels = kHcFewGroups * kHcFewRanks * kHcSliceChannels;
    static constexpr u32 kCopies = S.steps * kHcStreams;  // groups of them

    // --- The streams, with the output that they take in.
    static DG_DEVICE const u8* pointer(u64 place, u32 step = 0) {
        return reinterpret_cast<const u8*>(place) + step * kStepChannels * 2;
    }
    DG_DEVICE void take_streams() {
        Loaded loaded[S.steps];
#pragma unroll
        for (u32 step = 0; step < S.steps; ++step) {
            loaded[step] = {};
            if (!at_.has(step)) continue;
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
            ptx::st_shared_v2_u32(at_.kept(step, at_.warp, at_.lane / 4, b, at_.lane % 4),
                                  taken_[step].pair[b][0], taken_[step].pair[b][1]);
    }
    DG_DEVICE void put_back() const {
        if (!kAdds || at_.lane / 4 >= at_.p.rows) return;
#pragma unroll
        for (u32 step = 0; step < S.steps; ++step)
            if (at_.has(step))
#pragma unroll
                for (u32 b = 0; b < kHcStreams; ++b) {
                    const ptx::UInt2 w =
                        ptx::ld_shared_v2_u32(at_.kept(step, at_.warp, at_.lane / 4, b, at_.lane % 4));
                    ptx::st_global_v2_u32(static_cast<u16*>(at_.p.x.data) + at_.lane / 4 * at_.p.x.stride +
                                              b * at_.p.x.inner_stride + at_.channel(step),
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
            hc_detail::split_fn(word, ptx::ld_shared_v4_f32(at_.fn_at(kStep, kStream * kFnTiles + tile)));
#pragma unroll
            for (u32 part = 0; part < kFnParts; ++part)
                ptx::mma_m16n8k16_bf16(product_[tile], a, word[part][0], word[part][1]);
        }
        if constexpr (kStream == kHcStreams - 1) {
            ptx::sync_warp();  // fn of the step has been read
            const ptx::SharedAddress to = at_.sums(kStep, at_.warp, at_.lane / 4);
#pragma unroll
            for (u32 tile = 0; tile < kFnTiles; ++tile)
                ptx::st_shared_v2_f32(to + (tile * 8 + at_.lane % 4 * 2) * 4, product_[tile][0],
                                      product_[tile][1]);
            const float squares = taken_[kStep].squares();
            if (at_.lane % 4 == 0) ptx::st_shared_f32(to + kHcMixes * 4, squares);
            if constexpr (!kKeepsEarly) keep(kStep);
        }
        if constexpr (Copy + 1 < kCopies) multiply<Copy + 1>();
    }
    /// A warp has a token, and half the CTAs to tell.
    DG_DEVICE void share_totals() const {
        if (!at_.has_row()) return;
        const u32 token = at_.row_of_warp(), item = at_.lane < kHcMixes ? at_.lane : kHcMixes;
        float total = 0;
#pragma unroll
        for (u32 step = 0; step < S.steps; ++step)
#pragma unroll
            for (u32 group = 0; group < kHcFewGroups; ++group) {
                float sum = 0;
#pragma unroll
                for (u32 warp = 0; warp < kHcSumsWarps; ++warp)
                    sum = ptx::add_rn_f32(
                        sum,
                        ptx::ld_shared_f32(at_.sums(step, group * kHcSumsWarps + warp, token) + item * 4));
                if (at_.slice(step, group) * kHcSliceChannels < at_.p.d) total = ptx::add_rn_f32(total, sum);
            }
        constexpr u32 kRanks = kHcFewRanks / kHcFewGroups;
        // Seven lanes have the 28 floats that go to a CTA, four CTAs at a time.
        constexpr u32 kLanes = kHcFewPitch / 4, kAtOnce = 4;
        const u32 quad = at_.lane % kLanes;
        const auto of = [&](u32 i) { return ptx::shfl_idx_f32(total, quad * 4 + i); };
        const tile::Float4 v{of(0), of(1), of(2), of(3)};
        if (at_.lane >= kLanes * kAtOnce) return;
#pragma unroll
        for (u32 i = 0; i < kRanks; i += kAtOnce) {
            const u32 rank = at_.group * kRanks + i + at_.lane / kLanes;
            ptx::st_async_v4_f32(ptx::map_to_rank(at_.totals(at_.rank, token) + quad * 16, rank), v,
                                 ptx::map_to_rank(at_.meeting(Meeting::totals), rank));
        }
    }

    // --- The coefficients.
    [[nodiscard]] DG_DEVICE float total_of(u32 token, u32 item) const {
        float total = 0;
#pragma unroll
        for (u32 rank = 0; rank < kHcFewRanks; ++rank)
            total = ptx::add_rn_f32(total, ptx::ld_shared_f32(at_.totals(rank, token) + item * 4));
        return total;
    }
    [[nodiscard]] DG_DEVICE float z_of(u32 token, u32 mix) const {
        const ptx::SharedAddress terms = at_.smem + plan_smem(S).terms;
        return hc_detail::z_of(at_.p, total_of(token, mix), total_of(token, kHcMixes),
                               ptx::ld_shared_f32(terms + (kHcMixes + hc_detail::scale_of(mix)) * 4),
                               ptx::ld_shared_f32(terms + mix * 4));
    }
    /// What waits for the totals alone: while the CTAs tell each other the last of what they have to.
    DG_DEVICE void between() const {
        put_back();
        if (at_.warp == kHcFewWarps - 1 && at_.rank < at_.p.rows)
            hc_detail::store_post<kHcStreams>(at_.p, at_.rank,
                                              z_of(at_.rank, at_.lane < kHcMixes ? at_.lane : 0));
    }

    // --- The sublayer's input: the warp's row, of which a lane has four channels a step.
    DG_DEVICE void mix(tile::Float4 (&u)[S.steps]) const {
        const float pre_of_lane =
            hc_detail::sigmoid(z_of(at_.row_of_warp(), at_.lane % kHcStreams)) + at_.p.hc_eps;
        float pre[kHcStreams];
#pragma unroll
        for (u32 a = 0; a < kHcStreams; ++a) pre[a] = ptx::shfl_idx_f32(pre_of_lane, a);
#pragma unroll
        for (u32 step = 0; step < S.steps; ++step) {
            u[step] = {};
#pragma unroll
            for (u32 a = 0; a < kHcStreams; ++a) {
                const ptx::UInt2 w = ptx::ld_shared_v2_u32(at_.kept(
                    step, at_.group * kHcSumsWarps + at_.lane / 4, at_.row_of_warp(), a, at_.lane % 4));
                hc_detail::mix_in(u[step], pre[a], w.x, w.y);
            }
        }
    }
    /// Lane r tells CTA r of the cluster.
    DG_DEVICE void share(Meeting which, u32 where, u32 step, float value) const {
        if (!at_.has(step) || at_.lane >= kHcFewRanks) return;
        const ptx::SharedAddress to =
            at_.smem + where + (at_.row_of_warp() * slices_of(S) + at_.slice(step, at_.group)) * 4;
        ptx::st_async_f32(ptx::map_to_rank(to, at_.lane), value,
                          ptx::map_to_rank(at_.meeting(which), at_.lane));
    }
    DG_DEVICE void share_squares(const tile::Float4 (&u)[S.steps]) const {
#pragma unroll
        for (u32 step = 0; step < S.steps; ++step)
            share(Meeting::squares, plan_smem(S).squares, step, hc_detail::squares_of(u[step]));
    }
    DG_DEVICE void share_largest(const tile::Float4 (&u)[S.steps]) const {
#pragma unroll
        for (u32 step = 0; step < S.steps; ++step)
            share(Meeting::largest, plan_smem(S).largest, step,
                  tile::warp_max(tile::amax_of_four(tile::through_bf16(u[step]))));
    }
    template <typename Add>
    [[nodiscard]] DG_DEVICE float over_slices(Meeting which, u32 where, Add add) const {
        at_.meet(which);
        float value = 0;
#pragma unroll
        for (u32 first = 0; first < slices_of(S); first += 32)
            if (first + at_.lane < at_.p.d / kHcSliceChannels)
                value =
                    add(value, ptx::ld_shared_f32(at_.smem + where +
                                                  (at_.row_of_warp() * slices_of(S) + first + at_.lane) * 4));
        return value;
    }
    DG_DEVICE void norm(tile::Float4 (&u)[S.steps]) const {
        const float factor =
            hc_detail::norm_of(at_.p, over_slices(Meeting::squares, plan_smem(S).squares,
                                                  [](float a, float b) { return ptx::add_rn_f32(a, b); }));
#pragma unroll
        for (u32 step = 0; step < S.steps; ++step)
            u[step] = hc_detail::normed(u[step], factor, tile::load4_shared<S.weight>(at_.weight_at(step)));
    }
    DG_DEVICE void store(const tile::Float4 (&u)[S.steps]) const {
        const u32 row = at_.row_of_warp();
        float global = 0;
        if constexpr (kRowAmax) {
            global = tile::nvfp4_global(
                tile::warp_max(over_slices(Meeting::largest, plan_smem(S).largest,
                                           [](float a, float b) { return ptx::max_nan_f32(a, b); })));
            if (at_.rank == 0 && at_.group == 0 && at_.lane == 0)
                ptx::st_global_f32(at_.p.global + row, global);
        }
#pragma unroll
        for (u32 step = 0; step < S.steps; ++step) {
            if (!at_.has(step)) continue;
            const u32 at = at_.slice(step, at_.group) * kHcSliceChannels + at_.lane * 4;
            tile::store4<S.y>(at_.p.y.data, row * at_.p.y.stride + at, u[step]);
            constexpr ScaleRule kRule = kRowAmax ? ScaleRule::exact : ScaleRule::up;
            if constexpr (S.narrow)
                tile::store_copy<S.recipe, kRule>(at_.p.codes, at_.p.scales, row, at_.p.d, at, u[step],
                                                  global);
        }
    }

    const Places<S>& at_;
    u64 x_[kHcStreams], add_, post_, comb_;  // addresses
    Taken taken_[S.steps];
    float product_[kFnTiles][4];
};

}  // namespace hc_few_detail

template <HcFewSpec S>
DG_KERNEL(kHcFewThreads, S.steps == 1 ? 2 : 1)
hc_few(DG_GRID_CONSTANT const HcParams p) {
    const hc_few_detail::Places<S> at(p);
    hc_few_detail::Share<S> share(at);
    at.begin();
    at.ask();
    share.find_rows();
    ptx::cluster_wait();  // all CTAs have begun
    ptx::grid_dependency_wait();
    // Not before: what the next launch asks for early would come in front of the streams.
    ptx::grid_dependency_launch();
    share.run();
}

}  // namespace deep_gemm
