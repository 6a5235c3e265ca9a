// hc_few: hc_sums and hc_apply (spec/hc_sums.h) of up to seven tokens in one launch of one cluster, with their bits.
//
// CTA r of sixteen has the slices of 128 channels r, r + 16, ..: those that a warp of hc_apply adds up. Its warps
// are two groups of eight; a group has a slice at a time, as a CTA of hc_sums has. What fn makes of the
// streams, and then the squares of the norm, go to the shared memory of every CTA of the cluster.
#pragma once

#include <deep_gemm/spec/hc_sums.h>

namespace deep_gemm {

constexpr u32 kHcFewRanks = kHcApplyWarps;  // of the cluster
// Places for tokens: a warp of a group has one. The last warp finds post and comb instead.
constexpr u32 kHcFewTokens = 8, kHcFewMostRows = kHcFewTokens - 1, kHcFewGroups = 2;
constexpr u32 kHcFewThreads = kHcFewGroups * kHcSumsThreads, kHcFewWarps = kHcFewThreads / 32;
constexpr u32 kHcFewFragments = kHcStreams * kHcMixes / 8;  // of a slice and thread: four floats of fn
constexpr u32 kHcFewPitch = kHcMixes + 4;                   // of totals: lanes of a warp read 32 banks

struct HcFewSpec {
    Format y = Format::bf16;
    Format weight = Format::none;
    Format add = Format::none;
    u32 steps = 1;  // slices of a group
    bool narrow = false;
    Recipe recipe = Recipe::fp8_128;

    friend constexpr bool operator==(const HcFewSpec&, const HcFewSpec&) = default;
};
template <typename Visitor>
constexpr void visit_fields(Visitor&& visit, const HcFewSpec& s) {
    visit("y", s.y);
    visit("weight", s.weight);
    visit("add", s.add);
    visit("steps", s.steps);
    visit("narrow", s.narrow);
    visit("recipe", s.recipe);
}

// Whether what is taken of the streams is kept at once: registers then have room for two CTAs of an SM.
constexpr bool hc_few_keeps_early(const HcFewSpec& s) {
    return s.steps == 1;
}
// Slices that the cluster has room for.
constexpr u32 slices_of(const HcFewSpec& s) {
    return s.steps * kHcFewGroups * kHcFewRanks;
}

// A warp with fn of its 16 channels; it leaves its share of the sums there, fp32 [tokens][kHcSumsPitch].
constexpr u32 kHcFewFnBytes = kHcFewFragments * 32 * 16;
// What a warp has taken of the streams: bf16 [streams][tokens][16].
constexpr u32 kHcFewKeptBytes = kHcStreams * kHcFewTokens * 32;

struct HcFewSmem {
    u32 meetings;  // mbarriers of totals, squares, the largest
    u32 fn;        // fp32 [steps][warps][fragments][lanes][4]
    u32 kept;      // [steps][warps] of kHcFewKeptBytes, kept_stride apart
    u32 kept_stride;
    u32 totals;   // fp32 [ranks][tokens][kHcFewPitch]; written by the cluster
    u32 squares;  // fp32 [tokens][slices]; written by the cluster
    u32 largest;  // the same, of NVFP4
    u32 terms;    // fp32: base, then scale
    u32 weight;   // [steps][groups][128]
    u32 bytes;
};
constexpr HcFewSmem plan_smem(const HcFewSpec& s) {
    HcFewSmem p{};
    const u32 warps = s.steps * kHcFewWarps;
    p.totals = warps * kHcFewFnBytes;
    // Beside fn where there is room; else over it, behind the sums.
    const bool beside = hc_few_keeps_early(s);
    p.kept = beside ? p.totals : align_up(kHcFewTokens * kHcSumsPitch * 4, 32u);
    p.kept_stride = beside ? kHcFewKeptBytes : kHcFewFnBytes;
    p.totals += beside ? warps * kHcFewKeptBytes : 0;
    p.squares = p.totals + kHcFewRanks * kHcFewTokens * kHcFewPitch * 4;
    p.largest = p.squares + kHcFewTokens * slices_of(s) * 4;
    const bool row_amax = s.narrow && s.recipe == Recipe::nvfp4;
    p.terms = p.largest + (row_amax ? kHcFewTokens * slices_of(s) * 4 : 0);
    p.weight = p.terms + 32 * 4;
    p.meetings = p.weight + s.steps * kHcFewGroups * kHcSliceChannels * 4;
    p.bytes = p.meetings + 3 * 8;
    return p;
}

}  // namespace deep_gemm
