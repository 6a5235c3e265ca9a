// hc_few: hc_sums and hc_apply (spec/hc_sums.h) of up to eight tokens in one launch of one cluster, with their bits.
//
// CTA r of sixteen has the slices of 128 channels r, r + 16, ..: those that a warp of hc_apply adds up. Its warps
// are two groups of eight; a group has a slice at a time, as a CTA of hc_sums has. What fn makes of the
// streams, and then the squares of the norm, go to the shared memory of every CTA of the cluster.
#pragma once

#include <deep_gemm/spec/hc_sums.h>

namespace deep_gemm {

constexpr u32 kHcFewRanks = kHcApplyWarps;  // of the cluster
constexpr u32 kHcFewTokens = 8, kHcFewGroups = 2;
constexpr u32 kHcFewThreads = kHcFewGroups * kHcSumsThreads, kHcFewWarps = kHcFewThreads / 32;
constexpr u32 kHcFewFragments = kHcStreams * kHcMixes / 8;  // of a slice and thread: four floats of fn
constexpr u32 kHcFewPitch = kHcMixes + 4;                   // of totals: lanes of a warp read 32 banks

struct HcFewSpec {
    Format y = Format::bf16;
    Format weight = Format::none;
    Format add = Format::none;
    u32 steps = 1;  // slices of a group
    u32 held = 0;
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
    visit("held", s.held);
    visit("narrow", s.narrow);
    visit("recipe", s.recipe);
}

// Where a warp keeps fn of its channels it then leaves its share of the sums, [tokens][kHcSumsPitch], and what it
// has taken of the streams, bf16 [streams][tokens][16].
struct HcFewSmem {
    u32 fn;       // fp32 [steps][warps][fragments][lanes][4]
    u32 totals;   // fp32 [ranks][tokens][kHcFewPitch]; written by the cluster
    u32 squares;  // fp32 [tokens][slices]; written by the cluster
    u32 largest;  // the same, of NVFP4
    u32 terms;    // fp32: base, then scale
    u32 weight;   // [steps][groups][128]
    u32 kept;
    u32 bytes;
};
constexpr u32 slices_of(const HcFewSpec& s) {
    return s.steps * kHcFewGroups * kHcFewRanks;
}
constexpr u32 kHcFewSumsBytes = align_up(kHcFewTokens * kHcSumsPitch * 4, 32u);
constexpr u32 warp_bytes_of(const HcFewSpec& s) {
    return s.held ? kHcFewSumsBytes : kHcFewFragments * 32 * 16;
}
constexpr HcFewSmem plan_smem(const HcFewSpec& s) {
    HcFewSmem p{};
    p.totals = s.steps * kHcFewWarps * warp_bytes_of(s);
    p.squares = p.totals + kHcFewRanks * kHcFewTokens * kHcFewPitch * 4;
    p.largest = p.squares + kHcFewTokens * slices_of(s) * 4;
    const bool row_amax = s.narrow && s.recipe == Recipe::nvfp4;
    p.terms = p.largest + (row_amax ? kHcFewTokens * slices_of(s) * 4 : 0);
    p.weight = p.terms + 32 * 4;
    p.kept = p.weight + s.steps * kHcFewGroups * kHcSliceChannels * 4;
    p.bytes = p.kept + (s.steps == 1 ? kHcFewWarps * 1024 : 0);
    return p;
}

}  // namespace deep_gemm

namespace deep_gemm {
struct HcLastSpec {
    Format y = Format::bf16;
    Format weight = Format::none;
    Format add = Format::none;
    u32 steps = 1;
    bool narrow = false;
    Recipe recipe = Recipe::fp8_128;

    friend constexpr bool operator==(const HcLastSpec&, const HcLastSpec&) = default;
};
template <typename Visitor>
constexpr void visit_fields(Visitor&& visit, const HcLastSpec& s) {
    visit("y", s.y);
    visit("weight", s.weight);
    visit("add", s.add);
    visit("steps", s.steps);
    visit("narrow", s.narrow);
    visit("recipe", s.recipe);
}
struct HcLastSmem { u32 bytes; };
constexpr HcLastSmem plan_smem(const HcLastSpec&) { return {7168}; }
}
