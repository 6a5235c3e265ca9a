// Problem -> candidates -> costed, explained plan. Pure functions: same problem and device, same plan.
// Called by op/ (once per problem, then cached) and by `explain`.
#pragma once

#include <deep_gemm/spec/gemm.h>

#include <string>
#include <string_view>
#include <vector>

#include "plan/device.h"

namespace deep_gemm::plan {

// Rows of A and of B: what sched/gemm_blocks.h divides exactly, with the smallest blocks.
inline constexpr u32 kMaxGemmSide = u32{1} << 30;

struct GemmProblem {
    GroupMode groups = GroupMode::dense;
    Format ab = Format::fp8_e4m3;
    Format d = Format::bf16;
    ScaleB scale_b = ScaleB::per_128x128;
    bool accumulate = false;
    bool d_tma = true;  // the addresses of D and C and the strides of D are multiples of 16 bytes
    u32 m = 0;          // rows of A (of one group if masked)
    u32 n = 0, k = 0;
    u32 num_groups = 1;
    u32 expected_m = 0;  // rows a group is expected to hold (masked, psum); 0: m / num_groups (masked: m)
    u32 num_sms = 0;     // 0: all of the device
    Major a_major = Major::k, b_major = Major::k;

    friend bool operator==(const GemmProblem&, const GemmProblem&) = default;
};

// Microseconds, term by term.
struct GemmCost {
    float dram_us = 0;  // weights, activations and output once; a short ring cannot keep DRAM busy
    float l2_us = 0;    // every block's operand tiles through L2, multicast counted once
    float fill_us = 0;  // the same tiles into the shared memory of one SM
    float math_us =
        0;  // the slowest of tensor core, shared memory and a warpgroup's own chain, padding included
    float epilogue_us = 0;  // last block to memory, with the exchange of a split K
    float launch_us = 0;
    float total_us = 0;  // launch + epilogue + largest of the four + a share of the others
};

struct GemmCandidate {
    GemmSpec spec;
    const char* rejected = nullptr;  // nullptr: legal, costed
    GemmCost cost;
};

struct GemmPlan {
    GemmSpec spec;
    u32 grid_blocks = 0;  // CTAs; a multiple of the cluster size
    GemmCost cost;
};

// Fails (ErrorKind::value) only where no candidate is legal. `considered`, if given, receives every
// candidate.
[[nodiscard]] GemmPlan plan_gemm(const GemmProblem& problem, const DeviceModel& device,
                                 std::vector<GemmCandidate>* considered = nullptr);
// The launch that goes with a forced spec (tests, tuners). Fails if the spec cannot serve the problem.
[[nodiscard]] GemmPlan plan_for_spec(const GemmProblem& problem, const GemmSpec& spec,
                                     const DeviceModel& device);

// Every spec plan_gemm can choose for this (n, k) with 1 to max_m rows: what warm-up compiles.
[[nodiscard]] std::vector<GemmSpec> enumerate_specs(GemmProblem problem, u32 max_m,
                                                    const DeviceModel& device);

// nullptr, or why this spec cannot serve the problem though it is a legal kernel.
[[nodiscard]] const char* why_unfit(const GemmProblem& problem, const GemmSpec& spec);
// nullptr, or why it serves the problem but is not worth costing. A forced spec may be poor.
[[nodiscard]] const char* why_poor(const GemmProblem& problem, const GemmSpec& spec);
[[nodiscard]] GemmCost cost_of(const GemmProblem& problem, const GemmSpec& spec, const DeviceModel& device);

// "gemm m=64 n=7168 k=2048 ab=fp8_e4m3 d=bf16 scale_b=per_128x128", "gemm masked groups=8 m=512 expected_m=40
// n=4096 ...".
[[nodiscard]] std::string to_string(const GemmProblem& problem);
[[nodiscard]] std::string to_string(const GemmSpec& spec);
[[nodiscard]] GemmProblem parse_problem(std::string_view text);  // ErrorKind::value names the bad word
// The table `explain` prints: the best `rows` candidates with their terms, the rejected ones grouped by
// sentence.
[[nodiscard]] std::string explain(const GemmProblem& problem, const DeviceModel& device, u32 rows = 12);

}  // namespace deep_gemm::plan
