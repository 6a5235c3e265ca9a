// A mixture of FP8 experts for few tokens, in two launches without grouping: each (token, expert) pair reads
// its expert's weights by itself. What each kernel is called with (specs and params), and what both rely on:
//
//   A tile of wgmma has 64 rows of weights and 8 columns. A chunk is 128 columns of K. Here the four warps of
//   a warpgroup take different chunks, warp w chunk c with its 16 rows of weights, and the 8 columns are 8
//   chunks of the activation, so that of each warp's 16 x 8 results the 16 of column c % 8 are its chunk's.
//   The chunks of a sum are then added in rising order, scaled, by one fma each.
//
// These are the products, sums and roundings of the grouped FP8 GEMM (spec/gemm.h) where one CTA has all of
// K, and of quantize, moe_swiglu and moe_combine (spec/moe.h) around it: the bits are theirs.
#pragma once

#include <deep_gemm/spec/moe.h>

namespace deep_gemm {

constexpr u32 kFewChunk = 128;    // of K: what a scale is for
constexpr u32 kFewColumns = 8;  // of wgmma: chunks of one swizzle atom
constexpr u32 kFewAtomBytes = kFewColumns * kFewChunk;
constexpr u32 kFewUpThreads = 256, kFewDownThreads = 512;
constexpr u32 kFewUpChannels = 8;  // of a warpgroup: as many gate rows and up rows
constexpr u32 kFewDownRows = 16;   // of w2, of a CTA
constexpr u32 kMaxFewChunks = 128;  // of an activation in shared memory, or of all of a token's

constexpr u32 few_codes_bytes(u32 chunks) {
    return align_up(chunks, kFewColumns) * kFewChunk;
}

// ---- mid[pair] = bf16(silu(w1 x) * (w3 x) (* weight)) of the pair's expert

struct MoeFewUpSpec {
    Format x = Format::bf16;  // or fp32
    u32 chunks = 1;           // of K
    bool limited = false;     // gate at most `limit`, up within +-limit
    bool weighted = false;    // times the routing weight, before the rounding to bf16

    friend constexpr bool operator==(const MoeFewUpSpec&, const MoeFewUpSpec&) = default;
};
template <typename Visitor>
constexpr void visit_fields(Visitor&& visit, const MoeFewUpSpec& s) {
    visit("x", s.x);
    visit("chunks", s.chunks);
    visit("limited", s.limited);
    visit("weighted", s.weighted);
}

// Weights of all experts and their scales; strides in elements.
struct MoeFewWeights {
    const u8* data;
    const float* scales;
    u64 stride_expert, stride_row;
    u64 scale_stride_expert, scale_stride_row, scale_stride_chunk;
};

struct MoeFewUpParams {
    const void* x;         // [T, chunks * 128] at x_stride
    MoeFewWeights w;       // [experts, 2 n, chunks * 128]: gate rows, then up rows
    const i32* topk_ids;   // [T * top_k]
    const float* weights;  // [T * top_k]
    void* mid;             // bf16 [T * top_k, n]
    u64 x_stride;
    u32 top_k, first_expert, experts, n;
    float limit;
};

struct MoeFewUpSmem {
    u32 codes;   // E4M3 of x: 8 chunks an atom of 128-byte swizzle
    u32 x_scales;  // fp32 of each chunk
    u32 w_scales;  // fp32 of each chunk, of gate and of up
    u32 sums;    // fp32 [warpgroups][chunks][8 gate rows, 8 up rows]
    u32 bytes;
};
constexpr MoeFewUpSmem plan_smem(const MoeFewUpSpec& s) {
    MoeFewUpSmem p{};
    p.x_scales = few_codes_bytes(s.chunks);
    p.w_scales = p.x_scales + s.chunks * 4;
    p.sums = p.w_scales + s.chunks * 8;
    p.bytes = p.sums + kFewUpThreads / 128 * s.chunks * 2 * kFewUpChannels * 4;
    return p;
}
constexpr const char* why_illegal(const MoeFewUpSpec& s) {
    if (s.x != Format::bf16 && s.x != Format::fp32) return "activations are bf16 or fp32";
    return s.chunks < 1 || s.chunks > kMaxFewChunks ? "1 to 128 chunks of K" : nullptr;
}

// ---- d[t] = sum over j of bf16(w2 mid[t, j]) (* weight), in the order of j, plus a shared expert

struct MoeFewDownSpec {
    u32 chunks = 1;  // of K, for one expert
    MoeCombineSpec combine;

    friend constexpr bool operator==(const MoeFewDownSpec&, const MoeFewDownSpec&) = default;
};
template <typename Visitor>
constexpr void visit_fields(Visitor&& visit, const MoeFewDownSpec& s) {
    visit("chunks", s.chunks);
    visit("combine", s.combine);
}

struct MoeFewDownParams {
    const void* mid;  // bf16 [T, top_k, chunks * 128]
    MoeFewWeights w;  // [experts, n, chunks * 128]
    const i32* topk_ids;
    const float* weights;  // [T, top_k]
    const void* shared;    // bf16 [T, n] at shared_stride
    void* d;               // [T, n] at d_stride
    u64 shared_stride, d_stride;
    u32 first_expert, experts, n;
};

constexpr u32 chunks_of(const MoeFewDownSpec& s) {
    return s.chunks * s.combine.top_k;
}
struct MoeFewDownSmem {
    u32 codes, mid_scales, w_scales;  // of the token's chunks, one expert's after the other's
    u32 sums;                         // fp32 [chunks][16 rows]
    u32 parts;                        // fp32 [top_k][16 rows]
    u32 bytes;
};
constexpr MoeFewDownSmem plan_smem(const MoeFewDownSpec& s) {
    const u32 chunks = chunks_of(s);
    MoeFewDownSmem p{};
    p.mid_scales = few_codes_bytes(chunks);
    p.w_scales = p.mid_scales + chunks * 4;
    p.sums = p.w_scales + chunks * 4;
    p.parts = p.sums + chunks * kFewDownRows * 4;
    p.bytes = p.parts + s.combine.top_k * kFewDownRows * 4;
    return p;
}
constexpr const char* why_illegal(const MoeFewDownSpec& s) {
    if (const char* reason = why_illegal(s.combine)) return reason;
    return s.chunks < 1 || chunks_of(s) > kMaxFewChunks ? "1 to 128 chunks of all of a token's experts"
                                                        : nullptr;
}

}  // namespace deep_gemm
