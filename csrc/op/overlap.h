// Memory that operands share. Blocks of an output are written while inputs of others are still read, so the
// two may have no byte in common.
#pragma once

#include "op/gemm_call.h"
#include "op/region.h"

namespace deep_gemm::op {

[[nodiscard]] Region region_of(const Operand& o, Format format);

// Whether groups of a matrix share elements. They do not where they follow each other, nor where they are
// interleaved: each has its columns of every wider row, as in buffer[m, groups, n].transpose(1, 0, 2).
[[nodiscard]] bool groups_overlap(const Operand& o);
// Fails where they do in an output d.
void check_groups_of_d(const char* operation, const Operand& d);

// Fails if the output d shares memory with the input `name`.
void check_apart(const char* operation, const Region& d, const char* name, const Region& input);

}  // namespace deep_gemm::op
