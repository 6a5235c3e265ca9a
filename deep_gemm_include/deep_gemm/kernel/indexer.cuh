// Lightning indexer (spec/indexer.h): index_scores, a warp for eight rows; top_k, a CTA a token, a radix
// select over the scores' order and one pass that collects in order of indices. Called by op/indexer.cpp.
#pragma once

#include <deep_gemm/spec/indexer.h>
#include <deep_gemm/tile/order.h>
#include <deep_gemm/tile/real.h>
#include <deep_gemm/tile/reduce.h>
#include <deep_gemm/ptx/mma_sync.h>
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

namespace index_detail {

/// 64 heads of a token and their weights; zeros beyond the last.
DG_DEVICE void load_heads(const IndexScoreParams& p, u32 token, u32 first, ptx::SharedAddress smem) {
    constexpr u32 kPieces = kIndexMmaChannels / 8;  // of 16 bytes
    for (u32 i = ptx::thread_index(); i < kIndexMmaHeads * kPieces; i += kIndexMmaThreads) {
        const u32 head = i / kPieces, piece = i % kPieces;
        ptx::UInt4 v{};
        if (first + head < p.heads)
            v = ptx::ld_global_v4_u32(static_cast<const u8*>(p.query.data) +
                                      (token * p.query.stride + (first + head) * p.query.inner_stride) * 2 +
                                      piece * 16);
        ptx::st_shared_v4_u32(smem + head * kIndexPitch + piece * 16, v);
    }
    const u32 head = ptx::thread_index();
    if (head < kIndexMmaHeads)
        ptx::st_shared_f32(smem + kIndexMmaHeads * kIndexPitch + head * 4,
                           first + head < p.heads
                               ? ptx::ld_global_f32(p.weights + token * p.weights_stride + first + head)
                               : 0.0f);
}

}  // namespace index_detail

template <IndexMmaSpec S>
DG_KERNEL(kIndexMmaThreads, 4)
index_mma(DG_GRID_CONSTANT const IndexScoreParams p) {
    constexpr u32 kLoads = kIndexMmaChannels / 32, kTiles = kIndexMmaHeads / 8;
    ptx::grid_dependency_launch();
    ptx::grid_dependency_wait();
    const u32 token = ptx::block_index() % p.tokens, sequence = tile::sequence_of(p.sequences, token);
    const u32 visible =
        index_detail::visible_rows(ptx::ld_global_s32(p.positions + token), p.ratio, p.num_rows);
    const u32 block = ptx::block_index() / p.tokens * kIndexMmaRows;
    if (sequence >= p.sequences_count || block >= visible || visible <= p.only_above) return;
    const u32 lane = ptx::lane_index(), first = block + ptx::warp_index() * kIndexMmaWarpRows;
    const ptx::SharedAddress smem = ptx::dynamic_smem();

    // A lane has 16 bytes of each 64 of two rows: its fragments of two steps.
    ptx::UInt4 rows[2][kLoads] = {};
#pragma unroll
    for (u32 half = 0; half < 2; ++half) {
        const u32 row = first + lane / 4 + half * 8;
        if (row >= visible) continue;
        const u8* at = static_cast<const u8*>(p.rows.data) +
                       (sequence * p.rows.stride + row * p.rows.inner_stride) * 2 + lane % 4 * 16;
#pragma unroll
        for (u32 load = 0; load < kLoads; ++load) rows[half][load] = ptx::ld_global_v4_u32(at + load * 64);
    }
    float score[2] = {};
    for (u32 head = 0; head < p.heads; head += kIndexMmaHeads) {
        index_detail::load_heads(p, token, head, smem);
        ptx::sync_threads();
#pragma unroll
        for (u32 t = 0; t < kTiles; ++t) {
            float dots[4] = {};
#pragma unroll
            for (u32 load = 0; load < kLoads; ++load) {
                const ptx::UInt4 q = ptx::ld_shared_v4_u32(smem + (t * 8 + lane / 4) * kIndexPitch +
                                                           load * 64 + lane % 4 * 16);
                const ptx::UInt4 &a = rows[0][load], &b = rows[1][load];
                const u32 low[] = {a.x, b.x, a.y, b.y}, high[] = {a.z, b.z, a.w, b.w};
                ptx::mma_m16n8k16_bf16(dots, low, q.x, q.y);
                ptx::mma_m16n8k16_bf16(dots, high, q.z, q.w);
            }
            const ptx::Float2 weight =
                ptx::ld_shared_v2_f32(smem + kIndexMmaHeads * kIndexPitch + (t * 8 + lane % 4 * 2) * 4);
#pragma unroll
            for (u32 half = 0; half < 2; ++half) {
                score[half] = ptx::fma_rn_f32(weight.x, ptx::max_nan_f32(dots[2 * half], 0.0f), score[half]);
                score[half] =
                    ptx::fma_rn_f32(weight.y, ptx::max_nan_f32(dots[2 * half + 1], 0.0f), score[half]);
            }
        }
        ptx::sync_threads();
    }
#pragma unroll
    for (u32 half = 0; half < 2; ++half) {
        const float sum = tile::warp_sum<4>(score[half]);
        const u32 row = first + lane / 4 + half * 8;
        if (lane % 4 == 0 && row < visible)
            ptx::st_global_f32(p.scores + token * p.scores_stride + row, sum * p.scale);
    }
}

