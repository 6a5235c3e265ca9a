// Choice of experts: a CTA a token, whose first warp chooses.
#pragma once

#include <deep_gemm/spec/format.h>

namespace deep_gemm {

enum class RouterScore : u8 {
    sqrt_softplus,  // sqrt(log(1 + e^logit))
    softmax,        // over all experts
};
constexpr const char* name_of(RouterScore score) {
    return score == RouterScore::softmax ? "softmax" : "sqrt_softplus";
}

constexpr u32 kRouterThreads = 256;
constexpr u32 kRouterMaxExperts = 1024;
constexpr u32 kRouterMaxChoices = 32;

struct RouterSpec {
    RouterScore score = RouterScore::sqrt_softplus;
    bool normalize = true;
    bool hash = false;  // experts come from a table by token id
    bool bias = false;  // added for the choice only

    friend constexpr bool operator==(const RouterSpec&, const RouterSpec&) = default;
};
template <typename Visitor>
constexpr void visit_fields(Visitor&& visit, const RouterSpec& s) {
    visit("score", s.score);
    visit("normalize", s.normalize);
    visit("hash", s.hash);
    visit("bias", s.bias);
}

struct RouterSmem {
    u32 scores, keys;  // a float and a word an expert
    u32 bytes;
};
constexpr RouterSmem plan_smem(const RouterSpec&) {
    return {.scores = 0, .keys = kRouterMaxExperts * 4, .bytes = kRouterMaxExperts * 8};
}

struct RouterParams {
    const float* logits;  // [rows, experts]
    u64 logits_stride;
    const float* bias;  // [experts]
    const i32* table;   // [vocabulary, choices]
    const i32* tokens;  // [rows]
    i32* experts;       // [rows, choices]
    float* weights;     // [rows, choices]
    u32 num_experts, choices, vocabulary;
    float scale;
};

}  // namespace deep_gemm
