// Hyper-connections (spec/hyper_connection.h): hc_mix before a sublayer (a cluster a token), hc_post after
// it. Called by op/hyper_connection.cpp.
#pragma once

#include <deep_gemm/spec/hyper_connection.h>
#include <deep_gemm/tile/fp8_copy.h>
#include <deep_gemm/tile/real.h>
#include <deep_gemm/tile/reduce.h>
#include <deep_gemm/ptx/convert.h>
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

/// c[a][b] from z[a][b], all in one thread: rows are far shorter than a shuffle takes.
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
#pragma unroll
    for (u32 a = 0; a < H; ++a) {
        float largest = c[a][0];
#pragma unroll
        for (u32 b = 1; b < H; ++b) largest = ptx::max_nan_f32(largest, c[a][b]);
#pragma unroll
        for (u32 b = 0; b < H; ++b) c[a][b] = ptx::exp_f32(c[a][b] - largest);
    }
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

/// Sums of 2 Count values over a warp: lane i gets that of value i, for a quarter of the shuffles of 32 sums.
template <u32 Count>
DG_DEVICE float transposed_sums(float (&values)[32]) {
    if constexpr (Count == 0) {
        return values[0];
    } else {
        const bool upper = (ptx::lane_index() & Count) != 0;
#pragma unroll
        for (u32 i = 0; i < Count; ++i) {
            const float kept = upper ? values[i + Count] : values[i],
                        given = upper ? values[i] : values[i + Count];
            values[i] = ptx::add_rn_f32(kept, ptx::shfl_bfly_f32(given, Count));
        }
        return transposed_sums<Count / 2>(values);
    }
}

DG_DEVICE float squares(const tile::Float4& v, float sum) {
    sum = ptx::fma_rn_f32(v.x, v.x, sum);
    sum = ptx::fma_rn_f32(v.y, v.y, sum);
    sum = ptx::fma_rn_f32(v.z, v.z, sum);
    return ptx::fma_rn_f32(v.w, v.w, sum);
}

/// Where a thread is in a step: four channels of a stream.
template <HcSpec S>
struct HcPlace {
    u32 stream, channel;
    bool inside;

    DG_DEVICE HcPlace(u32 step, u32 begin, u32 end)
        : stream(ptx::thread_index() % S.streams),
          channel(begin + (step * S.threads + ptx::thread_index()) / S.streams * 4),
          inside(channel < end) {}
};

/// Four channels of a stream, with the output of the sublayer before taken in (and stored) where there is
/// one. Whole warps call.
template <HcSpec S>
DG_DEVICE tile::Float4 load_stream(const HcParams& p, u32 row, const HcPlace<S>& at) {
    constexpr u32 H = S.streams;
    const auto index = [&](u32 stream) { return row * p.x.stride + stream * p.x.inner_stride + at.channel; };
    tile::Float4 v{};
    if constexpr (S.add == Format::none) {
        if (at.inside) v = tile::load4<S.x>(p.x.data, index(at.stream));
    } else {
        if (at.inside) {
            const tile::Float4 y = tile::load4<S.add>(p.add.data, row * p.add.stride + at.channel);
            const float post = ptx::ld_global_f32(p.post + row * H + at.stream);
            v = {post * y.x, post * y.y, post * y.z, post * y.w};
#pragma unroll
            for (u32 a = 0; a < H; ++a) {
                const tile::Float4 x = tile::load4<S.x>(p.x.data, index(a));
                const float c = ptx::ld_global_f32(p.comb + (row * H + a) * H + at.stream);
                v = {ptx::fma_rn_f32(c, x.x, v.x), ptx::fma_rn_f32(c, x.y, v.y), ptx::fma_rn_f32(c, x.z, v.z),
                     ptx::fma_rn_f32(c, x.w, v.w)};
            }
            if constexpr (S.x == Format::bf16) v = tile::through_bf16(v);
        }
        ptx::sync_warp();  // the lanes of these channels have read all streams
        if (at.inside) tile::store4<S.x>(p.x.data, index(at.stream), v);
    }
    return v;
}

/// Where a thread's four channels of a step are kept.
template <HcSpec S>
DG_DEVICE u32 kept_at(u32 step) {
    return (step * S.threads + ptx::thread_index()) * 16;
}

/// What a thread multiplies in its only step of the first mixes, on the way before the preceding kernel has
/// finished: nobody writes fn.
template <HcSpec S>
struct EarlyMixes {
    static constexpr u32 kCount = S.steps > 1 ? 0 : mixes_of(S) < 12 ? mixes_of(S) : 12;
    tile::Float4 f[kCount ? kCount : 1];

