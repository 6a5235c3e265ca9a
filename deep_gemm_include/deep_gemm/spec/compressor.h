// Compressor: windows of `ratio` tokens pooled into one latent row by a softmax per channel, kept as a
// running (maximum, sum of weights, weighted sum) instead of the tokens. With `overlap` a token has two
// halves: its second half goes to its own window, its first half to the next one, so row w pools 2 ratio
// candidates.
#pragma once

#include <deep_gemm/spec/latent.h>

namespace deep_gemm {

struct CompressorSpec {
    Format weight = Format::bf16;
    Format rows = Format::fp32;  // as LatentSpec
    RowFinish finish = RowFinish::none;
    bool overlap = true;
    bool journal = false;

    friend constexpr bool operator==(const CompressorSpec&, const CompressorSpec&) = default;
};
template <typename Visitor>
constexpr void visit_fields(Visitor&& visit, const CompressorSpec& s) {
    visit("weight", s.weight);
    visit("rows", s.rows);
    visit("finish", s.finish);
    visit("overlap", s.overlap);
    visit("journal", s.journal);
}

constexpr u32 pools_of(const CompressorSpec& s) {
    return s.overlap ? 3 : 1;
}
constexpr LatentSmem plan_smem(const CompressorSpec&) {
    return plan_smem(LatentSpec{});
}

struct CompressorParams {
    const float* kv;  // [tokens, dim] or, with overlap, [tokens, 2 dim]
    const float* gate;
    u64 kv_stride, gate_stride;
    const float* ape;    // [ratio, dim or 2 dim]
    const void* weight;  // [dim]
    const float* frequencies;
    const i32* positions;
    const i32* sequences;  // or null
    float* state;          // [sequences, 3 pools, dim]: maximum, sum, weighted sum of each pool
    float* journal;        // [tokens, 3 pools, dim]
    LatentView rows;
    u32 tokens, dim, dims, ratio;
    float eps;
    u32 segments;      // CTAs of a sequence; more than one for consecutive positions of the only one
    u32 segment_rows;  // tokens of each, at least two windows
};

struct CompressorRestoreParams {
    const float* journal;  // [tokens, count]
    const i32* row;
    float* state;  // [count]
    u32 tokens, count;
};

}  // namespace deep_gemm
