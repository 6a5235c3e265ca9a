// A matrix operand after decoding: values as fp32, and for each value the exponent that the tensor core
// aligns by. Rows are the M of A or the N of B; operand A is stored [row][k], operand B transposed, [k][row].
#pragma once

#include <deep_gemm/spec/types.h>

#include <cstddef>
#include <span>
#include <vector>

namespace deep_gemm::emulator {

enum class ElementType : u8 { f16, bf16, tf32, e4m3, e5m2, s8, u8 };

constexpr u32 element_bytes(ElementType type) {
    switch (type) {
        case ElementType::f16:
        case ElementType::bf16: return 2;
        case ElementType::tf32: return 4;
        default: return 1;
    }
}

constexpr bool is_fp8(ElementType type) {
    return type == ElementType::e4m3 || type == ElementType::e5m2;
}
constexpr bool is_integer(ElementType type) {
    return type == ElementType::s8 || type == ElementType::u8;
}

enum class OperandOrder : u8 { row_major, k_major };  // [row][k] for A, [k][row] for B

struct DecodedOperand {
    // The exponent of a zero: below every real sum of two exponents, whatever the other factor is.
    static constexpr i16 kZeroExponent = -4096;
    // Exponents within this range keep products and their alignment inside normal fp32: the fast kernels'
    // domain.
    static constexpr i16 kMinFastExponent = -48, kMaxFastExponent = 60;

    u32 rows = 0, k = 0;
    u32 pitch = 0;  // distance of the outer dimension, in elements; the padding holds zeros
    OperandOrder order = OperandOrder::row_major;
    std::vector<float> values;
    std::vector<i16> exponents;
    std::vector<u8>
        slow_rows;  // non-zero: the row holds NaN, infinity or an exponent outside the fast domain
    bool any_slow = false;

    [[nodiscard]] u32 index(u32 row, u32 at) const {
        return order == OperandOrder::row_major ? row * pitch + at : at * pitch + row;
    }
};

// `bytes` is [rows][k] elements of `type`, dense. fp32 bits of tf32 operands are truncated to 10 mantissa
// bits.
void decode_operand(ElementType type, u32 rows, u32 k, OperandOrder order, std::span<const std::byte> bytes,
                    DecodedOperand& out);

}  // namespace deep_gemm::emulator
