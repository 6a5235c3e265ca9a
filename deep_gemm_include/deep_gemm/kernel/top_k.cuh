// Exact top-k of a row of scores (spec/top_k.h), a cluster a token: a radix select over the scores' order,
// with histograms that meet through distributed shared memory, and one pass that collects in order of
// indices.
//
// Counting every score in every pass would be bound by atomics, most of them on a few bins. So the k-th
// largest of the lanes' maxima is found first, roughly: at least k scores reach it, and few more do. Only
// those are looked at afterwards. The CTAs of a cluster do so each for its own scores, and then the first one
// fetches what is left, where that fits: passes over it need no peer. Called by op/top_k.cpp.
#pragma once

#include <deep_gemm/kernel/top_k_scores.h>
#include <deep_gemm/kernel/top_k_select.h>
#include <deep_gemm/tile/visible_rows.h>

namespace deep_gemm {
namespace top_k_detail {

/// What at least k lanes' largest reach, where so many have one, and few more do.
template <TopKSpec S>
DG_DEVICE u32 bound_of(RadixSelect<S>& select, u32 largest, bool present, u32 k, ptx::SharedAddress smem) {
    constexpr u32 kDigits = 1;  // the rest of the bits would rule out hardly any more
    const auto count_all = [&](auto&& count_one) {
        if (present) count_one(largest);
    };
    const Span span = span_of<S>(present ? largest : ~0u, present ? largest : 0, smem);
    return select.run(k, kDigits, span, count_all).order;
}

/// A score that at least k reach, found among the largest of each lane; 0 where there are not enough of them.
template <TopKSpec S>
DG_DEVICE u32 lower_bound(RadixSelect<S>& select, u32 largest, bool present, u32 k, u32 count, u32 per_warp,
                          ptx::SharedAddress smem) {
    const u32 full_warps = count / per_warp;  // every lane of them has a score
    if (full_warps * 32 < k || per_warp < 4 * 32) return 0;
    return bound_of(select, largest, present, k, smem);
}

/// The scores of a CTA: neighbours, and so are those of a warp.
struct Share {
    u32 begin, end, per_warp;

