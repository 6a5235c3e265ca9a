// Hyper-connections (spec/hyper_connection.h): hc_mix before a sublayer (a cluster a token, or some), hc_post
// after it. Called by op/hyper_connection.cpp.
#pragma once

#include <deep_gemm/kernel/hc_coefficients.h>
#include <deep_gemm/kernel/hc_input.h>
#include <deep_gemm/kernel/hc_streams.h>
#include <deep_gemm/tile/reduce.h>

namespace deep_gemm {

namespace hc_detail {

/// The threads that have channels; the last warp of a CTA has none.
template <HcSpec S>
DG_DEVICE void sync_workers() {
    ptx::named_barrier_sync(1, S.threads);
}

/// Thread i < count: the sum of the warps' numbers i of `sums`, in order, to `to`.
template <HcSpec S>
DG_DEVICE void add_warps(u32 count, ptx::SharedAddress sums, ptx::SharedAddress to) {
    const u32 i = ptx::thread_index();
    if (i >= count) return;
    float total = 0;
#pragma unroll
    for (u32 warp = 0; warp < S.threads / 32; ++warp)
        total += ptx::ld_shared_f32(sums + (i * kHcMixWarps + warp) * 4);
    ptx::st_shared_f32(to + i * 4, total);
}

/// Streams that have taken an output in go back to memory. Not before the cluster has met: its barriers wait
/// for stores.
template <HcSpec S>
DG_DEVICE void put_back(const HcParams& p, u32 row, u32 token, u32 begin, u32 end, ptx::SharedAddress smem) {
#pragma unroll 1
    for (u32 step = 0; step < S.steps; ++step) {
        const HcPlace<S> at(step, begin, end);
        const tile::Float4 v = ptx::ld_shared_v4_f32(smem + plan_smem(S).streams + kept_at<S>(token, step));
        if (at.inside) tile::store4<S.x>(p.x.data, stream_index(p, row, at, at.stream), v);
    }
}

/// The streams' weighted sum, into `mixed` of shared memory; returns this thread's share of its squares.
template <HcSpec S>
DG_DEVICE float mix_streams(u32 token, u32 begin, u32 end, ptx::SharedAddress smem) {
    const float pre = ptx::ld_shared_f32(smem + plan_smem(S).pre +
                                         (token * S.streams + ptx::thread_index() % S.streams) * 4);
    float sum = 0;
#pragma unroll 1
    for (u32 step = 0; step < S.steps; ++step) {
        const HcPlace<S> at(step, begin, end);
        const tile::Float4 v = ptx::ld_shared_v4_f32(smem + plan_smem(S).streams + kept_at<S>(token, step));
        tile::Float4 u{pre * v.x, pre * v.y, pre * v.z, pre * v.w};
#pragma unroll
        for (u32 mask = 1; mask < S.streams; mask *= 2)
            u = {u.x + ptx::shfl_bfly_f32(u.x, mask), u.y + ptx::shfl_bfly_f32(u.y, mask),
                 u.z + ptx::shfl_bfly_f32(u.z, mask), u.w + ptx::shfl_bfly_f32(u.w, mask)};
        if (at.stream != 0 || !at.inside) continue;
        sum = squares(u, sum);
        ptx::st_shared_v4_f32(smem + mixed_at<S>(token, at.channel - begin), u.x, u.y, u.z, u.w);
    }
    return sum;
}

/// Tokens that the threads store at a time.
constexpr u32 stored_at_once(const HcSpec& s) {
    return s.tokens > 1 && !hc_row_amax(s) ? s.streams : 1;
}

/// The inputs of a round: a warp finds a token's factor, because reading peers' shared memory is slow; then
/// as many tokens are stored at a time as have threads for their channels.
template <HcSpec S>
DG_DEVICE void store_inputs(const HcParams& p, u32 first, u32 tokens, const tile::Float4& weight, u32 begin,
                            u32 end, ptx::SharedAddress smem) {
    constexpr u32 kAtOnce = stored_at_once(S), kThreads = S.threads / kAtOnce;
    const ptx::SharedAddress factors = smem + plan_smem(S).pre;  // nobody needs those any more
    const u32 warp = ptx::warp_index();
    if (warp < tokens) {
        const float factor = norm_factor<S>(p, warp, smem);
        if (ptx::lane_index() == 0) ptx::st_shared_f32(factors + warp * 4, factor);
    }
    sync_workers<S>();
#pragma unroll 1
    for (u32 t = ptx::thread_index() / kThreads; t < tokens; t += kAtOnce)
        store_input<S>(p, first + t, t, ptx::ld_shared_f32(factors + t * 4), weight,
                       ptx::thread_index() % kThreads, kThreads, begin, end, smem);
}

}  // namespace hc_detail

template <HcSpec S>
DG_KERNEL(hc_cta_of(S), 1)
hc_mix(DG_GRID_CONSTANT const HcParams p) {
    using namespace hc_detail;
    constexpr HcSmem kPlan = plan_smem(S);
    ptx::grid_dependency_launch();
    const ptx::SharedAddress smem = ptx::dynamic_smem();
    const u32 cluster = ptx::block_index() / kHcCluster, rank = ptx::cluster_rank(), warp = ptx::warp_index();
    const u32 stride = p.clusters * S.tokens;  // rows between those of a cluster
    const auto tokens_from = [&](u32 first) { return first + S.tokens < p.rows ? S.tokens : p.rows - first; };
    // Three times a round the cluster meets: shares of the mixes are there; those of the norm are; both have
    // been read (and once between, where the largest of a row is looked for). The last warp finds what the
    // next sublayer needs, while the others find this one's input.
    if (warp == S.threads / 32) {
        ptx::grid_dependency_wait();
        for (u32 first = cluster * S.tokens; first < p.rows; first += stride) {
            ptx::cluster_sync();
            ptx::cluster_arrive();
            if constexpr (!S.head)
                if (rank < tokens_from(first)) find_post<S>(p, first + rank, rank, smem);
            ptx::cluster_wait();
            if constexpr (hc_row_amax(S)) ptx::cluster_sync();
            ptx::cluster_arrive();
            ptx::cluster_wait();
        }
        return;
    }
    const u32 share = hc_share_of(p.d);
    const u32 begin = rank * share < p.d ? rank * share : p.d;
    const u32 end = begin + share < p.d ? begin + share : p.d;
    const EarlyMixes<S> early(p, begin, end, smem);
    ptx::grid_dependency_wait();
    const auto find_weight = [&] {
        constexpr u32 kThreads = S.threads / stored_at_once(S);
        return first_weight<S>(p, begin + ptx::thread_index() % kThreads * 4, end);
    };
    // Asked for while the streams are on their way where registers have room.
    constexpr bool kAsksEarly = S.steps == 1 && S.add != Format::none;
    PreTerms<S> terms;
    tile::Float4 weight{};
    if constexpr (kAsksEarly) terms.fetch(p), weight = find_weight();
    ptx::cp_async_wait<0>();

#pragma unroll 1
    for (u32 first = cluster * S.tokens; first < p.rows; first += stride) {
        const u32 tokens = tokens_from(first);
#pragma unroll 1
        for (u32 t = 0; t < tokens; ++t) share_of_mixes<S>(early, p, first + t, t, begin, end, smem);
        sync_workers<S>();
        if (first >= stride) ptx::cluster_wait();
        add_warps<S>(tokens * (mixes_of(S) + 1), smem + kPlan.sums, smem + kPlan.partials);
        if constexpr (!kAsksEarly) terms.fetch(p);
        ptx::cluster_sync();
        if (warp < tokens) find_pre<S>(p, terms, warp, smem);
        sync_workers<S>();
#pragma unroll 1
        for (u32 t = 0; t < tokens; ++t) {
            const float squares = tile::warp_sum(mix_streams<S>(t, begin, end, smem));
            if (ptx::lane_index() == 0)
                ptx::st_shared_f32(smem + kPlan.sums + (t * kHcMixWarps + warp) * 4, squares);
        }
        sync_workers<S>();
        add_warps<S>(tokens, smem + kPlan.sums, smem + kPlan.norm);
        if constexpr (!kAsksEarly) weight = find_weight();
        ptx::cluster_sync();
        if constexpr (!hc_row_amax(S)) {
            store_inputs<S>(p, first, tokens, weight, begin, end, smem);
        } else {
#pragma unroll 1
            for (u32 t = 0; t < tokens; ++t) {
                const float factor = norm_factor<S>(p, t, smem);
                const float largest = tile::warp_max(store_input<S>(
                    p, first + t, t, factor, weight, ptx::thread_index(), S.threads, begin, end, smem));
                if (ptx::lane_index() == 0)
                    ptx::st_shared_f32(smem + kPlan.sums + (t * kHcMixWarps + warp) * 4, largest);
            }
            sync_workers<S>();
            keep_amax<S>(tokens, smem);
            ptx::cluster_sync();
#pragma unroll 1
            for (u32 t = 0; t < tokens; ++t) store_nvfp4<S>(p, first + t, t, begin, end, smem);
        }
        if constexpr (S.add != Format::none)
#pragma unroll 1
            for (u32 t = 0; t < tokens; ++t) put_back<S>(p, first + t, t, begin, end, smem);
        ptx::cluster_arrive();
    }
    ptx::cluster_wait();  // the shared memory stays until peers have read it
}

template <HcPostSpec S>
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
