// bf16 tokens as sums of two E4M3 terms: what the kernel that splits them is (TwoTermSpec) and what it is called
// with (TwoTermParams). An FP4 GEMM multiplies both terms as FP8 tokens (Fp4GemmSpec::token_terms) and adds.
//
//   scale = the power of two with largest / scale in (224, 448], of a row; at least 2^-126; 1 for zeros
//   high  = e4m3(x / scale)
//   low   = e4m3((x / scale - high) * 2^4)                     x ~ scale * (high + 2^-4 low)
//
// x has eight significant bits and high four of them, so that four are left for low: x is exact from 2^-6 scale
// up, that is from 2^-13.8 of the row's largest on. Smaller ones are exact to 2^-14 scale, less than 2^-21.8 of
// the largest. A row with an infinity or NaN has scale NaN, and its result is NaN.
//
//   out     E4M3 [groups, rows, 2, padded k]: high, then low; zeros beyond k
//   scales  fp32 [groups, rows]
//
// Rows that no product reads (masked, beyond a group's count) are left as they are. moe_swiglu writes the same of
// the activations that it computes.
#pragma once

#include <deep_gemm/spec/gemm.h>

namespace deep_gemm {

constexpr u32 kTwoTermThreads = 256;
constexpr u32 kTwoTermChunk = 4;  // elements of a thread at a time
constexpr u32 kTwoTermHeld = 4;   // chunks of a thread that are read once; those of longer rows twice
constexpr u32 kLowTermShift = 4;  // low counts in units 2^-4 of high's

struct TwoTermSpec {
    GroupMode groups = GroupMode::dense;  // masked, or as dense

    friend constexpr bool operator==(const TwoTermSpec&, const TwoTermSpec&) = default;
};
template <typename Visitor>
constexpr void visit_fields(Visitor&& visit, const TwoTermSpec& s) {
    visit("groups", s.groups);
}

struct TwoTermSmem {
    u32 amax;  // fp32 of each warp
    u32 bytes;
};
constexpr TwoTermSmem plan_smem(const TwoTermSpec&) {
    return {.amax = 0, .bytes = kTwoTermThreads / 32 * 4};
}

// A CTA has a row, and every rows_at_once-th of its group after it.
constexpr u32 kTwoTermRowsOfGroup =
    64;  // masked, at once: most groups have few of the rows that there is room for
struct TwoTermParams {
    const u8* x;              // bf16 [groups, rows, k], rows at multiples of 4 bytes
    const i32* group_layout;  // masked: rows of each group
    u8* out;
    float* scales;
    u64 x_stride_group, x_stride_row;  // in bytes
    u32 rows, k, padded_k, rows_at_once;
};

}  // namespace deep_gemm
