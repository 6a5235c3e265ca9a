// mma.sync.m16n8: one warp, D (16 x 8) = A (16 x k) B (8 x k)^T + C, on fragments already gathered to rows
// with the maps of fragment.h. k is 16 or 32 bytes. On Hopper, FP8 mma.sync has no tensor core of its own: it
// runs on the 16-bit one, hence with the long accumulator.
#pragma once

#include "emulator/tensor/accumulate.h"
#include "emulator/tensor/fragment.h"

namespace deep_gemm::emulator {

constexpr u32 kMmaRows = 16, kMmaColumns = 8;

struct MmaShape {
    u32 k_bytes = 32;
    ElementType a = ElementType::bf16, b = ElementType::bf16;
    AccumulatorType accumulator = AccumulatorType::f32;
};

// `a` is [16][k_bytes], `b` is [8][k_bytes], `d` is [16][8] and holds C on entry.
void mma(const MmaShape& shape, std::span<const std::byte> a, std::span<const std::byte> b, float* d,
         AccumulatorMode mode);
void mma_integer(const MmaShape& shape, std::span<const std::byte> a, std::span<const std::byte> b, i32* d,
                 bool saturate);

}  // namespace deep_gemm::emulator
