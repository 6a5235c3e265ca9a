// Hyper-connections: from what fn makes of the streams to the coefficients that mix them
// (spec/hyper_connection.h).
#pragma once

#include <deep_gemm/spec/hyper_connection.h>
#include <deep_gemm/tile/real.h>
#include <deep_gemm/ptx/convert.h>
#include <deep_gemm/ptx/math.h>
#include <deep_gemm/ptx/narrow.h>
#include <deep_gemm/ptx/shared_words.h>

namespace deep_gemm::hc_detail {

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

/// c[a][b] from e^(z[a][b] - the largest of row a), all in one thread: rows are far shorter than a shuffle takes.
template <u32 H>
DG_DEVICE void sinkhorn(float (&c)[H][H], u32 iterations, float eps) {
    const auto over_b = [&](float extra) {
#pragma unroll
        for (u32 a = 0; a < H; ++a) {
            float sum = c[a][0];
#pragma unroll
            for (u32 b = 1; b < H; ++b) sum = sum + c[a][b];
            const float factor = ptx::rcp_approx(sum + extra);
#pragma unroll
            for (u32 b = 0; b < H; ++b) c[a][b] = c[a][b] * factor;
        }
    };
    const auto over_a = [&] {
#pragma unroll
        for (u32 b = 0; b < H; ++b) {
            float sum = c[0][b];
#pragma unroll
            for (u32 a = 1; a < H; ++a) sum = sum + c[a][b];
            const float factor = ptx::rcp_approx(sum + eps);
#pragma unroll
            for (u32 a = 0; a < H; ++a) c[a][b] = c[a][b] * factor;
        }
    };
    over_b(0.0f);
#pragma unroll
    for (u32 a = 0; a < H; ++a)
#pragma unroll
        for (u32 b = 0; b < H; ++b) c[a][b] = c[a][b] + eps;
    over_a();
    for (u32 i = 1; i < iterations; ++i) {
        over_b(eps);
        over_a();
    }
}

/// A warp whose lane m has z of mix m: what the sublayer's output will be put back with.
template <u32 H>
DG_DEVICE void store_post(const HcParams& p, u32 row, float z) {
    const u32 lane = ptx::lane_index();
    const float post = 2 * sigmoid(z);
    float largest = z;  // of the lane's row of comb, whose lanes are neighbours
#pragma unroll
    for (u32 mask = 1; mask < H; mask *= 2)
        largest = ptx::max_nan_f32(largest, ptx::shfl_bfly_f32(largest, mask));
    const float e = ptx::exp_f32(z - largest);
    float comb[H][H];
#pragma unroll
    for (u32 i = 0; i < H * H; ++i) comb[i / H][i % H] = ptx::shfl_idx_f32(e, 2 * H + i);
    sinkhorn<H>(comb, p.sinkhorn_iterations, p.hc_eps);
    if (lane >= H && lane < 2 * H) ptx::st_global_f32(p.post + row * H + lane - H, post);
    if (lane != 0) return;
#pragma unroll
    for (u32 i = 0; i < H * H; ++i) ptx::st_global_f32(p.comb + row * H * H + i, comb[i / H][i % H]);
}

/// What is multiplied with fn, scaled, of a token of the cluster: z of mix m, by the scale `which`.
template <HcSpec S>
struct Mixes {
    const HcParams& p;
    ptx::SharedAddress partials;
    float q;

    DG_DEVICE Mixes(const HcParams& params, u32 token, ptx::SharedAddress smem)
        : p(params), partials(smem + plan_smem(S).partials + token * (mixes_of(S) + 1) * 4) {
        const float square = cluster_total(partials + mixes_of(S) * 4);
        q = 1.0f / ptx::sqrt_rn_f32(square / static_cast<float>(S.streams * p.d) + p.rms_eps);
    }
    [[nodiscard]] DG_DEVICE float z(u32 m, float scale, float base) const {
        return cluster_total(partials + m * 4) * q * scale + base;
    }
    [[nodiscard]] DG_DEVICE float z(u32 m, u32 which) const {
        return z(m, ptx::ld_global_f32(p.scale + which), ptx::ld_global_f32(p.base + m));
    }
};

/// What a lane needs of memory for pre.
template <HcSpec S>
struct PreTerms {
    float scale = 0, base = 0;

    DG_DEVICE void fetch(const HcParams& p) {
        scale = ptx::ld_global_f32(p.scale);
        base = ptx::ld_global_f32(p.base + ptx::lane_index() % S.streams);
    }
};

/// A warp: pre of a token, into shared memory.
template <HcSpec S>
DG_DEVICE void find_pre(const HcParams& p, const PreTerms<S>& terms, u32 token, ptx::SharedAddress smem) {
    const u32 lane = ptx::lane_index();
    const float z = Mixes<S>(p, token, smem).z(lane % S.streams, terms.scale, terms.base);
    const float pre = sigmoid(z) + p.hc_eps;
    if (lane < S.streams) ptx::st_shared_f32(smem + plan_smem(S).pre + (token * S.streams + lane) * 4, pre);
}
/// A warp: what the sublayer's output will be put back with.
template <HcSpec S>
DG_DEVICE void find_post(const HcParams& p, u32 row, u32 token, ptx::SharedAddress smem) {
    constexpr u32 H = S.streams;
    const u32 mix = ptx::lane_index() < mixes_of(S) ? ptx::lane_index() : 0;
    const float z = Mixes<S>(p, token, smem).z(mix, mix < H ? 0 : mix < 2 * H ? 1 : 2);
    store_post<H>(p, row, z);
}

}  // namespace deep_gemm::hc_detail
