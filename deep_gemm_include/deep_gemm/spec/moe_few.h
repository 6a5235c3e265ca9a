// A mixture of experts for few tokens, in two launches without grouping: each (token, expert) pair reads its
// expert's weights by itself. What each kernel is called with (specs and params), and what both rely on:
//
//   A tile of wgmma has 64 rows of weights and 8 columns. A chunk is 128 columns of K, a unit 16 rows of
//   weights and a chunk. Here the four warps of a warpgroup take units of different chunks, and the 8 columns
//   are 8 chunks of the activation, so that of a warp's 16 x 8 results the 16 of column c % 8 are those of
//   its chunk c. The chunks of a sum are then added in rising order, scaled, by one fma each.
//
// These are the products, sums and roundings of the grouped GEMMs (spec/gemm.h where one CTA has all of K,
// spec/fp4_gemm.h), and of quantize, moe_swiglu and moe_combine (spec/moe.h) around them: the bits are
// theirs.
#pragma once

#include <deep_gemm/spec/fp4_weights.h>
#include <deep_gemm/spec/moe.h>

namespace deep_gemm {

constexpr u32 kFewChunk = 128;  // of K: what a scale of the activations is for
constexpr u32 kFewColumns = 8;  // of wgmma: chunks of one swizzle atom
constexpr u32 kFewAtomBytes = kFewColumns * kFewChunk;
constexpr u32 kFewRows = 16;  // of a unit
constexpr u32 kFewUpThreads = 256, kFewDownThreads = 256;
constexpr u32 kFewUpChannels = kFewRows;  // of a CTA, whose two warpgroups share their gate and up rows
constexpr u32 kMaxFewChunks = 192;        // of an activation in shared memory, or of all of a token's

// How the weights are stored: E4M3 with a scale for 128 x 128, or packed MXFP4 (spec/fp4_weights.h) whose
// blocks all have one run.
struct MoeFewWeightSpec {
    bool fp4 = false;
    Fp4Form form = Fp4Form::mx_e4m3;  // fp4

    friend constexpr bool operator==(const MoeFewWeightSpec&, const MoeFewWeightSpec&) = default;
};
template <typename Visitor>
constexpr void visit_fields(Visitor&& visit, const MoeFewWeightSpec& s) {
    visit("fp4", s.fp4);
    visit("form", s.form);
}
// E4M3: strides of elements and of scales. MXFP4: rows are blocks of 64, in bytes; a scale for each row.
struct MoeFewWeights {
    const u8* data;
    const float* scales;
    u64 stride_expert, stride_row;
    u64 scale_stride_expert, scale_stride_row, scale_stride_chunk;
};

constexpr u32 few_codes_bytes(u32 chunks) {
    return align_up(chunks, kFewColumns) * kFewChunk;
}
// Of what MXFP4 codes decode to, for each exponent (tile/fp4_decode.h).
constexpr u32 few_table_bytes(const MoeFewWeightSpec& w) {
    return w.fp4 ? (fp4_exponents_of(w.form) + 1) * 8 : 0;
}
constexpr const char* why_illegal(const MoeFewWeightSpec& w) {
    return w.fp4 && is_nvfp4(w.form) ? "FP4 weights are MXFP4" : nullptr;
}

// ---- mid[pair] = bf16(silu(w1 x) * (w3 x) (* weight)) of the pair's expert

struct MoeFewUpSpec {
    MoeFewWeightSpec w;
    Format x = Format::bf16;            // or fp32, or fp8_e4m3 with scales
    ScaleRule rule = ScaleRule::exact;  // of what is not E4M3 yet
    u32 chunks = 1;                     // of K
    bool limited = false;               // gate at most `limit`, up within +-limit
    bool weighted = false;              // times the routing weight, before the rounding to bf16

