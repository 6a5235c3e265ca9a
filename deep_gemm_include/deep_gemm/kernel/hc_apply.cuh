// hc_apply (spec/hc_sums.h): a CTA a token. Its warps have 128 channels at a time; one more finds post and
// comb meanwhile. Called by op/hyper_connection.cpp.
#pragma once

#include <deep_gemm/spec/hc_sums.h>
#include <deep_gemm/kernel/hc_parts.h>
#include <deep_gemm/tile/narrow_copy.h>

namespace deep_gemm {

namespace hc_apply_detail {

using hc_detail::sigmoid;

/// What fn makes of a token, scaled: lane m of every warp has z of mix m. All warps call.
template <HcApplySpec S>
DG_DEVICE float find_z(const HcTwoParams& params, u32 row, ptx::SharedAddress smem) {
    const HcParams& p = params.p;
    const u32 lane = ptx::lane_index(), warp = ptx::warp_index();
    const u32 mix = lane < kHcMixes ? lane : 0;
    const float scale = ptx::ld_global_f32(p.scale + hc_detail::scale_of(mix)),
                base = ptx::ld_global_f32(p.base + mix);
    const u32 item = lane < kHcMixes ? lane : kHcMixes;  // of a record
    if (warp < kHcApplyWarps) {
        float sum = 0;
        for (u32 slice = warp; slice < params.slices; slice += kHcApplyWarps)
            sum = ptx::add_rn_f32(
                sum, ptx::ld_global_f32(params.records +
                                        (static_cast<u64>(row) * params.slices + slice) * kHcRecord + item));
        ptx::st_shared_f32(smem + (warp * kHcRecord + lane) * 4, sum);
    }
    ptx::sync_threads();
    float total = 0;
#pragma unroll
    for (u32 i = 0; i < kHcApplyWarps; ++i)
        total = ptx::add_rn_f32(total, ptx::ld_shared_f32(smem + (i * kHcRecord + lane) * 4));
    const float square = ptx::shfl_idx_f32(total, kHcMixes);
    return hc_detail::z_of(p, total, square, scale, base);
}

template <HcApplySpec S>
class Input {
  public:
    DG_DEVICE Input(const HcTwoParams& params, u32 row) : p_(params.p), row_(row) {
#pragma unroll
        for (u32 step = 0; step < S.steps; ++step) {
            const u32 channel = channel_of(step);
            if (channel >= p_.d) break;
#pragma unroll
            for (u32 a = 0; a < kHcStreams; ++a)
                x_[step][a] = ptx::ld_global_v2_u32(static_cast<const u16*>(p_.x.data) + row * p_.x.stride +
                                                    a * p_.x.inner_stride + channel);
            if constexpr (S.weight != Format::none) weight_[step] = tile::load4<S.weight>(p_.weight, channel);
        }
    }

    /// The sublayer's input from lane i's pre of stream i.
    DG_DEVICE void run(float pre_of_lane, ptx::SharedAddress smem) {
        float pre[kHcStreams];
#pragma unroll
        for (u32 a = 0; a < kHcStreams; ++a) pre[a] = ptx::shfl_idx_f32(pre_of_lane, a);
        tile::Float4 u[S.steps];
#pragma unroll
        for (u32 step = 0; step < S.steps; ++step) u[step] = mixed(step, pre);
        const float factor = norm_factor(u, smem);
        float largest = 0;
#pragma unroll
        for (u32 step = 0; step < S.steps; ++step) {
            const u32 channel = channel_of(step);
            if (channel >= p_.d) break;
            if constexpr (S.weight != Format::none) {
                u[step] = hc_detail::normed(u[step], factor, weight_[step]);
            }
            tile::store4<S.y>(p_.y.data, row_ * p_.y.stride + channel, u[step]);
            if constexpr (kRowAmax)
                largest = ptx::max_nan_f32(largest, tile::amax_of_four(tile::through_bf16(u[step])));
            else if constexpr (S.narrow)
                tile::store_copy<S.recipe, ScaleRule::up>(p_.codes, p_.scales, row_, p_.d, channel, u[step]);
        }
        if constexpr (kRowAmax) store_nvfp4(u, largest, smem);
    }

