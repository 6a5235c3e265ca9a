// The tensor maps of a GEMM: what its kernels read and write by TMA, all of rank 3 with groups outermost.
// Encoded once per thread and tensor, then found again by comparison: an encoding costs ten times a look-up.
#pragma once

#include "op/gemm_call.h"

namespace deep_gemm::op {

// Matrices: columns innermost, boxes of 128 bytes by `box_rows` rows in one 128-byte swizzle atom.
[[nodiscard]] const TensorMap& matrix_map(Device& device, const Operand& matrix, Format format, u32 box_rows);

// Scales of A: boxes of `block_m` rows by kScaleChunk columns, whichever of the two is contiguous innermost.
[[nodiscard]] const TensorMap& scale_map(Device& device, const Operand& scales, ScaleALoad load, u32 block_m);
// The load that these strides allow.
[[nodiscard]] ScaleALoad scale_load_of(const Operand& scales);

}  // namespace deep_gemm::op