    friend constexpr bool operator==(const MoeFewUpSpec&, const MoeFewUpSpec&) = default;
};
template <typename Visitor>
constexpr void visit_fields(Visitor&& visit, const MoeFewUpSpec& s) {
    visit("w", s.w);
    visit("x", s.x);
    visit("rule", s.rule);
    visit("chunks", s.chunks);
    visit("limited", s.limited);
    visit("weighted", s.weighted);
}
constexpr u32 ctas_per_sm_of(const MoeFewUpSpec& s) {
    return s.w.fp4 ? 3 : 2;
}

struct MoeFewUpParams {
    const void* x;          // [T, chunks * 128] at x_stride
    const float* x_scales;  // E4M3: [T, chunks] at x_scale_stride
    MoeFewWeights w;        // [experts, 2 n, chunks * 128]: gate rows, then up rows
    const i32* topk_ids;    // [T * top_k]
    const float* weights;   // [T * top_k]
    void* mid;              // bf16 [T * top_k, n]
    u64 x_stride, x_scale_stride;
    u32 top_k, first_expert, experts, n;
    float limit;
};

struct MoeFewUpSmem {
    u32 codes;     // E4M3 of x: 8 chunks an atom of 128-byte swizzle
    u32 x_scales;  // fp32 of each chunk
    u32 w_scales;  // E4M3 weights: fp32 of each chunk, of gate and of up
    u32 table;     // MXFP4
    u32 sums;      // fp32 [warpgroups][chunks][16 rows]
    u32 bytes;
};
constexpr MoeFewUpSmem plan_smem(const MoeFewUpSpec& s) {
    MoeFewUpSmem p{};
    p.table = few_codes_bytes(s.chunks);
    p.x_scales = p.table + few_table_bytes(s.w);
    p.w_scales = p.x_scales + s.chunks * 4;
    p.sums = p.w_scales + (s.w.fp4 ? 0 : s.chunks * 8);
    p.bytes = p.sums + kFewUpThreads / 128 * s.chunks * kFewRows * 4;
    return p;
}
constexpr const char* why_illegal(const MoeFewUpSpec& s) {
    if (s.x != Format::bf16 && s.x != Format::fp32 && s.x != Format::fp8_e4m3)
        return "activations are bf16, fp32 or fp8_e4m3";
    if (s.chunks < 1 || s.chunks > kMaxFewChunks) return "1 to 192 chunks of K";
    return why_illegal(s.w);
}

// ---- d[t] = sum over j of bf16(w2 mid[t, j]) (* weight), in the order of j, plus a shared expert

struct MoeFewDownSpec {
    MoeFewWeightSpec w;
    ScaleRule rule = ScaleRule::exact;
    u32 chunks = 1;  // of K, for one expert
    u32 ctas = 2;    // of an SM, at most
    MoeCombineSpec combine;

    friend constexpr bool operator==(const MoeFewDownSpec&, const MoeFewDownSpec&) = default;
};
template <typename Visitor>
constexpr void visit_fields(Visitor&& visit, const MoeFewDownSpec& s) {
    visit("w", s.w);
    visit("rule", s.rule);
    visit("chunks", s.chunks);
    visit("ctas", s.ctas);
    visit("combine", s.combine);
}
constexpr u32 ctas_per_sm_of(const MoeFewDownSpec& s) {
    return s.ctas;
}
// For `blocks` CTAs. Registers have room for three on an SM; where two on each hold all, no SM may take a third: it
// would finish last.
constexpr u32 few_down_ctas(const MoeFewWeightSpec& w, u64 blocks, u32 sms) {
    return w.fp4 && blocks > u64{2} * sms ? 3 : 2;
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
    u32 codes, mid_scales;  // of the token's chunks, one expert's after the other's
    u32 w_scales;           // E4M3 weights: of the same
    u32 table;              // MXFP4
    u32 sums;               // fp32 [chunks][16 rows]
    u32 parts;              // fp32 [top_k][16 rows]
    u32 bytes;
};
constexpr MoeFewDownSmem plan_smem(const MoeFewDownSpec& s) {
    const u32 chunks = chunks_of(s);
    MoeFewDownSmem p{};
    p.table = few_codes_bytes(chunks);
    p.mid_scales = p.table + few_table_bytes(s.w);
    p.w_scales = p.mid_scales + chunks * 4;
    p.sums = p.w_scales + (s.w.fp4 ? 0 : chunks * 4);
    p.parts = p.sums + chunks * kFewRows * 4;
    p.bytes = p.parts + s.combine.top_k * kFewRows * 4;
    constexpr u32 kMoreThanAThird = align_up((227u << 10) / 3 + 1, 128u);
    if (s.w.fp4 && s.ctas == 2 && p.bytes < kMoreThanAThird) p.bytes = kMoreThanAThird;
    return p;
}
constexpr const char* why_illegal(const MoeFewDownSpec& s) {
    if (s.ctas < 2 || s.ctas > 3) return "2 or 3 CTAs an SM";
    if (const char* reason = why_illegal(s.combine)) return reason;
    if (s.chunks < 1 || chunks_of(s) > kMaxFewChunks) return "1 to 192 chunks of all of a token's experts";
    return why_illegal(s.w);
}

}  // namespace deep_gemm