  private:
    static constexpr bool kRowAmax = S.narrow && S.recipe == Recipe::nvfp4;

    static DG_DEVICE void sync_workers() {
        ptx::named_barrier_sync(1, kHcApplyThreads);
    }
    [[nodiscard]] DG_DEVICE u32 group_of(u32 step) const {
        return step * kHcApplyWarps + warp_;
    }
    [[nodiscard]] DG_DEVICE u32 channel_of(u32 step) const {
        return group_of(step) * 128 + ptx::lane_index() * 4;
    }

    [[nodiscard]] DG_DEVICE tile::Float4 mixed(u32 step, const float (&pre)[kHcStreams]) const {
        tile::Float4 u{};
        if (channel_of(step) >= p_.d) return u;
#pragma unroll
        for (u32 a = 0; a < kHcStreams; ++a) {
            const ptx::Word2 w = x_[step][a];
            hc_detail::mix_in(u, pre[a], w.x, w.y);
        }
        return u;
    }
    /// Squares are added over 128 channels, then over those sums: however many warps there are.
    [[nodiscard]] DG_DEVICE float norm_factor(const tile::Float4 (&u)[S.steps],
                                              ptx::SharedAddress smem) const {
        if constexpr (S.weight == Format::none) return 1;
        const ptx::SharedAddress squares = smem + plan_smem(S).squares;
#pragma unroll
        for (u32 step = 0; step < S.steps; ++step) {
            const float sum = hc_detail::squares_of(u[step]);
            if (ptx::lane_index() == 0) ptx::st_shared_f32(squares + group_of(step) * 4, sum);
        }
        sync_workers();
        float sum = 0;
#pragma unroll
        for (u32 first = 0; first < S.steps * kHcApplyWarps; first += 32)
            if (first + ptx::lane_index() < p_.d / 128)
                sum = ptx::add_rn_f32(sum, ptx::ld_shared_f32(squares + (first + ptx::lane_index()) * 4));
        return hc_detail::norm_of(p_, sum);
    }
    DG_DEVICE void store_nvfp4(const tile::Float4 (&u)[S.steps], float largest,
                               ptx::SharedAddress smem) const {
        const ptx::SharedAddress all = smem + plan_smem(S).largest;
        largest = tile::warp_max(largest);
        if (ptx::lane_index() == 0) ptx::st_shared_f32(all + warp_ * 4, largest);
        sync_workers();
        const float amax = tile::warp_max(ptx::ld_shared_f32(all + ptx::lane_index() % kHcApplyWarps * 4));
        const float global = tile::nvfp4_global(amax);
        if (ptx::thread_index() == 0) ptx::st_global_f32(p_.global + row_, global);
#pragma unroll
        for (u32 step = 0; step < S.steps; ++step) {
            const u32 channel = channel_of(step);
            if (channel < p_.d)
                tile::store_copy<Recipe::nvfp4, ScaleRule::exact>(p_.codes, p_.scales, row_, p_.d, channel,
                                                                  u[step], global);
        }
    }

    const HcParams& p_;
    u32 row_, warp_ = ptx::warp_index();
    ptx::Word2 x_[S.steps][kHcStreams] = {};
    tile::Float4 weight_[S.steps] = {};
};

}  // namespace hc_apply_detail

template <HcApplySpec S>
DG_KERNEL(kHcApplyThreads + 32, S.steps > 2 ? 1 : 2)
hc_apply(DG_GRID_CONSTANT const HcTwoParams params) {
    using namespace hc_apply_detail;
    const ptx::SharedAddress smem = ptx::dynamic_smem();
    const u32 row = ptx::block_index();
    ptx::grid_dependency_launch();
    ptx::grid_dependency_wait();
    if (ptx::warp_index() == kHcApplyWarps)
        return hc_detail::store_post<kHcStreams>(params.p, row, find_z<S>(params, row, smem));
    Input<S> input(params, row);
    const float z = find_z<S>(params, row, smem);
    input.run(sigmoid(z) + params.p.hc_eps, smem);
}

}  // namespace deep_gemm
