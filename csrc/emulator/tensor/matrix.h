// ldmatrix / stmatrix (.m8n8, .b16): which bytes of which row a register holds. Eight lanes give the row
// addresses of one 8x8 matrix: matrix j takes them from lanes 8j .. 8j + 7; a row is 16 bytes.
//
//   plain    register j, lane l:  row l / 4,             columns 2 (l % 4), 2 (l % 4) + 1   (one 4-byte word)
//   .trans   register j, lane l:  rows 2 (l % 4) + {0, 1}, column l / 4                     (low half, high
//   half)
#pragma once

#include <deep_gemm/spec/types.h>

namespace deep_gemm::emulator {

struct MatrixElement {
    u32 row = 0, column = 0;  // of the 8 x 8 matrix of 16-bit elements
};

constexpr u32 kMatrixRows = 8;
constexpr u32 kMatrixRowBytes = 16;

// The element in half `half` (0 low, 1 high) of a lane's register.
constexpr MatrixElement matrix_element(u32 lane, u32 half, bool transposed) {
    if (transposed) return {.row = 2 * (lane % 4) + half, .column = lane / 4};
    return {.row = lane / 4, .column = 2 * (lane % 4) + half};
}

// The lane whose address names this row of matrix `matrix`.
constexpr u32 matrix_address_lane(u32 matrix, u32 row) {
    return kMatrixRows * matrix + row;
}

// movmatrix .trans on registers: destination half <- source (lane, half).
struct RegisterHalf {
    u32 lane = 0, half = 0;
};
constexpr RegisterHalf movmatrix_source(u32 lane, u32 half) {
    const MatrixElement element = matrix_element(lane, half, true);
    return {.lane = element.row * 4 + element.column / 2, .half = element.column % 2};
}

}  // namespace deep_gemm::emulator
