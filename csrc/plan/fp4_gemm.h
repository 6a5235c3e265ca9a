// Plans of the FP8 x FP4 family: problem -> candidates -> costed, explained plan, as plan/gemm.h. How many
// tokens an expert gets is not known on the host: costs are expectations over a Poisson distribution around
// its mean.
#pragma once

#include <deep_gemm/spec/fp4_gemm.h>

#include <string>
#include <string_view>
#include <vector>

#include "plan/device.h"

namespace deep_gemm::plan {

struct Fp4Problem {
    GroupMode groups = GroupMode::dense;
    Fp4Form form = Fp4Form::mx_e4m3;
    Format a = Format::fp8_e4m3;  // or bf16, without scales
    bool split = false;
    Format d = Format::bf16;
    bool accumulate = false;
    bool per_token = false;          // one scale of A for each token
    bool by_32 = false;              // one for each 32 along K, not 128
    bool bf16_products = false;      // bf16 tokens: never as two E4M3 terms
    bool fast_accumulation = false;  // sums may stay in the tensor core over all of K, where a kernel can
    u32 m = 0;                       // rows of A (of one group if masked; slots if gathered)
    u32 n = 0, k = 0;
    u32 num_groups = 1;
    u32 expected_m = 0;  // mean rows of a group (masked, psum); 0: m / num_groups (masked: m)
    u32 num_sms = 0;     // 0: all of the device

    friend bool operator==(const Fp4Problem&, const Fp4Problem&) = default;
};

// Microseconds, term by term.
struct Fp4Cost {
    float dram_us = 0;  // weights once, activations, output
    float fill_us = 0;  // the weights of the busiest SM, at what one SM can pull
    float l2_us = 0;    // weights and every item's tokens through L2
    float math_us = 0;  // decoding, wgmma and promotion of the busiest SM
    float launch_us = 0;
    float arrange_us = 0;  // the kernels before: two terms of bf16 tokens; wide: activations put in order
    float total_us =
        0;  // launch + arrange + largest of memory (dram, fill), l2 and math + a share of the others
};

struct Fp4Candidate {
    Fp4GemmSpec spec;
    const char* rejected = nullptr;  // nullptr: legal, costed
    Fp4Cost cost;
};

struct Fp4Plan {
    Fp4GemmSpec spec;
    u32 grid_blocks = 0;
    Fp4Cost cost;
};

// Fails (ErrorKind::value) only where no candidate is legal. `considered`, if given, receives every
// candidate.
[[nodiscard]] Fp4Plan plan_fp4_gemm(const Fp4Problem& problem, const DeviceModel& device,
                                    std::vector<Fp4Candidate>* considered = nullptr);
// The launch that goes with a forced spec. Fails if the spec cannot serve the problem.
[[nodiscard]] Fp4Plan plan_for_spec(const Fp4Problem& problem, const Fp4GemmSpec& spec,
                                    const DeviceModel& device);
// nullptr, or why a legal spec is no kernel for the problem.
[[nodiscard]] const char* why_unfit(const Fp4Problem& problem, const Fp4GemmSpec& spec,
                                    const DeviceModel& device);
[[nodiscard]] Fp4Cost cost_of(const Fp4Problem& problem, const Fp4GemmSpec& spec, const DeviceModel& device);

// Rows of A that are multiplied for each token: 2 where bf16 tokens are cheaper as two E4M3 terms and the output is
// bf16, whose rounding is coarser than their sums'. The same for all batches, and so are a row's bits.
[[nodiscard]] u32 token_terms_of(const Fp4Problem& problem, const DeviceModel& device);

// "fp4_gemm gathered groups=256 m=384 n=4096 k=4096 form=mx_e4m3 d=bf16"
[[nodiscard]] std::string to_string(const Fp4Problem& problem);
[[nodiscard]] std::string to_string(const Fp4GemmSpec& spec);
[[nodiscard]] Fp4Problem parse_fp4_problem(std::string_view text);
[[nodiscard]] std::string explain(const Fp4Problem& problem, const DeviceModel& device, u32 rows = 12);

}  // namespace deep_gemm::plan
