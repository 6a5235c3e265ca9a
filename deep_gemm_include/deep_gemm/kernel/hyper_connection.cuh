// Hyper-connections (spec/hyper_connection.h): hc_mix before a sublayer (a cluster a token), hc_post after
// it. Called by op/hyper_connection.cpp.
#pragma once

#include <deep_gemm/spec/hyper_connection.h>
#include <deep_gemm/tile/real.h>
#include <deep_gemm/tile/reduce.h>
#include <deep_gemm/ptx/math.h>
#include <deep_gemm/ptx/shared_words.h>

namespace deep_gemm {

namespace hc_detail {

DG_DEVICE float sigmoid(float z) {
    return 1.0f / (1.0f + ptx::exp_f32(-z));
}

/// Sum over the cluster, in order of ranks, of the float at `address` of each CTA.
DG_DEVICE float cluster_total(ptx::SharedAddress address) {
    float total = 0;
#pragma unroll
    for (u32 rank = 0; rank < kHcCluster; ++rank)
        total += ptx::ld_cluster_f32(ptx::map_to_rank(address, rank));
    return total;
}

/// One warp; lane a * H + b has comb[a, b], the others nothing of use.
template <u32 H>
DG_DEVICE float sinkhorn(float z, u32 iterations, float eps) {
    const auto over_b = [](float v) { return tile::warp_sum<H>(v); };
    const auto over_a = [](float v) {
#pragma unroll
        for (u32 mask = H; mask < H * H; mask *= 2) v += ptx::shfl_bfly_f32(v, mask);
        return v;
    };
    const float e = ptx::exp_f32(z - tile::warp_max<H>(z));
    float c = e / over_b(e) + eps;
    c = c / (over_a(c) + eps);
    for (u32 i = 1; i < iterations; ++i) {
        c = c / (over_b(c) + eps);
        c = c / (over_a(c) + eps);
    }
    return c;
}

template <HcSpec S>
DG_DEVICE tile::Float4 mixed(const HcParams& p, u32 row, u32 channel, const float (&pre)[S.streams]) {
    tile::Float4 u{};
#pragma unroll
    for (u32 i = 0; i < S.streams; ++i) {
        const tile::Float4 v = tile::load4<S.x>(p.x.data, row * p.x.stride + i * p.x.inner_stride + channel);
        u = {ptx::fma_rn_f32(pre[i], v.x, u.x), ptx::fma_rn_f32(pre[i], v.y, u.y),
             ptx::fma_rn_f32(pre[i], v.z, u.z), ptx::fma_rn_f32(pre[i], v.w, u.w)};
    }
    return u;
}

DG_DEVICE float squares(const tile::Float4& v, float sum) {
    sum = ptx::fma_rn_f32(v.x, v.x, sum);
    sum = ptx::fma_rn_f32(v.y, v.y, sum);
    sum = ptx::fma_rn_f32(v.z, v.z, sum);
    return ptx::fma_rn_f32(v.w, v.w, sum);
}

/// This CTA's share of fn v and of v . v, into `partials` of shared memory.
template <HcSpec S>
DG_DEVICE void share_of_mixes(const HcParams& p, u32 row, u32 begin, u32 end, ptx::SharedAddress smem) {
    constexpr u32 kMixes = mixes_of(S), kWarps = kHcThreads / 32;
    constexpr HcSmem kPlan = plan_smem(S);
    float sums[kMixes + 1] = {};
    for (u32 i = 0; i < S.streams; ++i) {
        for (u32 channel = begin + ptx::thread_index() * 4; channel < end; channel += kHcThreads * 4) {
            const tile::Float4 v =
                tile::load4<S.x>(p.x.data, row * p.x.stride + i * p.x.inner_stride + channel);
            sums[kMixes] = squares(v, sums[kMixes]);
#pragma unroll
            for (u32 m = 0; m < kMixes; ++m) {
                const tile::Float4 f =
                    ptx::ld_global_v4_f32(p.fn + (static_cast<u64>(m) * S.streams + i) * p.d + channel);
                sums[m] = ptx::fma_rn_f32(f.x, v.x, sums[m]);
                sums[m] = ptx::fma_rn_f32(f.y, v.y, sums[m]);
                sums[m] = ptx::fma_rn_f32(f.z, v.z, sums[m]);
                sums[m] = ptx::fma_rn_f32(f.w, v.w, sums[m]);
            }
        }
    }
    const u32 own_warp = ptx::warp_index();
#pragma unroll
    for (u32 m = 0; m <= kMixes; ++m) {
        const float sum = tile::warp_sum(sums[m]);
        if (ptx::lane_index() == 0) ptx::st_shared_f32(smem + kPlan.sums + (m * kWarps + own_warp) * 4, sum);
    }
    ptx::sync_threads();
    const u32 m = ptx::thread_index();
    if (m > kMixes) return;
    float total = 0;
#pragma unroll
    for (u32 warp = 0; warp < kWarps; ++warp)
        total += ptx::ld_shared_f32(smem + kPlan.sums + (m * kWarps + warp) * 4);
    ptx::st_shared_f32(smem + kPlan.partials + m * 4, total);
}

/// The first warp: coefficients of the token; pre goes to shared memory, the rest to global, from rank 0.
template <HcSpec S>
DG_DEVICE void coefficients(const HcParams& p, u32 row, ptx::SharedAddress smem) {
    constexpr u32 H = S.streams;
    constexpr HcSmem kPlan = plan_smem(S);
    const u32 lane = ptx::lane_index();
    const ptx::SharedAddress partials = smem + kPlan.partials;
    const float square = cluster_total(partials + mixes_of(S) * 4);
    const float q = 1.0f / ptx::sqrt_rn_f32(square / static_cast<float>(H * p.d) + p.rms_eps);
    const auto z = [&](u32 m, u32 which) {
        return cluster_total(partials + m * 4) * q * ptx::ld_global_f32(p.scale + which) +
               ptx::ld_global_f32(p.base + m);
    };
    const float pre = sigmoid(z(lane % H, 0)) + p.hc_eps;
    if (lane < H) ptx::st_shared_f32(smem + kPlan.pre + lane * 4, pre);
    if constexpr (!S.head) {
        const float post = 2 * sigmoid(z(H + lane % H, 1));
        const float comb = sinkhorn<H>(z(2 * H + lane % (H * H), 2), p.sinkhorn_iterations, p.hc_eps);
        if (ptx::cluster_rank() != 0) return;
        if (lane < H) ptx::st_global_f32(p.post + row * H + lane, post);
        if (lane < H * H) ptx::st_global_f32(p.comb + row * H * H + lane, comb);
    }
}

}  // namespace hc_detail

template <HcSpec S>
DG_KERNEL(kHcThreads, 2)
hc_mix(DG_GRID_CONSTANT const HcParams p) {
    constexpr HcSmem kPlan = plan_smem(S);
    ptx::grid_dependency_launch();
    ptx::grid_dependency_wait();
    const ptx::SharedAddress smem = ptx::dynamic_smem();
    const u32 row = ptx::block_index() / kHcCluster, rank = ptx::cluster_rank();
    const u32 share = ceil_div(p.d / 4, kHcCluster) * 4;
    const u32 begin = rank * share < p.d ? rank * share : p.d;
    const u32 end = begin + share < p.d ? begin + share : p.d;

    hc_detail::share_of_mixes<S>(p, row, begin, end, smem);
    ptx::cluster_sync();
    if (ptx::warp_index() == 0) hc_detail::coefficients<S>(p, row, smem);
    ptx::sync_threads();

    float pre[S.streams];
#pragma unroll
    for (u32 i = 0; i < S.streams; ++i) pre[i] = ptx::ld_shared_f32(smem + kPlan.pre + i * 4);
    float factor = 1;
    if constexpr (S.weight != Format::none) {
        float squares = 0;
        for (u32 channel = begin + ptx::thread_index() * 4; channel < end; channel += kHcThreads * 4)
            squares = hc_detail::squares(hc_detail::mixed<S>(p, row, channel, pre), squares);
        squares = tile::cta_sum<kHcThreads>(smem + kPlan.sums, squares);
        if (ptx::thread_index() == 0) ptx::st_shared_f32(smem + kPlan.norm, squares);
        ptx::cluster_sync();
        squares = hc_detail::cluster_total(smem + kPlan.norm);
        factor = 1.0f / ptx::sqrt_rn_f32(squares / static_cast<float>(p.d) + p.rms_eps);
    }
    for (u32 channel = begin + ptx::thread_index() * 4; channel < end; channel += kHcThreads * 4) {
        tile::Float4 u = hc_detail::mixed<S>(p, row, channel, pre);
        if constexpr (S.weight != Format::none) {
            const tile::Float4 w = tile::load4<S.weight>(p.weight, channel);
            u = {u.x * factor * w.x, u.y * factor * w.y, u.z * factor * w.z, u.w * factor * w.w};
        }
        tile::store4<S.y>(p.y.data, row * p.y.stride + channel, u);
    }
    ptx::cluster_sync();  // nobody leaves while a peer reads its shared memory
}

template <HcSpec S>
DG_KERNEL(kHcThreads, 8)
hc_post(DG_GRID_CONSTANT const HcPostParams p) {
    constexpr u32 H = S.streams;
    ptx::grid_dependency_launch();
    ptx::grid_dependency_wait();
    const u32 blocks = ceil_div(p.d, kHcThreads * 4), row = ptx::block_index() / blocks;
    const u32 channel = (ptx::block_index() % blocks * kHcThreads + ptx::thread_index()) * 4;
    if (channel >= p.d) return;
    const tile::Float4 y = tile::load4<S.y>(p.y.data, row * p.y.stride + channel);
    tile::Float4 x[H];
#pragma unroll
    for (u32 a = 0; a < H; ++a)
        x[a] = tile::load4<S.x>(p.x.data, row * p.x.stride + a * p.x.inner_stride + channel);
#pragma unroll
    for (u32 b = 0; b < H; ++b) {
        const float post = ptx::ld_global_f32(p.post + row * H + b);
        tile::Float4 sum{post * y.x, post * y.y, post * y.z, post * y.w};
#pragma unroll
        for (u32 a = 0; a < H; ++a) {
            const float c = ptx::ld_global_f32(p.comb + (row * H + a) * H + b);
            sum = {ptx::fma_rn_f32(c, x[a].x, sum.x), ptx::fma_rn_f32(c, x[a].y, sum.y),
                   ptx::fma_rn_f32(c, x[a].z, sum.z), ptx::fma_rn_f32(c, x[a].w, sum.w)};
        }
        tile::store4<S.x>(p.out.data, row * p.out.stride + b * p.out.inner_stride + channel, sum);
    }
}

}  // namespace deep_gemm