namespace top_k_detail {

struct Found {
    u32 bin, above;
};

/// What the copies of a bin counted.
template <TopKSpec S>
DG_DEVICE u32 count_of_bin(ptx::SharedAddress smem, u32 bin) {
    const ptx::SharedAddress at = smem + plan_smem(S).bins + bin * copies_of(S) * 4;
    if constexpr (copies_of(S) == 1) {
        return ptx::ld_shared_u32(at);
    } else {
        static_assert(copies_of(S) == 8);
        const ptx::UInt4 a = ptx::ld_shared_v4_u32(at), b = ptx::ld_shared_v4_u32(at + 16);
        return a.x + a.y + a.z + a.w + b.x + b.y + b.z + b.w;
    }
}

/// The bin in which the `wanted`-th largest lies and how many lie in higher bins. All threads call; a thread
/// has two neighbouring bins, the first one the highest.
template <TopKSpec S>
DG_DEVICE Found find_bin(ptx::SharedAddress smem, u32 wanted) {
    constexpr TopKSmem kPlan = plan_smem(S);
    static_assert(kTopKBins == 2 * kTopKThreads);
    const u32 lane = ptx::lane_index(), warp = ptx::warp_index();
    const u32 top = kTopKBins - 1 - ptx::thread_index() * 2;
    const u32 first = count_of_bin<S>(smem, top);
    const u32 sum = first + count_of_bin<S>(smem, top - 1);
    u32 through = sum;
#pragma unroll
    for (u32 delta = 1; delta < 32; delta *= 2) {
        const u32 lower = ptx::shfl_up(through, delta);
        if (lane >= delta) through += lower;
    }
    if (lane == 31) ptx::st_shared_u32(smem + kPlan.counts + warp * 4, through);
    ptx::sync_threads();
    // Lane w has the count of warp w; the lanes below the own warp's number are added.
    u32 earlier = lane < warp ? ptx::ld_shared_u32(smem + kPlan.counts + lane * 4) : 0;
#pragma unroll
    for (u32 mask = 16; mask > 0; mask /= 2) earlier += ptx::shfl_bfly_u32(earlier, mask);
    const u32 above = earlier + through - sum;
    if (above < wanted && wanted <= above + sum) {
        const bool upper = wanted <= above + first;
        ptx::st_shared_u32(smem + kPlan.found, upper ? top : top - 1);
        ptx::st_shared_u32(smem + kPlan.found + 4, upper ? above : above + first);
    }
    ptx::sync_threads();
    return {ptx::ld_shared_u32(smem + kPlan.found), ptx::ld_shared_u32(smem + kPlan.found + 4)};
}

/// Scores of a token as unsigned numbers in their order.
struct Scores {
    const float* scores;
    u32 count;

