// Exact top-k of a row of scores (spec/top_k.h), a cluster a token: a radix select over the scores' order,
// with histograms that meet through distributed shared memory, and one pass that collects in order of
// indices.
//
// Counting every score in every pass would be bound by atomics, most of them on a few bins. So the k-th
// largest of the lanes' maxima is found first, roughly: at least k scores reach it, and few more do. Only
// those are looked at afterwards. Called by op/top_k.cpp.
#pragma once

#include <deep_gemm/spec/top_k.h>
#include <deep_gemm/tile/order.h>
#include <deep_gemm/tile/visible_rows.h>
#include <deep_gemm/ptx/narrow.h>
#include <deep_gemm/ptx/shared_words.h>

namespace deep_gemm {
namespace top_k_detail {

template <TopKSpec S>
DG_DEVICE u32 rank() {
    return S.cluster > 1 ? ptx::cluster_rank() : 0;
}
template <TopKSpec S>
DG_DEVICE void sync_cluster() {
    if constexpr (S.cluster > 1)
        ptx::cluster_sync();
    else
        ptx::sync_threads();
}

/// Two words at the same place in CTA `from` of the cluster.
template <TopKSpec S>
DG_DEVICE ptx::UInt2 load_pair(ptx::SharedAddress at, u32 from) {
    if constexpr (S.cluster > 1)
        return ptx::ld_cluster_v2_u32(ptx::map_to_rank(at, from));
    else
        return ptx::ld_shared_v2_u32(at);
}

/// A warp's scores: neighbours, the first of them in shared memory. Loops stay short: straight-line code of a
/// kernel that runs for microseconds costs more to fetch than to run.
template <TopKSpec S>
class Scores {
  public:
    static constexpr u32 kHeld = S.held / kTopKWarps;

    DG_DEVICE Scores(ptx::SharedAddress smem, const float* data, u32 begin, u32 end)
        : orders_(smem + plan_smem(S).orders + ptx::warp_index() * kHeld * 4),
          places_(smem + plan_smem(S).places + ptx::warp_index() * kHeld * 2),
          data_(data),
          begin_(begin),
          end_(end),
          kept_(end - begin < kHeld ? end - begin : kHeld),
          rest_(begin + kept_) {}

    DG_DEVICE bool any_of_lane() const { return ptx::lane_index() < kept_; }

    /// Fills the warp's shared memory; the largest order a lane saw.
    DG_DEVICE u32 load() {
        constexpr u32 kBatch = 8;  // loads in flight
        u32 largest = 0;
        for (u32 first = ptx::lane_index(); first < kept_; first += kBatch * 32) {
            float v[kBatch];
#pragma unroll
            for (u32 j = 0; j < kBatch; ++j)
                v[j] = first + j * 32 < kept_ ? ptx::ld_global_f32(data_ + begin_ + first + j * 32) : 0.0f;
#pragma unroll
            for (u32 j = 0; j < kBatch; ++j) {
                if (first + j * 32 >= kept_) break;
                const u32 order = tile::order_of(v[j]);
                ptx::st_shared_u32(orders_ + (first + j * 32) * 4, order);
                largest = order > largest ? order : largest;
            }
        }
        ptx::sync_warp();
        return largest;
    }

    /// Forgets what is below `least`: the others move together, in their order.
    DG_DEVICE void keep(u32 least) {
        least_ = least;
        const u32 lane = ptx::lane_index(), held = kept_;
        kept_ = 0;
#pragma unroll 2
        for (u32 base = 0; base < held; base += 32) {
            const u32 order = base + lane < held ? ptx::ld_shared_u32(orders_ + (base + lane) * 4) : 0;
            const bool stays = base + lane < held && order >= least;
            const u32 mask = ptx::ballot(stays), at = kept_ + ptx::popc(mask & ((1u << lane) - 1));
            ptx::sync_warp();  // all have read what the first of them overwrites
            if (stays) {
                ptx::st_shared_u32(orders_ + at * 4, order);
                ptx::st_shared_u16(places_ + at * 2, base + lane);
            }
            kept_ += ptx::popc(mask);
        }
        ptx::sync_warp();
    }

    /// visit(order, there is such a score, index) in order of indices, for those that keep() left; the whole
    /// warp takes part. Indices only where they are asked for.
    template <bool WithIndex, typename Visit>
    DG_DEVICE void each(Visit&& visit) const {
        const u32 lane = ptx::lane_index();
#pragma unroll 1
        for (u32 i = lane; i - lane < kept_; i += 32) {
            const bool present = i < kept_;
            const u32 index = WithIndex && present ? begin_ + ptx::ld_shared_u16(places_ + i * 2) : 0;
            visit(present ? ptx::ld_shared_u32(orders_ + i * 4) : 0, present, index);
        }
#pragma unroll 1
        for (u32 i = rest_ + lane; i - lane < end_; i += 32) {
            const u32 order = i < end_ ? tile::order_of(ptx::ld_global_f32(data_ + i)) : 0;
            visit(order, i < end_ && order >= least_, i);
        }
    }

