// D = A B^T + D for one tensor-core instruction, in one of two arithmetics.
//
// AccumulatorMode::hopper (default). What public studies found on H100, in the form of the bit-accurate
// models of arXiv 2511.10909 and 2512.07004 (the short FP8 accumulator is also in the DeepSeek-V3 report,
// section 3.5.2): all K products of the instruction and the accumulator are one fused sum.
//   1. e = the largest of (exponent of a + exponent of b) over the products that are not zero, and exponent
//   of d
//   2. each product, and d, is truncated toward zero to F bits below 2^e; their sum is exact
//   3. the sum is truncated toward zero to R fraction bits
//        FP8 inputs:         F = 13, R = 13   ("FP22": 1 + 8 + 13 bits, kept in an fp32 register)
//        F16, BF16, TF32:    F = 25, R = 23
//   An FP16 destination is rounded to nearest even from the sum of step 2.
// So without promotion to fp32 the error of an FP8 GEMM grows with K, while sums whose bits fit in 14 stay
// exact.
//
// AccumulatorMode::exact. fp32 fused multiply-adds in the order of k: what the same loop gives on CUDA cores.
#pragma once

#include "emulator/tensor/operand.h"

namespace deep_gemm::emulator {

enum class AccumulatorMode : u8 { hopper, exact };
enum class AccumulatorType : u8 { f32, f16 };

struct AccumulateOptions {
    AccumulatorMode mode = AccumulatorMode::hopper;
    AccumulatorType type = AccumulatorType::f32;
    bool fp8 = false;     // selects F and R
    bool negate = false;  // of the products
    bool scale_d = true;  // false: D = A B^T
};

// `a` is row-major, `b` k-major; `d` is [a.rows][b.rows], dense.
void accumulate(const AccumulateOptions& options, const DecodedOperand& a, const DecodedOperand& b, float* d);

}  // namespace deep_gemm::emulator
