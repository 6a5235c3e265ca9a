// The kernels around the two matrix products of a mixture of experts: grouping what a router chose, the gated
// activation with requantisation, and the sum over a token's experts. No sum depends on another token or on
// timing.
//
//   T tokens, each with top_k experts; a *pair* is t * top_k + j. Pairs whose expert is not one of this
//   device's [first_expert, first_expert + experts), -1 for instance, are skipped. The others get a *slot*:
//   slots are ordered by expert, then by pair. The slots of an expert start at a multiple of `alignment`.
#pragma once

#include <deep_gemm/spec/fp4_gemm.h>
#include <deep_gemm/spec/quantize.h>

namespace deep_gemm {

constexpr u32 kMoeThreads = 256;
constexpr u32 kMoeWarps = kMoeThreads / 32;
constexpr u32 kMaxExperts = 1024;
constexpr u32 kMaxTopK = 16;

// Slots that `pairs` can take, gaps included.
constexpr u64 moe_slots(u64 pairs, u32 experts, u32 alignment) {
    const u64 groups = pairs < experts ? pairs : experts;
    return align_up(pairs + groups * (alignment - 1), u64{alignment});
}

// ---- Grouping: one CTA for each expert, each of which counts all pairs

struct MoeGroupSpec {
    u32 max_experts = 256;  // counters in shared memory

    friend constexpr bool operator==(const MoeGroupSpec&, const MoeGroupSpec&) = default;
};
template <typename Visitor, typename Spec>
requires requires(Spec& s) {
    s.max_experts;
}
constexpr void visit_fields(Visitor&& visit, Spec& s) {
    auto& [max_experts] = s;
    visit("max_experts", max_experts);
}

struct MoeGroupParams {
    const i32* topk_ids;  // [T, top_k]
    i32* offsets;         // [experts + 1]: first slot of each expert, and the number of slots in use
    i32* ends;            // [experts]: end of each expert's tokens (GroupMode::psum)
    Fp4Entry* entries;    // [experts]: experts that have tokens, in order (GroupMode::gathered)
    Fp4ListHead* head;    // their number; counters zero
    i32* slot_pairs;      // [slots]: pair of each slot, -1 in gaps
    i32* slot_tokens;     // [slots]: its token, -1 in gaps
    i32* pair_slots;      // [pairs]: slot of each pair, -1 where it is skipped
    u32 pairs, top_k, experts, first_expert, alignment;
};

struct MoeGroupSmem {
    u32 counts;  // u32 for each expert
    u32 warps;   // u32 for each warp: matches of its segment
    u32 starts;  // two u32 for each warp: partial sums
    u32 bytes;
};
constexpr MoeGroupSmem plan_smem(const MoeGroupSpec& s) {
    MoeGroupSmem p{};
    p.counts = 0;
    p.warps = s.max_experts * 4;
    p.starts = p.warps + kMoeWarps * 4;
    p.bytes = p.starts + kMoeWarps * 8;
    return p;
}
constexpr const char* why_illegal(const MoeGroupSpec& s) {
    return s.max_experts < 1 || s.max_experts > kMaxExperts ? "1 to 1024 experts" : nullptr;
}

// ---- Activation: silu(gate) * up, rounded to bf16; to E4M3 with a scale for 128 channels or for all of a slot's, or
// left so

struct MoeSwigluSpec {
    Format d = Format::fp8_e4m3;  // or bf16
    ScaleRule rule = ScaleRule::exact;
    bool limited = false;    // gate at most `limit`, up within +-limit
    bool weighted = false;   // times the routing weight, before the rounding to bf16
    bool per_token = false;  // E4M3: one scale for a slot, whose channels a CTA has
    u32 token_terms = 1;  // 2, with per_token: what is bf16 becomes two terms, as spec/two_terms.h has them

    friend constexpr bool operator==(const MoeSwigluSpec&, const MoeSwigluSpec&) = default;
};
template <typename Visitor, typename Spec>
requires requires(Spec& s) {
    s.limited;
}
constexpr void visit_fields(Visitor&& visit, Spec& s) {
    auto& [d, rule, limited, weighted, per_token, token_terms] = s;
    visit("d", d);
    visit("rule", rule);
    visit("limited", limited);
    visit("weighted", weighted);
    visit("per_token", per_token);
    visit("token_terms", token_terms);
}

struct MoeSwigluParams {
    const void* h;          // bf16 [slots, 2 * n]: gate, then up
    u8* codes;              // E4M3 or bf16 [slots, n]; two terms: [slots, 2, padded n]
    float* scales;          // E4M3: [slots, ceil(n / 128)]; per_token: [slots]
    const float* weights;   // [pairs]
    const i32* slot_pairs;  // [slots]; negative: the slot is left alone
    const i32* num_slots;   // slots in use
    u32 slots, n;
    float limit;
};
struct MoeSwigluSmem {
    u32 amax;  // per_token: fp32 for each warp
    u32 bytes;
};
constexpr MoeSwigluSmem plan_smem(const MoeSwigluSpec& s) {
    return {.amax = 0, .bytes = s.per_token ? kMoeWarps * 4 : 0};
}
constexpr const char* why_illegal(const MoeSwigluSpec& s) {
    return s.token_terms == 2 && !s.per_token ? "two terms have one scale for a slot" : nullptr;
}

// ---- Combination: D[t] = sum over j of weight * y[slot of (t, j)], in the order of j, plus a shared expert

struct MoeCombineSpec {
    Format d = Format::bf16;
    u32 top_k = 1;
    bool combine_weighted = false;
    bool shared = false;

    friend constexpr bool operator==(const MoeCombineSpec&, const MoeCombineSpec&) = default;
};
template <typename Visitor, typename Spec>
requires requires(Spec& s) {
    s.combine_weighted;
}
constexpr void visit_fields(Visitor&& visit, Spec& s) {
    auto& [d, top_k, combine_weighted, shared] = s;
    visit("d", d);
    visit("top_k", top_k);
    visit("combine_weighted", combine_weighted);
    visit("shared", shared);
}

struct MoeCombineParams {
    const void* y;          // bf16 [slots, n]
    const i32* pair_slots;  // [T, top_k]
    const float* weights;   // [T, top_k]
    const void* shared;     // bf16 [T, n] at shared_stride
    void* d;                // [T, n] at d_stride
    u64 shared_stride, d_stride;
    u32 tokens, n;
};
constexpr NoSmem plan_smem(const MoeCombineSpec&) {
    return {0};
}
constexpr const char* why_illegal(const MoeCombineSpec& s) {
    if (s.d != Format::bf16 && s.d != Format::fp32) return "the output must be bf16 or fp32";
    return s.top_k < 1 || s.top_k > kMaxTopK ? "1 to 16 experts for a token" : nullptr;
}

}  // namespace deep_gemm
