// What the costs of both FP4 kernels share: what an expert's tokens cost, on average over how many it gets.
#pragma once

#include "plan/fp4_gemm.h"

namespace deep_gemm::plan {

struct Fp4Load {
    float active = 0;   // experts with a token
    float tiles = 0;    // work items per block of weights, all experts
    float columns = 0;  // columns of all those items
    float rows = 0;     // tokens
};

constexpr float kFp4SmBytesPerUs = 40e3f;  // weights one SM pulled, where the others left it enough

// Of the kernel that makes two terms of `rows` bf16 tokens.
[[nodiscard]] float two_terms_us(float rows, float k);

[[nodiscard]] Fp4Load fp4_load_of(const Fp4Problem& problem, const Fp4GemmSpec& spec);

// The cost of the wide kernel and of arranging its activations; cost_of() is the one to call.
[[nodiscard]] Fp4Cost fp4_wide_cost_of(const Fp4Problem& problem, const Fp4GemmSpec& spec,
                                       const DeviceModel& device);

}  // namespace deep_gemm::plan