    DG_DEVICE EarlyMixes(const HcParams& p, u32 begin, u32 end) {
        const HcPlace<S> at(0, begin, end);
        if (!at.inside) return;
#pragma unroll
        for (u32 m = 0; m < kCount; ++m) f[m] = mix_at(p, at, m);
    }
    static DG_DEVICE tile::Float4 mix_at(const HcParams& p, const HcPlace<S>& at, u32 m) {
        return ptx::ld_global_v4_f32(p.fn + (static_cast<u64>(m) * S.streams + at.stream) * p.d + at.channel);
    }
    [[nodiscard]] DG_DEVICE tile::Float4 get(const HcParams& p, const HcPlace<S>& at, u32 m) const {
        return m < kCount ? f[m < kCount ? m : 0] : mix_at(p, at, m);
    }
};

/// This CTA's share of fn v and of v . v, into `partials` of shared memory; v goes to `streams`.
template <HcSpec S>
DG_DEVICE void share_of_mixes(const EarlyMixes<S>& early, const HcParams& p, u32 row, u32 begin, u32 end,
                              ptx::SharedAddress smem) {
    constexpr u32 kMixes = mixes_of(S);
    constexpr HcSmem kPlan = plan_smem(S);
    float sums[32] = {};
    static_assert(kMixes < 32);
#pragma unroll 1
    for (u32 step = 0; step < S.steps; ++step) {
        const HcPlace<S> at(step, begin, end);
        const tile::Float4 v = load_stream<S>(p, row, at);
        ptx::st_shared_v4_f32(smem + kPlan.streams + kept_at<S>(step), v.x, v.y, v.z, v.w);
        if (!at.inside) continue;
        sums[kMixes] = squares(v, sums[kMixes]);
#pragma unroll
        for (u32 m = 0; m < kMixes; ++m) {
            const tile::Float4 f = early.get(p, at, m);
            sums[m] = ptx::fma_rn_f32(f.x, v.x, sums[m]);
            sums[m] = ptx::fma_rn_f32(f.y, v.y, sums[m]);
            sums[m] = ptx::fma_rn_f32(f.z, v.z, sums[m]);
            sums[m] = ptx::fma_rn_f32(f.w, v.w, sums[m]);
        }
    }
    const float sum = transposed_sums<16>(sums);
    const u32 own_warp = ptx::warp_index();
    if (ptx::lane_index() <= kMixes)
        ptx::st_shared_f32(smem + kPlan.sums + (ptx::lane_index() * kHcMixWarps + own_warp) * 4, sum);
    ptx::sync_threads();
    const u32 m = ptx::thread_index();
    if (m > kMixes) return;
    float total = 0;
#pragma unroll
    for (u32 warp = 0; warp < S.threads / 32; ++warp)
        total += ptx::ld_shared_f32(smem + kPlan.sums + (m * kHcMixWarps + warp) * 4);
    ptx::st_shared_f32(smem + kPlan.partials + m * 4, total);
}

/// What is multiplied with fn, scaled: z of mix m, by the scale `which`.
template <HcSpec S>
struct Mixes {
    const HcParams& p;
    ptx::SharedAddress partials;
    float q;

    DG_DEVICE Mixes(const HcParams& params, ptx::SharedAddress smem)
        : p(params), partials(smem + plan_smem(S).partials) {
        const float square = cluster_total(partials + mixes_of(S) * 4);
        q = 1.0f / ptx::sqrt_rn_f32(square / static_cast<float>(S.streams * p.d) + p.rms_eps);
    }
    [[nodiscard]] DG_DEVICE float z(u32 m, u32 which) const {
        return cluster_total(partials + m * 4) * q * ptx::ld_global_f32(p.scale + which) +
               ptx::ld_global_f32(p.base + m);
    }
};

/// A warp: pre, into shared memory.
template <HcSpec S>
DG_DEVICE void find_pre(const HcParams& p, ptx::SharedAddress smem) {
    const u32 lane = ptx::lane_index();
    const float pre = sigmoid(Mixes<S>(p, smem).z(lane % S.streams, 0)) + p.hc_eps;
    if (lane < S.streams) ptx::st_shared_f32(smem + plan_smem(S).pre + lane * 4, pre);
}
/// A warp: what the sublayer's output will be put back with.
template <HcSpec S>
DG_DEVICE void find_post(const HcParams& p, u32 row, ptx::SharedAddress smem) {
    constexpr u32 H = S.streams;
    const u32 lane = ptx::lane_index();
    const Mixes<S> mixes(p, smem);
    const float post = 2 * sigmoid(mixes.z(H + lane % H, 1));
    const float z = mixes.z(2 * H + lane % (H * H), 2);
    float comb[H][H];
#pragma unroll
    for (u32 i = 0; i < H * H; ++i)
        comb[i / H][i % H] = codec::float_of_bits(ptx::shfl_idx(codec::bits_of_float(z), i));
    sinkhorn<H>(comb, p.sinkhorn_iterations, p.hc_eps);
    if (lane < H) ptx::st_global_f32(p.post + row * H + lane, post);
    if (lane != 0) return;
#pragma unroll
    for (u32 i = 0; i < H * H; ++i) ptx::st_global_f32(p.comb + row * H * H + i, comb[i / H][i % H]);
}

