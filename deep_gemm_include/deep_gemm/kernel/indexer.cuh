// Lightning indexer (spec/indexer.h): index_scores, a warp for eight rows; top_k, a CTA a token, a radix
// select over the scores' order and one pass that collects in order of indices. Called by op/indexer.cpp.
#pragma once

#include <deep_gemm/spec/indexer.h>
#include <deep_gemm/tile/order.h>
#include <deep_gemm/tile/real.h>
#include <deep_gemm/tile/reduce.h>
#include <deep_gemm/ptx/shared_words.h>

namespace deep_gemm {

namespace index_detail {

/// Rows that the query at a position sees.
DG_DEVICE u32 visible_rows(i32 position, u32 ratio, u32 limit) {
    if (position < 0) return 0;
    const u32 rows = (static_cast<u32>(position) + 1) / ratio;
    return rows < limit ? rows : limit;
}

}  // namespace index_detail

template <IndexScoreSpec S>
DG_KERNEL(kIndexThreads, 4)
index_scores(DG_GRID_CONSTANT const IndexScoreParams p) {
    ptx::grid_dependency_launch();
    ptx::grid_dependency_wait();
    const u32 token = ptx::block_index() % p.tokens, sequence = tile::sequence_of(p.sequences, token);
    const u32 visible =
        index_detail::visible_rows(ptx::ld_global_s32(p.positions + token), p.ratio, p.num_rows);
    const u32 first =
        ptx::block_index() / p.tokens * kIndexRowsOfBlock + ptx::warp_index() * kIndexRowsOfWarp;
    if (sequence >= p.sequences_count || first >= visible || visible <= p.only_above) return;
    const u32 channel = ptx::lane_index() * 4;
    const bool active = channel < p.d;
    tile::Float4 row[kIndexRowsOfWarp] = {};
#pragma unroll
    for (u32 i = 0; i < kIndexRowsOfWarp; ++i)
        if (active && first + i < visible)
            row[i] = tile::load4<S.rows>(
                p.rows.data, sequence * p.rows.stride + (first + i) * p.rows.inner_stride + channel);
    float score[kIndexRowsOfWarp] = {};
    for (u32 head = 0; head < p.heads; ++head) {
        tile::Float4 q{};
        if (active)
            q = tile::load4<S.query>(p.query.data,
                                     token * p.query.stride + head * p.query.inner_stride + channel);
        const float weight = ptx::ld_global_f32(p.weights + token * p.weights_stride + head);
#pragma unroll
        for (u32 i = 0; i < kIndexRowsOfWarp; ++i) {
            float dot = ptx::mul_rn_f32(q.x, row[i].x);
            dot = ptx::fma_rn_f32(q.y, row[i].y, dot);
            dot = ptx::fma_rn_f32(q.z, row[i].z, dot);
            dot = tile::warp_sum(ptx::fma_rn_f32(q.w, row[i].w, dot));
            score[i] = ptx::fma_rn_f32(weight, ptx::max_nan_f32(dot, 0.0f), score[i]);
        }
    }
#pragma unroll
    for (u32 i = 0; i < kIndexRowsOfWarp; ++i)
        if (ptx::lane_index() == i && first + i < visible)
            ptx::st_global_f32(p.scores + token * p.scores_stride + first + i, score[i] * p.scale);
}

namespace top_k_detail {

struct Found {
    u32 bin, above;
};

/// The bin in which the `wanted`-th largest lies and how many lie in higher bins. All threads call.
DG_DEVICE Found find_bin(ptx::SharedAddress bins, ptx::SharedAddress found, u32 wanted) {
    if (ptx::warp_index() == 0) {
        const u32 lane = ptx::lane_index(),
                  top = 255 - lane * 8;  // a lane has eight bins, lane 0 the highest
        u32 sum = 0;
        for (u32 i = 0; i < 8; ++i) sum += ptx::ld_shared_u32(bins + (top - i) * 4);
        u32 through = sum;
        for (u32 delta = 1; delta < 32; delta *= 2) {
            const u32 lower = ptx::shfl_up(through, delta);
            if (lane >= delta) through += lower;
        }
        u32 above = through - sum;
        if (above < wanted && wanted <= through) {
            u32 bin = top;
            for (u32 here = ptx::ld_shared_u32(bins + bin * 4); above + here < wanted;
                 here = ptx::ld_shared_u32(bins + bin * 4)) {
                above += here;
                --bin;
            }
            ptx::st_shared_u32(found, bin);
            ptx::st_shared_u32(found + 4, above);
        }
    }
    ptx::sync_threads();
    return {ptx::ld_shared_u32(found), ptx::ld_shared_u32(found + 4)};
}

}  // namespace top_k_detail

template <TopKSpec S>
DG_KERNEL(kTopKThreads, 4)
top_k(DG_GRID_CONSTANT const TopKParams p) {
    constexpr TopKSmem kPlan = plan_smem(S);
    constexpr u32 kWarps = kTopKThreads / 32;
    ptx::grid_dependency_launch();
    ptx::grid_dependency_wait();
    const u32 token = ptx::block_index(), thread = ptx::thread_index(), lane = ptx::lane_index();
    const ptx::SharedAddress smem = ptx::dynamic_smem();
    const u32 count = index_detail::visible_rows(ptx::ld_global_s32(p.positions + token), p.ratio, p.columns);
    i32* picks = p.picks + static_cast<u64>(token) * p.k;
    if (count <= p.k) {
        for (u32 i = thread; i < p.k; i += kTopKThreads)
            ptx::st_global_s32(picks + i, i < count ? static_cast<i32>(i) : -1);
        return;
    }
    const float* scores = p.scores + token * p.scores_stride;
    const auto order_at = [&](u32 i) { return tile::order_of(ptx::ld_global_f32(scores + i)); };

    // The k-th largest, eight bits at a time.
    u32 threshold = 0, known = 0, wanted = p.k;
    for (u32 shift = 24;; shift -= 8) {
        ptx::st_shared_u32(smem + kPlan.bins + thread * 4, 0);
        ptx::sync_threads();
        for (u32 i = thread; i < count; i += kTopKThreads) {
            const u32 order = order_at(i);
            if ((order & known) == threshold)
                ptx::red_shared_add_u32(smem + kPlan.bins + (order >> shift & 255) * 4, 1);
        }
        ptx::sync_threads();
        const auto found = top_k_detail::find_bin(smem + kPlan.bins, smem + kPlan.found, wanted);
        threshold |= found.bin << shift;
        known |= 255u << shift;
        wanted -= found.above;
        if (shift == 0) break;
    }

    // In order of indices: all above the threshold, and the first `wanted` of those equal to it.
    u32 larger = 0, equal = 0;
    const u32 warp = ptx::warp_index();
    for (u32 base = 0; base < count; base += kTopKThreads) {
        const u32 i = base + thread;
        const u32 order = i < count ? order_at(i) : 0;
        const bool is_larger = i < count && order > threshold, is_equal = i < count && order == threshold;
        const u32 larger_mask = ptx::ballot(is_larger), equal_mask = ptx::ballot(is_equal);
        const ptx::SharedAddress counts = smem + kPlan.counts;
        if (lane == 0) {
            ptx::st_shared_u32(counts + warp * 8, ptx::popc(larger_mask));
            ptx::st_shared_u32(counts + warp * 8 + 4, ptx::popc(equal_mask));
        }
        ptx::sync_threads();
        u32 larger_before = larger, equal_before = equal;
        for (u32 w = 0; w < kWarps; ++w) {
            const u32 l = ptx::ld_shared_u32(counts + w * 8), e = ptx::ld_shared_u32(counts + w * 8 + 4);
            if (w < warp) {
                larger_before += l;
                equal_before += e;
            }
            larger += l;
            equal += e;
        }
        const u32 lower = (1u << lane) - 1;
        larger_before += ptx::popc(larger_mask & lower);
        equal_before += ptx::popc(equal_mask & lower);
        if (is_larger || (is_equal && equal_before < wanted))
            ptx::st_global_s32(picks + larger_before + (equal_before < wanted ? equal_before : wanted),
                               static_cast<i32>(i));
        ptx::sync_threads();
    }
}

}  // namespace deep_gemm
