// A mixture of experts for few tokens (spec/moe_few.h): two launches, with the bits of grouping the tokens by
// expert, where no sum is cut in parts.
#pragma once

#include "op/fused_moe.h"

namespace deep_gemm::op {

// (token, expert) pairs up to which this is the faster way, measured on an H200: with experts of 4096 x 2048
// in MXFP4, 18 pairs take 75 us and grouped ones 81, 24 take 97 and 88; of 2048 x 768 in FP8, 128 take 165
// and 294. More were not looked at.
inline constexpr i64 kFewFp4Pairs = 20, kFewFp8Pairs = 128;
[[nodiscard]] inline i64 few_pairs_of(const std::variant<MoeFp8Weights, MoeFp4Weights>& weights) {
    return std::holds_alternative<MoeFp4Weights>(weights) ? kFewFp4Pairs : kFewFp8Pairs;
}

// As FusedMoeArguments. All of it is checked already, or made by who calls.
struct MoeFewArguments {
    TensorView x = {}, x_scale = {};  // bf16 or fp32 [T, hidden], or E4M3 with scales [T, hidden / 128]
    TensorView topk_ids = {}, topk_weights = {};  // packed
    std::variant<MoeFp8Weights, MoeFp4Weights> weights;
    TensorView mid = {};  // memory for bf16 [T * top_k, intermediate]
    TensorView shared = {}, out = {};
    u32 first_expert = 0;
    std::optional<float> swiglu_limit;
    bool weight_before_down = true;
    ScaleRule rule = ScaleRule::exact;
    void* stream = nullptr;
};

// Whether there are kernels for these weights, on this device, and so many experts a token.
[[nodiscard]] bool serves_few(const driver::Device& device,
                              const std::variant<MoeFp8Weights, MoeFp4Weights>& weights, i64 top_k);
// The two launches, the second right after the first (or few_up_project(), op/moe_joined.h): it starts before
// that has finished.
void moe_few_up(const MoeFewArguments& arguments);
void moe_few_down(const MoeFewArguments& arguments);

}  // namespace deep_gemm::op
