// Hyper-connections of four bf16 streams (spec/hyper_connection.h says what they compute), in two kernels:
//
//   hc_sums   takes the output of the sublayer before into the streams, and leaves what fn makes of them: a
//             record for each token and slice of 128 channels. Its products are mma.sync: fn is the sum of
//             three bf16, the streams are bf16, so that each product is exact. A warp has 16 channels of all
//             streams, the columns of four steps of an mma each; tokens are its rows.
//   hc_apply  adds a token's records up, finds the coefficients, and leaves the sublayer's input.
//
// Every sum has an order that depends on d alone, so that a token's bits are the same beside any others, and in
// hc_few (spec/hc_few.h), which serves few tokens.
#pragma once

#include <deep_gemm/spec/hyper_connection.h>

namespace deep_gemm {

constexpr u32 kHcSumsThreads = 256, kHcSumsWarps = kHcSumsThreads / 32;
constexpr u32 kHcSliceChannels = kHcSumsWarps * 16;
constexpr u32 kHcSumsTokens = 16;  // at a time
constexpr u32 kHcStreams = 4, kHcMixes = (2 + kHcStreams) * kHcStreams;
constexpr u32 kHcRecord = 32;                            // fp32: the mixes of fn, then v . v
constexpr u32 kHcTerms = kHcStreams * (1 + kHcStreams);  // of a token: post, then comb
constexpr u32 kHcSumsPitch = kHcMixes + 2;

struct HcSumsSpec {
    Format add = Format::none;  // bf16; none: the streams stay as they are

    friend constexpr bool operator==(const HcSumsSpec&, const HcSumsSpec&) = default;
};
template <typename Visitor>
constexpr void visit_fields(Visitor&& visit, const HcSumsSpec& s) {
    visit("add", s.add);
}
struct HcSumsSmem {
    u32 sums;   // fp32 [2][warps][tokens][pitch]
    u32 terms;  // fp32 [2][tokens][terms]
    u32 bytes;
};
constexpr HcSumsSmem plan_smem(const HcSumsSpec&) {
    HcSumsSmem p{};
    p.terms = 2 * kHcSumsWarps * kHcSumsTokens * kHcSumsPitch * 4;
    p.bytes = p.terms + 2 * kHcSumsTokens * kHcTerms * 4;
    return p;
}

constexpr u32 kHcApplyThreads = 512, kHcApplyWarps = kHcApplyThreads / 32;  // and a warp for post and comb
constexpr u32 kMaxHcApplySteps = 4;

struct HcApplySpec {
    Format y = Format::bf16;
    Format weight = Format::none;
    u32 steps = 1;  // groups of 128 channels of a warp
    bool narrow = false;
    Recipe recipe = Recipe::fp8_128;

    friend constexpr bool operator==(const HcApplySpec&, const HcApplySpec&) = default;
};
template <typename Visitor>
constexpr void visit_fields(Visitor&& visit, const HcApplySpec& s) {
    visit("y", s.y);
    visit("weight", s.weight);
    visit("steps", s.steps);
    visit("narrow", s.narrow);
    visit("recipe", s.recipe);
}
struct HcApplySmem {
    u32 totals;   // fp32 [warps][record]
    u32 squares;  // fp32: a sum each 128 channels
    u32 largest;  // fp32 [warps]: of NVFP4
    u32 bytes;
};
constexpr HcApplySmem plan_smem(const HcApplySpec& s) {
    HcApplySmem p{};
    p.squares = kHcApplyWarps * kHcRecord * 4;
    p.largest = p.squares + s.steps * kHcApplyWarps * 4;
    p.bytes = p.largest + kHcApplyWarps * 4;
    return p;
}

struct HcTwoParams {
    HcParams p;
    float* records;  // [rows, slices, record]
    u32 slices;      // of kHcSliceChannels
    u32 row_blocks;  // of hc_sums: CTAs that share the rows of a slice
};

}  // namespace deep_gemm
