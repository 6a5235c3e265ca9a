// Problem -> candidates -> costed, explained plan. Pure functions: same problem and device, same plan.
// Called by op/gemm.cpp (once per problem, then cached) and by `explain`.
#pragma once

#include <deep_gemm/spec/gemm.h>

#include <string>
#include <string_view>
#include <vector>

#include "plan/device.h"

namespace deep_gemm::plan {

struct GemmProblem {
    GroupMode groups = GroupMode::dense;
    Format ab = Format::fp8_e4m3;
    Format d = Format::bf16;
    ScaleB scale_b = ScaleB::per_128x128;
    bool accumulate = false;
    bool d_tma = true;        // D's address and row stride are multiples of 16 bytes
    u32 m = 0;                // rows of A (of one group if masked)
    u32 n = 0, k = 0;
    u32 num_groups = 1;
    u32 expected_m = 0;       // rows a group is expected to hold (masked, psum); 0: m / num_groups (masked: m)
    u32 num_sms = 0;          // 0: all of the device

    friend bool operator==(const GemmProblem&, const GemmProblem&) = default;
};

// Microseconds, term by term. Terms that overlap are combined by total_us(), in plan/gemm.cpp.
struct GemmCost {
    float dram_us = 0;      // weights, activations and output once, at the device's read bandwidth
    float l2_us = 0;        // every block's operand tiles through L2, multicast counted once
    float mma_us = 0;       // tensor cores, padding included
    float promote_us = 0;   // fp32 accumulation of scaled partial sums, what wgmma does not hide
    float wave_us = 0;      // what the last, partly filled wave of blocks wastes
    float fill_us = 0;      // first bytes to first wgmma, epilogue and split-K hand-over of the last block
    float launch_us = 0;
    [[nodiscard]] float total_us() const;
};

struct GemmCandidate {
    GemmSpec spec;
    const char* rejected = nullptr;  // nullptr: legal, costed
    GemmCost cost;
};

struct GemmPlan {
    GemmSpec spec;
    u32 grid_blocks = 0;             // CTAs; a multiple of the cluster size
    GemmCost cost;
};

// Fails (ErrorKind::value) only where no candidate is legal. `considered`, if given, receives every candidate.
[[nodiscard]] GemmPlan plan_gemm(const GemmProblem& problem, const DeviceModel& device,
                                 std::vector<GemmCandidate>* considered = nullptr);
// The launch that goes with a forced spec (tests, tuners).
[[nodiscard]] GemmPlan plan_for_spec(const GemmProblem& problem, const GemmSpec& spec, const DeviceModel& device);

// Every spec plan_gemm can choose for this (n, k) over all m: what warm-up compiles.
[[nodiscard]] std::vector<GemmSpec> enumerate_specs(GemmProblem problem, u32 max_m, const DeviceModel& device);

// "gemm m=64 n=7168 k=2048 a=fp8_e4m3 d=bf16", "gemm masked groups=8 m=512 expected_m=40 n=4096 k=7168 ...".
[[nodiscard]] std::string to_string(const GemmProblem& problem);
[[nodiscard]] GemmProblem parse_problem(std::string_view text);  // ErrorKind::value names the bad word
// The table `explain` prints: the best `rows` candidates with their terms, the rejected ones grouped by sentence.
[[nodiscard]] std::string explain(const GemmProblem& problem, const DeviceModel& device, u32 rows = 12);

}  // namespace deep_gemm::plan
