// Plans of the large-batch weight-only kernels: problem -> candidates -> costed plan, as plan/gemm.h. All
// candidates of a problem take the sum of an element in the same order: a plan changes speed and nothing
// else.
#pragma once

#include <deep_gemm/spec/weight_gemm.h>

#include "plan/device.h"

#include <string>
#include <vector>

namespace deep_gemm::plan {

struct WeightProblem {
    Quant w = Quant::fp8_128x128;
    Activation x = Activation::bf16;
    Format y = Format::bf16;
    GemvEpilogue epilogue = GemvEpilogue::none;  // swiglu: two matrices of n rows
    u32 m = 0, n = 0, k = 0;
    bool whole_scales = true;  // see WeightGemmSpec

    friend constexpr bool operator==(const WeightProblem&, const WeightProblem&) = default;
};

// Microseconds, term by term.
struct WeightCost {
    float dram_us = 0;  // W and x once, y
    float fill_us = 0;  // operand tiles of the busiest SM, at what one SM can pull
    float l2_us = 0;    // every block's operand tiles
    float math_us = 0;  // wgmma or decoding of the busiest SM, whichever is longer, and its epilogues
    float launch_us = 0;
    float total_us = 0;  // launch + the largest + a share of the others
};

struct WeightCandidate {
    WeightGemmSpec spec;
    const char* rejected = nullptr;  // nullptr: legal, costed
    WeightCost cost;
};

struct WeightPlan {
    WeightGemmSpec spec;
    u32 grid_blocks = 0;
    WeightCost cost;
};

// `considered`, if given, receives every candidate.
[[nodiscard]] WeightPlan plan_weight_gemm(const WeightProblem& problem, const DeviceModel& device,
                                          std::vector<WeightCandidate>* considered = nullptr);
// The launch that goes with a forced spec. Fails if the spec cannot serve the problem.
[[nodiscard]] WeightPlan plan_for_spec(const WeightProblem& problem, const WeightGemmSpec& spec,
                                       const DeviceModel& device);
[[nodiscard]] WeightCost cost_of(const WeightProblem& problem, const WeightGemmSpec& spec,
                                 const DeviceModel& device);

// "256x128 5 stages of tokens, 3 of weights, 1 CTAs, pairs".
[[nodiscard]] std::string to_string(const WeightGemmSpec& spec);

}  // namespace deep_gemm::plan
