// Radix select by a CTA or a cluster: histograms of a digit of the orders meet through distributed shared
// memory, and every CTA finds the same bin.
#pragma once

#include <deep_gemm/spec/top_k.h>
#include <deep_gemm/ptx/narrow.h>
#include <deep_gemm/ptx/shared_words.h>

namespace deep_gemm::top_k_detail {

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

/// Where orders lie: from `base` on, in so many bits. Those of large scores have their highest bits in common:
/// counted as they are they would meet in a few bins.
struct Span {
    u32 base = 0, bits = 32;
};

/// Of a CTA's orders, of which each thread knows the smallest and the largest; of none, any. Uses `counts`.
template <TopKSpec S>
DG_DEVICE Span span_of(u32 smallest, u32 largest, ptx::SharedAddress smem) {
    const ptx::SharedAddress pairs = smem + plan_smem(S).counts;
    const u32 lane = ptx::lane_index(), warp = ptx::warp_index();
    const auto over_warp = [&] {
#pragma unroll
        for (u32 mask = 16; mask > 0; mask /= 2) {
            const u32 low = ptx::shfl_bfly_u32(smallest, mask), high = ptx::shfl_bfly_u32(largest, mask);
            smallest = low < smallest ? low : smallest;
            largest = high > largest ? high : largest;
        }
    };
    over_warp();
    if (lane == 0) {
        ptx::st_shared_u32(pairs + warp * 8, smallest);
        ptx::st_shared_u32(pairs + warp * 8 + 4, largest);
    }
    ptx::sync_threads();
    const ptx::UInt2 pair = ptx::ld_shared_v2_u32(pairs + lane % S.warps * 8);
    smallest = pair.x, largest = pair.y;
    over_warp();
    ptx::sync_threads();
    if (largest < smallest) return {};
    return {smallest, largest == smallest ? 0 : ptx::highest_bit(largest - smallest) + 1};
}

/// What a radix select has found: the digits decided so far, and how many of the wanted ones lie at or below.
struct Threshold {
    u32 order = 0,
        known = 0;  // the value, from the span's base on until it is found; a mask of its decided bits
    u32 wanted;
};

template <TopKSpec S>
class RadixSelect {
  public:
    /// All threads call; bins are cleared when the cluster next synchronises.
    DG_DEVICE explicit RadixSelect(ptx::SharedAddress smem) : smem_(smem) {
        for (u32 i = ptx::thread_index(); i < 2 * kTopKBins; i += kThreads)
            ptx::st_shared_u32(smem + plan_smem(S).bins + i * 4, 0);
        ptx::sync_threads();
    }

    /// The `wanted`-th largest of what `count_all(count)` passes to count(order), as far as `digits` passes
    /// decide it. All of them lie in `span`.
    template <typename CountAll>
    DG_DEVICE Threshold run(u32 wanted, u32 digits, const Span& span, CountAll&& count_all) {
        Threshold t{.wanted = wanted};
#pragma unroll 1  // less code to fetch
        for (u32 digit = 0, top = span.bits; digit < digits && top > 0; ++digit) {
            const u32 bits = top < kTopKDigit ? top : kTopKDigit, shift = top - bits, mask = (1u << bits) - 1;
            const ptx::SharedAddress bins = smem_ + plan_smem(S).bins + half_ * kTopKBins * 4;
            count_all([&](u32 order) {
                const u32 key = order - span.base;
                if ((key & t.known) == t.order) ptx::red_shared_add_u32(bins + (key >> shift & mask) * 4, 1);
            });
            sync_cluster<S>();
            half_ ^= 1;
            clear();
            const ptx::UInt2 found = find(bins, t.wanted);
            t.order |= found.x << shift;
            t.known |= mask << shift;
            t.wanted -= found.y & ~kWhole;
            top = shift;
            if (digits > 1 && (found.y & kWhole) != 0 && span.base + t.order > 0) {
                // All of the bin are wanted: more digits would tell nothing.
                t.order -= 1, t.wanted = 0;
                break;
            }
        }
        t.order += span.base;
        return t;
    }

  private:
    /// The bins of the next pass. Every CTA has read them: it did so before it came to the last barrier.
    DG_DEVICE void clear() {
        const ptx::SharedAddress bins = smem_ + plan_smem(S).bins + half_ * kTopKBins * 4;
        for (u32 i = ptx::thread_index(); i < kTopKBins; i += kThreads) ptx::st_shared_u32(bins + i * 4, 0);
    }

    static constexpr u32 kWhole = 1u << 31;                                      // beside a count of scores
    static constexpr u32 kThreads = S.warps * 32, kBins = kTopKBins / kThreads;  // of a thread
    static_assert(kBins % 2 == 0 && kBins * kThreads == kTopKBins);

    /// The bin in which the `wanted`-th largest lies and how many lie in higher bins, with kWhole if those and
    /// the bin's own are all that are wanted. All threads call; a thread has neighbouring bins, the first one
    /// the highest.
    DG_DEVICE ptx::UInt2 find(ptx::SharedAddress bins, u32 wanted) const {
        const u32 lane = ptx::lane_index(), warp = ptx::warp_index();
        const u32 top = kTopKBins - 1 - ptx::thread_index() * kBins;
        u32 counts[kBins] = {}, sum = 0;
#pragma unroll
        for (u32 from = 0; from < S.cluster; ++from)
#pragma unroll
            for (u32 i = 0; i < kBins; i += 2) {
                const ptx::UInt2 pair = load_pair<S>(bins + (top - i - 1) * 4, from);
                counts[i] += pair.y, counts[i + 1] += pair.x;
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
        u32 above = earlier + through - sum;
#pragma unroll
        for (u32 i = 0; i < kBins; ++i) {
            if (above < wanted && wanted <= above + counts[i]) {
                ptx::st_shared_u32(result, top - i);
                ptx::st_shared_u32(result + 4, above | (wanted == above + counts[i] ? kWhole : 0));
            }
            above += counts[i];
        }
        ptx::sync_threads();
        return ptx::ld_shared_v2_u32(result);
    }

    ptx::SharedAddress smem_;
    u32 half_ = 0;
};

}  // namespace deep_gemm::top_k_detail