  private:
    ptx::SharedAddress orders_, places_;
    const float* data_;  // of the token
    u32 begin_, end_, kept_, rest_, least_ = 0;
};

/// What a radix select has found: the digits decided so far, and how many of the wanted ones lie at or below.
struct Threshold {
    u32 order = 0, known = 0;  // the value, and a mask of its decided bits
    u32 wanted;
};

template <TopKSpec S>
class RadixSelect {
  public:
    /// All threads call; bins are cleared when the cluster next synchronises.
    DG_DEVICE explicit RadixSelect(ptx::SharedAddress smem) : smem_(smem) {
        for (u32 i = ptx::thread_index(); i < 2 * kTopKBins; i += kTopKThreads)
            ptx::st_shared_u32(smem + plan_smem(S).bins + i * 4, 0);
        ptx::sync_threads();
    }

    /// The `wanted`-th largest of what `count_all(count)` passes to count(order), as far as `digits` passes
    /// decide it.
    template <typename CountAll>
    DG_DEVICE Threshold run(u32 wanted, u32 digits, CountAll&& count_all) {
        Threshold t{.wanted = wanted};
        for (u32 digit = 0, top = 32; digit < digits; ++digit) {
            const u32 bits = top < kTopKDigit ? top : kTopKDigit, shift = top - bits, mask = (1u << bits) - 1;
            const ptx::SharedAddress bins = smem_ + plan_smem(S).bins + half_ * kTopKBins * 4;
            count_all([&](u32 order) {
                if ((order & t.known) == t.order)
                    ptx::red_shared_add_u32(bins + (order >> shift & mask) * 4, 1);
            });
            sync_cluster<S>();
            half_ ^= 1;
            clear();
            const ptx::UInt2 found = find(bins, t.wanted);
            t.order |= found.x << shift;
            t.known |= mask << shift;
            t.wanted -= found.y;
            top = shift;
        }
        return t;
    }

  private:
    /// The bins of the next pass. Every CTA has read them: it did so before it came to the last barrier.
    DG_DEVICE void clear() {
        const ptx::SharedAddress bins = smem_ + plan_smem(S).bins + half_ * kTopKBins * 4;
        for (u32 i = ptx::thread_index(); i < kTopKBins; i += kTopKThreads)
            ptx::st_shared_u32(bins + i * 4, 0);
    }

    /// The bin in which the `wanted`-th largest lies and how many lie in higher bins. All threads call; a
    /// thread has two neighbouring bins, the first one the highest.
    DG_DEVICE ptx::UInt2 find(ptx::SharedAddress bins, u32 wanted) const {
        static_assert(kTopKBins == 2 * kTopKThreads);
        const u32 lane = ptx::lane_index(), warp = ptx::warp_index();
        const u32 top = kTopKBins - 1 - ptx::thread_index() * 2;
        u32 first = 0, sum = 0;
#pragma unroll
        for (u32 from = 0; from < S.cluster; ++from) {
            const ptx::UInt2 pair = load_pair<S>(bins + (top - 1) * 4, from);
            first += pair.y;
            sum += pair.x + pair.y;
        }
        u32 through = sum;
#pragma unroll
        for (u32 delta = 1; delta < 32; delta *= 2) {
            const u32 lower = ptx::shfl_up(through, delta);
            if (lane >= delta) through += lower;
        }
        const ptx::SharedAddress warps = smem_ + plan_smem(S).through, result = smem_ + plan_smem(S).found;
        if (lane == 31) ptx::st_shared_u32(warps + warp * 4, through);
        ptx::sync_threads();
        // Lane w has the count of warp w; the lanes below the own warp's number are added.
        u32 earlier = lane < warp ? ptx::ld_shared_u32(warps + lane * 4) : 0;
#pragma unroll
        for (u32 mask = 16; mask > 0; mask /= 2) earlier += ptx::shfl_bfly_u32(earlier, mask);
        const u32 above = earlier + through - sum;
        if (above < wanted && wanted <= above + sum) {
            const bool upper = wanted <= above + first;
            ptx::st_shared_u32(result, upper ? top : top - 1);
            ptx::st_shared_u32(result + 4, upper ? above : above + first);
        }
        ptx::sync_threads();
        return ptx::ld_shared_v2_u32(result);
    }

    ptx::SharedAddress smem_;
    u32 half_ = 0;
};

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
