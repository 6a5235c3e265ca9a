// wgmma.mma_async, executed at once on plain data: one warpgroup, D (64 x n) = +-A (64 x k) B (n x k)^T (+
// D). k is 32 bytes: 32 elements of 8 bits, 16 of 16 bits, 8 of tf32. When it runs is the caller's decision;
// it reads shared memory as it is at that moment, which is what makes a stage released too early show.
#pragma once

#include "emulator/tensor/accumulate.h"
#include "emulator/tensor/descriptor.h"
#include "emulator/tensor/fragment.h"

namespace deep_gemm::emulator {

constexpr u32 kWgmmaRows = 64;
constexpr u32 kWgmmaKBytes = 32;

struct WgmmaShape {
    u32 n = 0;  // multiple of 8, 8 to 256
    ElementType a = ElementType::bf16, b = ElementType::bf16;
    Major a_major = Major::k, b_major = Major::k;  // imm-trans-a / -b = 1 is Major::mn, for 16-bit types only
    bool negate_a = false, negate_b = false;       // imm-scale-a / -b = -1
    AccumulatorType accumulator = AccumulatorType::f32;
};

struct WgmmaOperands {
    std::span<const std::byte> smem;              // of the CTA, indexed by shared offset
    u64 a_descriptor = 0;                         // used when a_registers is empty
    std::span<const std::byte> a_registers = {};  // 64 x 32 bytes, row-major (fragment.h: a_fragment_*)
    u64 b_descriptor = 0;
    bool scale_d = true;  // false: D = A B^T
};

// Throws for a combination of types, n and majors that the instruction does not have.
void check_wgmma(const WgmmaShape& shape);

// `d` is [64][n]. An FP16 accumulator is passed as the fp32 values it holds.
void wgmma(const WgmmaShape& shape, const WgmmaOperands& operands, float* d, AccumulatorMode mode);
// s8 / u8 inputs; `saturate` clamps the sum to int32.
void wgmma_integer(const WgmmaShape& shape, const WgmmaOperands& operands, i32* d, bool saturate);

}  // namespace deep_gemm::emulator
