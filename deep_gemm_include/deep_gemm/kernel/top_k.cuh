// Exact top-k of a row of scores (spec/top_k.h), a cluster a token: a radix select over the scores' order,
// with histograms that meet through distributed shared memory, and one pass that collects in order of
// indices.
//
// Counting every score in every pass would be bound by atomics, most of them on a few bins. So the k-th
// largest of the lanes' maxima is found first, roughly: at least k scores reach it, and few more do. Only
// those are looked at afterwards. Called by op/top_k.cpp.
#pragma once

#include <deep_gemm/kernel/top_k_scores.h>
#include <deep_gemm/kernel/top_k_select.h>
#include <deep_gemm/tile/visible_rows.h>

namespace deep_gemm {
namespace top_k_detail {

/// A score that at least k reach, found among the largest of each lane; 0 where there are not enough of them.
template <TopKSpec S>
DG_DEVICE u32 lower_bound(RadixSelect<S>& select, u32 largest, bool present, u32 k, u32 count, u32 per_warp) {
    const u32 full_warps = count / per_warp;  // every lane of them has a score
    if (full_warps * 32 < k || per_warp < 4 * 32) return 0;
    constexpr u32 kDigits = 2;  // the rest of a score's bits would rule out hardly any more
    const auto count_all = [&](auto&& count_one) {
        if (present) count_one(largest);
    };
    return select.run(k, kDigits, count_all).order;
}

}  // namespace top_k_detail

template <TopKSpec S>
DG_KERNEL(kTopKThreads, S.held > 8192 ? 1 : 2)
top_k(DG_GRID_CONSTANT const TopKParams p) {
    constexpr TopKSmem kPlan = plan_smem(S);
    ptx::grid_dependency_launch();
    ptx::grid_dependency_wait();
    const u32 token = ptx::block_index() / S.cluster, rank = top_k_detail::rank<S>();
    const u32 lane = ptx::lane_index(), warp = ptx::warp_index();
    const u32 count = tile::visible_rows(ptx::ld_global_s32(p.positions + token), p.ratio, p.columns);
    i32* picks = p.picks + static_cast<u64>(token) * p.k;
    if (count <= p.k) {
        for (u32 i = rank * kTopKThreads + ptx::thread_index(); i < p.k; i += S.cluster * kTopKThreads)
            ptx::st_global_s32(picks + i, i < count ? static_cast<i32>(i) : -1);
        return;
    }
    const ptx::SharedAddress smem = ptx::dynamic_smem();
    const u32 per_warp = align_up(ceil_div(count, S.cluster * kTopKWarps), 32u);
    const auto clamp = [count](u32 i) { return i < count ? i : count; };
    const u32 begin = clamp((rank * kTopKWarps + warp) * per_warp);
    top_k_detail::Scores<S> scores(smem, p.scores + token * p.scores_stride, begin, clamp(begin + per_warp));
    const u32 largest = scores.load();
    top_k_detail::RadixSelect<S> select(smem);
    scores.keep(top_k_detail::lower_bound<S>(select, largest, scores.any_of_lane(), p.k, count, per_warp));
    const auto threshold = select.run(p.k, ceil_div(32u, kTopKDigit), [&](auto&& count_one) {
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
    top_k_detail::sync_cluster<S>();
    u32 larger_before = 0, equal_before = 0;
#pragma unroll
    for (u32 from = 0; from < S.cluster; ++from) {
        const ptx::UInt2 pair = top_k_detail::load_pair<S>(smem + kPlan.counts + lane * 8, from);
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

}  // namespace deep_gemm
