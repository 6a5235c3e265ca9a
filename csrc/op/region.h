// The bytes that a tensor takes, and whether two share some.
#pragma once

#include "op/api.h"

namespace deep_gemm::op {

// Bytes of one operand, row after row, group after group.
struct Region {
    u64 address = 0, bytes = 0;           // first byte, and from there to the last
    u64 row_bytes = 0, stride_bytes = 0;  // stride 0: not in rows

    friend bool operator==(const Region&, const Region&) = default;
};
[[nodiscard]] Region region_of(const TensorView& t);
[[nodiscard]] bool overlap(const Region& x, const Region& y);

}  // namespace deep_gemm::op
