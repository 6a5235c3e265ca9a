// What comes before an FP4 GEMM, in memory of the call's: bf16 activations made into two E4M3 terms
// (spec/two_terms.h), and activations put in order for the wide kernel (spec/arrange.h).
#pragma once

#include <array>

#include "op/fp4_gemm.h"

namespace deep_gemm::op {

// Of `rows` rows in each group of the problem's.
[[nodiscard]] u64 two_terms_bytes(const plan::Fp4Problem& problem, u64 rows);

// Launches the kernel that writes the terms to `memory`, at a multiple of 128, and makes `gemm` read them there.
struct TwoTerms {
    driver::MemoryRange tokens, scales;
};
// The same where the call has them.
[[nodiscard]] TwoTerms read_two_terms(const Fp4GemmCall& call, Fp4GemmParams& gemm);
[[nodiscard]] TwoTerms split_in_two_terms(const Fp4GemmCall& call, u64 memory, Fp4GemmParams& gemm);

// Of a problem's activations, where a token has that many terms.
[[nodiscard]] u64 arranged_bytes(const plan::Fp4Problem& problem, u32 token_terms);

// Launches the kernel that arranges the activations in `memory`, at a multiple of 128, and describes what it leaves for
// a wide kernel. `gemm` are that kernel's other parameters, `read` the memory where they have the activations and
// their scales.
struct Arranged {
    Fp4WideParams params;
    driver::MemoryRange tokens, scales;
};
[[nodiscard]] Arranged arrange(const Fp4GemmCall& call, const Fp4GemmParams& gemm, u32 token_terms,
                               const std::array<driver::MemoryRange, 2>& read, u64 memory);

}  // namespace deep_gemm::op