/// The streams' weighted sum, into `mixed` of shared memory; returns this thread's share of its squares.
template <HcSpec S>
DG_DEVICE float mix_streams(float pre, u32 begin, u32 end, ptx::SharedAddress smem) {
    float sum = 0;
#pragma unroll 1
    for (u32 step = 0; step < S.steps; ++step) {
        const HcPlace<S> at(step, begin, end);
        const tile::Float4 v = ptx::ld_shared_v4_f32(smem + plan_smem(S).streams + kept_at<S>(step));
        tile::Float4 u{pre * v.x, pre * v.y, pre * v.z, pre * v.w};
#pragma unroll
        for (u32 mask = 1; mask < S.streams; mask *= 2)
            u = {u.x + ptx::shfl_bfly_f32(u.x, mask), u.y + ptx::shfl_bfly_f32(u.y, mask),
                 u.z + ptx::shfl_bfly_f32(u.z, mask), u.w + ptx::shfl_bfly_f32(u.w, mask)};
        if (at.stream != 0 || !at.inside) continue;
        sum = squares(u, sum);
        ptx::st_shared_v4_f32(smem + plan_smem(S).mixed + (at.channel - begin) * 4, u.x, u.y, u.z, u.w);
    }
    return sum;
}

}  // namespace hc_detail

template <HcSpec S>
DG_KERNEL(S.threads, 1)
hc_mix(DG_GRID_CONSTANT const HcParams p) {
    constexpr HcSmem kPlan = plan_smem(S);
    ptx::grid_dependency_launch();
    const ptx::SharedAddress smem = ptx::dynamic_smem();
    const u32 row = ptx::block_index() / kHcCluster, rank = ptx::cluster_rank();
    const u32 share = hc_share_of(p.d);
    const u32 begin = rank * share < p.d ? rank * share : p.d;
    const u32 end = begin + share < p.d ? begin + share : p.d;
    const hc_detail::EarlyMixes<S> early(p, begin, end);
    ptx::grid_dependency_wait();

    hc_detail::share_of_mixes<S>(early, p, row, begin, end, smem);
    ptx::cluster_sync();
    if (ptx::warp_index() == 0) hc_detail::find_pre<S>(p, smem);
    if constexpr (!S.head)
        if (rank == 0 && ptx::warp_index() == 1) hc_detail::find_post<S>(p, row, smem);
    ptx::sync_threads();
    const float pre = ptx::ld_shared_f32(smem + kPlan.pre + ptx::thread_index() % S.streams * 4);
    float factor = 1, squares = hc_detail::mix_streams<S>(pre, begin, end, smem);
    if constexpr (S.weight != Format::none) {
        squares = tile::cta_sum<S.threads>(smem + kPlan.sums, squares);
        if (ptx::thread_index() == 0) ptx::st_shared_f32(smem + kPlan.norm, squares);
        ptx::cluster_sync();
        squares = hc_detail::cluster_total(smem + kPlan.norm);
        factor = 1.0f / ptx::sqrt_rn_f32(squares / static_cast<float>(p.d) + p.rms_eps);
    } else {
        ptx::sync_threads();
    }
    for (u32 channel = begin + ptx::thread_index() * 4; channel < end; channel += S.threads * 4) {
        tile::Float4 u = ptx::ld_shared_v4_f32(smem + kPlan.mixed + (channel - begin) * 4);
        if constexpr (S.weight != Format::none) {
            const tile::Float4 w = tile::load4<S.weight>(p.weight, channel);
            u = {u.x * factor * w.x, u.y * factor * w.y, u.z * factor * w.z, u.w * factor * w.w};
        }
        tile::store4<S.y>(p.y.data, row * p.y.stride + channel, u);
        if constexpr (S.fp8)  // a share is a multiple of 128: whole warps are here
            tile::store_fp8_copy(p.codes + static_cast<u64>(row) * p.d,
                                 p.scales + static_cast<u64>(row) * (p.d / 128), channel, u);
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