    /// visit(order) of every score from `begin` to `end` that is `step` beyond the one before, a batch after
    /// the other.
    template <typename Visitor>
    DG_DEVICE void visit(u32 begin, u32 end, u32 step, Visitor&& visit) const {
        for (u32 base = begin; base < end; base += kTopKBatch * step) {
            u32 order[kTopKBatch];
#pragma unroll
            for (u32 j = 0; j < kTopKBatch; ++j) order[j] = at(base + j * step, end);
#pragma unroll
            for (u32 j = 0; j < kTopKBatch; ++j)
                if (base + j * step < end) visit(order[j]);
        }
    }
    [[nodiscard]] DG_DEVICE u32 at(u32 i, u32 end) const {
        return i < end ? tile::order_of(ptx::ld_global_f32(scores + i)) : 0;
    }
};

/// How many of a warp's scores are larger than the threshold, and equal to it.
struct Share {
    u32 larger, equal;
};

/// The k-th largest score, and how many of those that are equal to it are among the k.
struct Threshold {
    u32 order, wanted;
};
template <TopKSpec S>
DG_DEVICE Threshold find_threshold(const Scores& scores, u32 k, ptx::SharedAddress smem) {
    constexpr TopKSmem kPlan = plan_smem(S);
    const u32 thread = ptx::thread_index(), lane = ptx::lane_index();
    u32 held[held_of(S)];
#pragma unroll
    for (u32 j = 0; j < held_of(S); ++j) held[j] = scores.at(thread + j * kTopKThreads, scores.count);
    // A digit at a time; the last one has fewer bits.
    u32 threshold = 0, known = 0, wanted = k;
    for (u32 top = 32; top > 0;) {
        const u32 bits = top < kTopKDigit ? top : kTopKDigit, shift = top - bits, mask = (1u << bits) - 1;
        for (u32 i = thread * 4; i < kTopKBins * copies_of(S); i += kTopKThreads * 4)
            ptx::st_shared_v4_u32(smem + kPlan.bins + i * 4, ptx::UInt4{});
        ptx::sync_threads();
        const auto count_one = [&](u32 order) {
            if ((order & known) == threshold)
                ptx::red_shared_add_u32(
                    smem + kPlan.bins + ((order >> shift & mask) * copies_of(S) + lane % copies_of(S)) * 4,
                    1);
        };
#pragma unroll
        for (u32 j = 0; j < held_of(S); ++j)
            if (thread + j * kTopKThreads < scores.count) count_one(held[j]);
        scores.visit(thread + held_of(S) * kTopKThreads, scores.count, kTopKThreads, count_one);
        ptx::sync_threads();
        const Found found = find_bin<S>(smem, wanted);
        threshold |= found.bin << shift;
        known |= mask << shift;
        wanted -= found.above;
        top = shift;
    }
    return {threshold, wanted};
}

/// In order of indices: all above the threshold, and the first `wanted` of those equal to it. A warp has a
/// range of the scores, 32 at a time; it first counts, then knows what lies before it.
template <TopKSpec S>
DG_DEVICE void collect(const Scores& scores, const Threshold& t, i32* picks, ptx::SharedAddress smem) {
    constexpr u32 kWarps = kTopKThreads / 32;
    static_assert(kWarps == 32);
    const u32 warp = ptx::warp_index(), lane = ptx::lane_index();
    const u32 segment = align_up(ceil_div(scores.count, kWarps), 32u), begin = warp * segment;
    const u32 end = begin + segment < scores.count ? begin + segment : scores.count;
    Share mine{0, 0};
    scores.visit(begin + lane, end, 32, [&](u32 order) {
        mine.larger += order > t.order;
        mine.equal += order == t.order;
    });
#pragma unroll
    for (u32 mask = 16; mask > 0; mask /= 2) {
        mine.larger += ptx::shfl_bfly_u32(mine.larger, mask);
        mine.equal += ptx::shfl_bfly_u32(mine.equal, mask);
    }
    const ptx::SharedAddress counts = smem + plan_smem(S).counts;
    if (lane == 0) {
        ptx::st_shared_u32(counts + warp * 8, mine.larger);
        ptx::st_shared_u32(counts + warp * 8 + 4, mine.equal);
    }
    ptx::sync_threads();
    // Lane w has what warp w counted.
    u32 larger = lane < warp ? ptx::ld_shared_u32(counts + lane * 8) : 0,
        equal = lane < warp ? ptx::ld_shared_u32(counts + lane * 8 + 4) : 0;
#pragma unroll
    for (u32 mask = 16; mask > 0; mask /= 2) {
        larger += ptx::shfl_bfly_u32(larger, mask);
        equal += ptx::shfl_bfly_u32(equal, mask);
    }
    const u32 lower = (1u << lane) - 1;
    for (u32 base = begin; base < end; base += kTopKBatch * 32) {
        u32 order[kTopKBatch];
#pragma unroll
        for (u32 j = 0; j < kTopKBatch; ++j) order[j] = scores.at(base + j * 32 + lane, end);
#pragma unroll
        for (u32 j = 0; j < kTopKBatch; ++j) {
            const u32 i = base + j * 32 + lane;
            const bool is_larger = i < end && order[j] > t.order, is_equal = i < end && order[j] == t.order;
            const u32 larger_mask = ptx::ballot(is_larger), equal_mask = ptx::ballot(is_equal);
            const u32 larger_before = larger + ptx::popc(larger_mask & lower),
                      equal_before = equal + ptx::popc(equal_mask & lower);
            if (is_larger || (is_equal && equal_before < t.wanted))
                ptx::st_global_s32(
                    picks + larger_before + (equal_before < t.wanted ? equal_before : t.wanted),
                    static_cast<i32>(i));
            larger += ptx::popc(larger_mask);
            equal += ptx::popc(equal_mask);
        }
    }
}

}  // namespace top_k_detail

template <TopKSpec S>
DG_KERNEL(kTopKThreads, 1)
top_k(DG_GRID_CONSTANT const TopKParams p) {
    ptx::grid_dependency_launch();
    ptx::grid_dependency_wait();
    const u32 token = ptx::block_index(), thread = ptx::thread_index();
    const ptx::SharedAddress smem = ptx::dynamic_smem();
    const u32 count = index_detail::visible_rows(ptx::ld_global_s32(p.positions + token), p.ratio, p.columns);
    i32* picks = p.picks + static_cast<u64>(token) * p.k;
    if (count <= p.k) {
        for (u32 i = thread; i < p.k; i += kTopKThreads)
            ptx::st_global_s32(picks + i, i < count ? static_cast<i32>(i) : -1);
        return;
    }
    const top_k_detail::Scores scores{p.scores + token * p.scores_stride, count};
    const top_k_detail::Threshold threshold = top_k_detail::find_threshold<S>(scores, p.k, smem);
    top_k_detail::collect<S>(scores, threshold, picks, smem);
}

}  // namespace deep_gemm
