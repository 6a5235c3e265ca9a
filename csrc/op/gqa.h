// Grouped-query attention. The rules of op/model_ops.h hold.
#pragma once

#include "op/api.h"

#include <vector>

namespace deep_gemm::op {

// Causal grouped-query attention: the query at position p sees rows 0 to p of its sequence.
//   q, out  real [t, r, d], d = 32, 64 or 128; keys, values real [s, n, kv heads, d], one format; r a
//           multiple of kv heads; out may be q. Idle rows: zeros
//   table   int32 [s, m] or absent: keys and values are pages [pages, n, kv heads, d] of all sequences,
//           page i of a sequence is page table[s, i]; n a multiple of 128
//   records fp32 [t, r, ceil(rows / 128), d + 4] for a sequence's n or m n rows: memory for what is between
//           the two kernels
//   codes, scales  fp8_e4m3 [t, r, d], fp32 [t, r], or absent: what quantize() makes of out [t, r d] of bf16,
//           d = 128, with ScaleRule::exact
struct GqaArguments {
    TensorView q, keys, values, positions, sequences, records, out, table = {};
    TensorView codes = {}, scales = {};
    float scale = 0;  // 0: d^-0.5
    void* stream = nullptr;
};
[[nodiscard]] std::vector<i64> gqa_records_shape(i64 tokens, i64 heads, i64 rows, i64 d);
void gqa_attention(const GqaArguments& arguments);

}  // namespace deep_gemm::op
