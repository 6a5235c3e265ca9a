// What hc_mix leaves of a token: the sublayer's input with its norm, and that in a narrow form
// (spec/hyper_connection.h). A CTA of the cluster has a range of channels, whose weighted sums lie in its
// shared memory.
#pragma once

#include <deep_gemm/kernel/hc_coefficients.h>
#include <deep_gemm/tile/narrow_copy.h>
#include <deep_gemm/tile/real.h>

namespace deep_gemm::hc_detail {

/// Where a channel's weighted sum is kept.
template <HcSpec S>
DG_DEVICE u32 mixed_at(u32 token, u32 channel) {
    return plan_smem(S).mixed + token * (S.threads / S.streams * S.steps * 16) + channel * 4;
}

/// What the norm multiplies a token by.
template <HcSpec S>
DG_DEVICE float norm_factor(const HcParams& p, u32 token, ptx::SharedAddress smem) {
    if constexpr (S.weight == Format::none) return 1;
    const float squares = cluster_total(smem + plan_smem(S).norm + token * 4);
    return 1.0f / ptx::sqrt_rn_f32(squares / static_cast<float>(p.d) + p.rms_eps);
}

/// The norm's weight of the first channels that a thread stores, asked for while the streams are on their
/// way.
template <HcSpec S>
DG_DEVICE tile::Float4 first_weight(const HcParams& p, u32 channel, u32 end) {
    if constexpr (S.weight != Format::none)
        if (channel < end) return tile::load4<S.weight>(p.weight, channel);
    return {};
}

/// The input of the sublayer, with its norm, by `threads` threads of which this is `thread`; returns the
/// largest that it stored, where that is asked for.
template <HcSpec S>
DG_DEVICE float store_input(const HcParams& p, u32 row, u32 token, float factor, const tile::Float4& first,
                            u32 thread, u32 threads, u32 begin, u32 end, ptx::SharedAddress smem) {
    float amax = 0;
    for (u32 channel = begin + thread * 4; channel < end; channel += threads * 4) {
        tile::Float4 u = ptx::ld_shared_v4_f32(smem + mixed_at<S>(token, channel - begin));
        if constexpr (S.weight != Format::none) {
            const tile::Float4 w = S.steps == 1 || channel == begin + thread * 4
                                       ? first
                                       : tile::load4<S.weight>(p.weight, channel);
            u = {u.x * factor * w.x, u.y * factor * w.y, u.z * factor * w.z, u.w * factor * w.w};
        }
        tile::store4<S.y>(p.y.data, row * p.y.stride + channel, u);
        if constexpr (hc_row_amax(S)) {
            u = tile::through_bf16(u);
            amax = ptx::max_nan_f32(amax, tile::amax_of_four(u));
            ptx::st_shared_v4_f32(smem + mixed_at<S>(token, channel - begin), u.x, u.y, u.z, u.w);
        } else if constexpr (S.narrow) {  // a share is a multiple of 128: whole warps are here
            tile::store_copy<S.recipe, ScaleRule::up>(p.codes, p.scales, row, p.d, channel, u);
        }
    }
    return amax;
}

/// The CTA's largest of a token, from the warps' of `sums`.
template <HcSpec S>
DG_DEVICE void keep_amax(u32 tokens, ptx::SharedAddress smem) {
    const u32 token = ptx::thread_index();
    if (token >= tokens) return;
    float largest = 0;
#pragma unroll
    for (u32 warp = 0; warp < S.threads / 32; ++warp)
        largest = ptx::max_nan_f32(
            largest, ptx::ld_shared_f32(smem + plan_smem(S).sums + (token * kHcMixWarps + warp) * 4));
    ptx::st_shared_f32(smem + plan_smem(S).amax + token * 4, largest);
}

/// What store_input() has stored, in NVFP4, now that the cluster knows the largest of the row.
template <HcSpec S>
DG_DEVICE void store_nvfp4(const HcParams& p, u32 row, u32 token, u32 begin, u32 end,
                           ptx::SharedAddress smem) {
    float amax = 0;
#pragma unroll
    for (u32 rank = 0; rank < kHcCluster; ++rank)
        amax = ptx::max_nan_f32(
            amax, ptx::ld_cluster_f32(ptx::map_to_rank(smem + plan_smem(S).amax + token * 4, rank)));
    const float global = tile::nvfp4_global(amax);
    if (begin == 0 && ptx::thread_index() == 0) ptx::st_global_f32(p.global + row, global);
    for (u32 channel = begin + ptx::thread_index() * 4; channel < end; channel += S.threads * 4)
        tile::store_copy<Recipe::nvfp4, ScaleRule::exact>(
            p.codes, p.scales, row, p.d, channel,
            ptx::ld_shared_v4_f32(smem + mixed_at<S>(token, channel - begin)), global);
}

}  // namespace deep_gemm::hc_detail
