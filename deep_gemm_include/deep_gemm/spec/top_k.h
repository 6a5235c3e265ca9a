// The indices of the k largest of a token's scores, exact: ties go to the lower index.
#pragma once

#include <deep_gemm/spec/types.h>

namespace deep_gemm {

constexpr u32 kTopKThreads = 1024;
constexpr u32 kTopKWarps = kTopKThreads / 32;
constexpr u32 kTopKDigit = 11;  // bits of the order that a pass decides
constexpr u32 kTopKBins = 1u << kTopKDigit;
constexpr u32 kTopKMaxCluster = 8;
constexpr u32 kTopKMaxHeld = 32768;
constexpr u32 kScoresOfPeak = 16;  // neighbours; the first peak has the first ones

struct TopKSpec {
    u32 cluster = 1;         // CTAs that share a token's scores: the choice does not depend on it
    u32 held = 8192;         // scores that a CTA keeps in shared memory; it reads others again in each pass
    bool peaks = false;      // the largest score of each few is known; not with a cluster
    u32 warps = kTopKWarps;  // of a CTA; fewer where another kernel chooses

    friend constexpr bool operator==(const TopKSpec&, const TopKSpec&) = default;
};
template <typename Visitor>
constexpr void visit_fields(Visitor&& visit, const TopKSpec& s) {
    visit("cluster", s.cluster);
    visit("held", s.held);
    visit("peaks", s.peaks);
    visit("warps", s.warps);
}

struct TopKSmem {
    u32 bins;     // a count for each value of a digit, for this pass and the next
    u32 through;  // of a pass: what is in a warp's bins
    u32 found;    // of a pass: the bin, and what lies above it
    u32 counts;   // a warp's scores above the threshold and at it, a pair a warp
    u32 orders;   // fp32 order of each score, warp by warp; later only of those that may be chosen
    u32 places;   // u16: of those, where in the warp's share they stood
    u32 bytes;
};
constexpr TopKSmem plan_smem(const TopKSpec& spec) {
    TopKSmem s{};
    s.through = 2 * kTopKBins * 4;
    s.found = s.through + spec.warps * 4;
    s.counts = s.found + 8;
    s.orders = s.counts + spec.warps * 8;
    s.places = s.orders + spec.held * 4;
    s.bytes = s.places + spec.held * 2;
    return s;
}

struct TopKParams {
    const float* scores;  // [tokens, columns]
    u64 scores_stride;
    const u32* peaks;  // the order of the largest of kScoresOfPeak scores
    u64 peaks_stride;
    const i32* positions;
    i32* picks;  // [tokens, k], ascending; -1 beyond the visible ones
    u32 columns, k, ratio;
};

}  // namespace deep_gemm
