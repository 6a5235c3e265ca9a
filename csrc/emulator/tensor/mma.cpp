#include "emulator/tensor/mma.h"

#include "base/error.h"

#include <algorithm>
#include <array>
#include <limits>

namespace deep_gemm::emulator {

namespace {

struct Operands {
    DecodedOperand a, b;
};

Operands decode(const MmaShape& shape, std::span<const std::byte> a, std::span<const std::byte> b) {
    DG_CHECK(shape.k_bytes == 16 || shape.k_bytes == 32, emulator,
             "mma.sync: k of {} bytes, expected 16 or 32", shape.k_bytes);
    Operands operands;
    const u32 k = shape.k_bytes / element_bytes(shape.a);
    decode_operand(shape.a, kMmaRows, k, OperandOrder::row_major, a, operands.a);
    decode_operand(shape.b, kMmaColumns, k, OperandOrder::k_major, b, operands.b);
    return operands;
}

}  // namespace

void mma(const MmaShape& shape, std::span<const std::byte> a, std::span<const std::byte> b, float* d,
         AccumulatorMode mode) {
    const Operands operands = decode(shape, a, b);
    accumulate({.mode = mode, .type = shape.accumulator, .fp8 = false}, operands.a, operands.b, d);
}

void mma_integer(const MmaShape& shape, std::span<const std::byte> a, std::span<const std::byte> b, i32* d,
                 bool saturate) {
    const Operands operands = decode(shape, a, b);
    std::array<float, kMmaRows * kMmaColumns> products{};
    accumulate({.mode = AccumulatorMode::exact, .scale_d = false}, operands.a, operands.b, products.data());
    for (u32 i = 0; i < products.size(); ++i) {
        const i64 sum = i64{d[i]} + static_cast<i64>(products[i]);
        const i64 clamped =
            std::clamp<i64>(sum, std::numeric_limits<i32>::min(), std::numeric_limits<i32>::max());
        d[i] = static_cast<i32>(saturate ? clamped : sum);
    }
}

}  // namespace deep_gemm::emulator
