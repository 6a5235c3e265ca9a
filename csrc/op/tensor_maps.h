// The tensor maps of a GEMM: what its kernels read and write by TMA, of rank 3 with groups outermost. Encoded
// once per thread and matrix, then found again by comparison: an encoding costs ten times a look-up.
#pragma once

#include "op/gemm_call.h"

namespace deep_gemm::op {

// Columns innermost, boxes of 128 bytes by `box_rows` rows in one 128-byte swizzle atom. The reference holds
// until this thread's next call.
[[nodiscard]] const TensorMap& matrix_map(Device& device, const Operand& matrix, Format format, u32 box_rows);

}  // namespace deep_gemm::op
