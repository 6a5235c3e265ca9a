// Tensor maps of the matrices that kernels read and write by TMA: rank 3 [groups, rows, columns], boxes of
// 128 bytes along columns in one 128-byte swizzle atom. Encoded once per thread and matrix, then found again
// by comparison.
#pragma once

#include "op/gemm_call.h"

namespace deep_gemm::op {

// The map of `matrix` whose loads or stores move `box_rows` rows.
[[nodiscard]] const TensorMap& matrix_map(Device& device, const Operand& matrix, Format format, u32 box_rows);

}  // namespace deep_gemm::op