    DG_DEVICE Share(u32 count, u32 ctas, u32 rank, u32 warps = kTopKWarps) {
        const u32 per_cta = ceil_div(count, ctas);
        begin = rank * per_cta < count ? rank * per_cta : count;
        end = begin + per_cta < count ? begin + per_cta : count;
        per_warp = align_up(ceil_div(per_cta, warps), 32u);
    }
    [[nodiscard]] DG_DEVICE u32 begin_of(u32 warp) const {
        return begin + warp * per_warp < end ? begin + warp * per_warp : end;
    }
};

/// The k picks among scores of which those above a bound are kept.
template <TopKSpec S>
DG_DEVICE void choose(u32 k, i32* picks, ptx::SharedAddress smem, const Scores<S>& scores,
                      RadixSelect<S>& select) {
    constexpr TopKSmem kPlan = plan_smem(S);
    const u32 rank = top_k_detail::rank<S>(), lane = ptx::lane_index(), warp = ptx::warp_index();
    Span span;
    if constexpr (S.cluster == 1) {
        u32 smallest = ~0u, largest = 0;
        scores.template each<false>([&](u32 order, bool present, u32) {
            if (present && order < smallest) smallest = order;
            if (present && order > largest) largest = order;
        });
        span = span_of<S>(smallest, largest, smem);
    }
    const auto threshold = select.run(k, ceil_div(32u, kTopKDigit), span, [&](auto&& count_one) {
        scores.template each<false>([&](u32 order, bool present, u32) {
            if (present) count_one(order);
        });
    });

    // In order of indices: all above the threshold, and the first `wanted` of those equal to it.
    u32 larger = 0, equal = 0;
    scores.template each<false>([&](u32 order, bool present, u32) {
        larger += ptx::popc(ptx::ballot(present && order > threshold.order));
        equal += ptx::popc(ptx::ballot(present && order == threshold.order));
    });
    if (lane == 0) {
        ptx::st_shared_u32(smem + kPlan.counts + warp * 8, larger);
        ptx::st_shared_u32(smem + kPlan.counts + warp * 8 + 4, equal);
    }
    sync_cluster<S>();
    u32 larger_before = 0, equal_before = 0;
#pragma unroll
    for (u32 from = 0; from < S.cluster; ++from) {
        const ptx::UInt2 pair = load_pair<S>(smem + kPlan.counts + lane % S.warps * 8, from);
        const bool earlier = from < rank || (from == rank && lane < warp);
        larger_before += earlier ? pair.x : 0;
        equal_before += earlier ? pair.y : 0;
    }
    if constexpr (S.cluster > 1) ptx::cluster_arrive();  // nobody leaves while a peer reads
#pragma unroll
    for (u32 mask = 16; mask > 0; mask /= 2) {
        larger_before += ptx::shfl_bfly_u32(larger_before, mask);
        equal_before += ptx::shfl_bfly_u32(equal_before, mask);
    }
    const u32 lower = (1u << lane) - 1, wanted = threshold.wanted;
    scores.template each<true>([&](u32 order, bool present, u32 index) {
        const bool is_larger = present && order > threshold.order,
                   is_equal = present && order == threshold.order;
        const u32 larger_mask = ptx::ballot(is_larger), equal_mask = ptx::ballot(is_equal);
        const u32 l = larger_before + ptx::popc(larger_mask & lower),
                  e = equal_before + ptx::popc(equal_mask & lower);
        if (is_larger || (is_equal && e < wanted))
            ptx::st_global_s32(picks + l + (e < wanted ? e : wanted), static_cast<i32>(index));
        larger_before += ptx::popc(larger_mask);
        equal_before += ptx::popc(equal_mask);
    });
    if constexpr (S.cluster > 1) ptx::cluster_wait();
}

/// Source warps of the cluster, in order, whose scores a warp of the first CTA gets.
template <TopKSpec S>
constexpr u32 kSources = S.cluster;

/// How many scores source `lane` of this warp has kept (lanes below kSources), where all warps have room for
/// those of all their sources; every CTA finds the same. Whole CTAs call.
template <TopKSpec S>
DG_DEVICE bool fits(u32& kept, const Scores<S>& scores, ptx::SharedAddress smem) {
    constexpr TopKSmem kPlan = plan_smem(S);
    const u32 lane = ptx::lane_index(), warp = ptx::warp_index();
    if (lane == 0) ptx::st_shared_u32(smem + kPlan.counts + warp * 8, scores.kept());
    ptx::cluster_sync();
    const u32 source = warp * kSources<S> + lane;
    kept = 0;
    if (lane < kSources<S>)
        kept = ptx::ld_cluster_u32(
            ptx::map_to_rank(smem + kPlan.counts + source % kTopKWarps * 8, source / kTopKWarps));
    u32 all = kept;
#pragma unroll
    for (u32 mask = 16; mask > 0; mask /= 2) all += ptx::shfl_bfly_u32(all, mask);
    if (lane == 0) ptx::st_shared_u32(smem + kPlan.through + warp * 4, all);
    ptx::sync_threads();
    const bool room = ptx::ld_shared_u32(smem + kPlan.through + lane * 4) <= Scores<S>::kHalf;
    return ptx::ballot(room) == ptx::kFullWarp;
}

/// What this warp's sources have kept, in order of indices.
template <TopKSpec S, TopKSpec Alone>
DG_DEVICE Scores<Alone> gather(u32 kept, u32 count, ptx::SharedAddress smem) {
    constexpr TopKSmem kPlan = plan_smem(S);
    const u32 lane = ptx::lane_index(), first = ptx::warp_index() * kSources<S>;
    const Share share(count, S.cluster, first / kTopKWarps);
    u32 all = kept;
#pragma unroll
    for (u32 mask = 16; mask > 0; mask /= 2) all += ptx::shfl_bfly_u32(all, mask);
    const Scores<Alone> gathered(smem, share.begin_of(first % kTopKWarps), all);
    u32 at = 0;
#pragma unroll 1
    for (u32 j = 0; j < kSources<S>; ++j) {
        const u32 source = first + j, size = ptx::shfl_idx(kept, j), slot = source % kTopKWarps;
        const ptx::SharedAddress orders = ptx::map_to_rank(smem + kPlan.orders + slot * Scores<S>::kHeld * 4,
                                                           source / kTopKWarps),
                                 places = ptx::map_to_rank(smem + kPlan.places + slot * Scores<S>::kHeld * 2,
                                                           source / kTopKWarps);
#pragma unroll 1
        for (u32 i = lane; i < size; i += 32)
            gathered.put(at + i, ptx::ld_cluster_u32(orders + i * 4),
                         j * share.per_warp + ptx::ld_cluster_u16(places + i * 2));
        at += size;
    }
    ptx::sync_warp();
    return gathered;
}

/// The scores that may be chosen, by way of the peaks: where each lane has some and all warps have room. As
/// many lanes as scores are chosen have a peak that reaches the bound. Whole CTAs call.
template <TopKSpec S>
DG_DEVICE bool collect(Scores<S>& scores, RadixSelect<S>& select, const TopKParams& p, const u32* peaks,
                       const Share& share, ptx::SharedAddress smem) {
    constexpr TopKSmem kPlan = plan_smem(S);
    const u32 of_warp = share.per_warp / kScoresOfPeak, full_warps = share.end / share.per_warp;
    if (of_warp < 32 || of_warp > Scores<S>::kHalf || full_warps * 32 < p.k) return false;
    const u32 lane = ptx::lane_index(), warp = ptx::warp_index(), largest = scores.load_peaks(peaks);
    const bool room = scores.collect(bound_of(select, largest, lane < scores.peaks(), p.k, smem));
    if (lane == 0) ptx::st_shared_u32(smem + kPlan.counts + warp * 8, room);
    ptx::sync_threads();
    const bool all = ptx::ballot(ptx::ld_shared_u32(smem + kPlan.counts + lane * 8) != 0) == ptx::kFullWarp;
    ptx::sync_threads();
    return all;
}

}  // namespace top_k_detail

template <TopKSpec S>
DG_KERNEL(kTopKThreads, S.cluster > 1 && S.held <= 8192 ? 2 : 1)
top_k(DG_GRID_CONSTANT const TopKParams p) {
    using namespace top_k_detail;
    constexpr TopKSpec kAlone{.cluster = 1, .held = S.held};
    ptx::grid_dependency_launch();
    ptx::grid_dependency_wait();
    const u32 token = ptx::block_index() / S.cluster, rank = top_k_detail::rank<S>();
    const u32 warp = ptx::warp_index();
    const u32 count = tile::visible_rows(ptx::ld_global_s32(p.positions + token), p.ratio, p.columns);
    i32* picks = p.picks + static_cast<u64>(token) * p.k;
    if (count <= p.k) {
        for (u32 i = rank * kTopKThreads + ptx::thread_index(); i < p.k; i += S.cluster * kTopKThreads)
            ptx::st_global_s32(picks + i, i < count ? static_cast<i32>(i) : -1);
        return;
    }
    const ptx::SharedAddress smem = ptx::dynamic_smem();
    const Share share(count, S.cluster, rank);
    using Own = Scores<S.cluster == 1 ? kAlone : S>;
    Own scores(smem, p.scores + token * p.scores_stride, share.begin_of(warp), share.begin_of(warp + 1));
    RadixSelect<kAlone> alone(smem);
    if constexpr (S.peaks) {
        static_assert(S.cluster == 1);
        Scores<kAlone> candidates = scores;
        if (collect(candidates, alone, p, p.peaks + token * p.peaks_stride, share, smem))
            return choose<kAlone>(p.k, picks, smem, candidates, alone);
    }
    const u32 largest = scores.load();
    scores.keep(lower_bound<kAlone>(alone, largest, scores.any_of_lane(), p.k, share.end - share.begin,
                                    share.per_warp, smem));
    if constexpr (S.cluster == 1) {
        choose<kAlone>(p.k, picks, smem, scores, alone);
    } else {
        u32 kept;
        if (p.columns <= S.cluster * S.held && fits<S>(kept, scores, smem)) {
            if (rank > 0) return ptx::cluster_sync();  // the first CTA reads what is kept here
            const Scores<kAlone> gathered = gather<S, kAlone>(kept, count, smem);
            ptx::cluster_sync();
            return choose<kAlone>(p.k, picks, smem, gathered, alone);
        }
        RadixSelect<S> select(smem);
        choose<S>(p.k, picks, smem, scores, select);
    }
}

}  // namespace deep_gemm
