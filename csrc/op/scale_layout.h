// Scales in MN-major layout, on their device: what DeepGEMM's layout helpers do
// (python/deep_gemm/utils/layout.py). Asynchronous, capturable, allocates nothing.
#pragma once

#include "op/api.h"

namespace deep_gemm {

// sf: fp32 [mn, columns] or [batches, mn, columns], any strides. out: of the same rank, rows are neighbours.
//   transpose_fp32         out fp32, the shape of sf
//   pack_fp32_into_ue8m0   out int32 [..., mn, words]: exponents of four columns, words = ceil(columns / 4).
//   With
//                          group_ks, int32 [groups], columns are those of one group after another, ceil(k /
//                          gran_k) each, no word is of two groups, and the last words that no group has are
//                          0.
// Scales that are packed are powers of two (or 0); of others a GPU keeps the exponent. The emulated device
// looks, unless `gaps` says that some were never written.
struct ScaleLayoutArguments {
    TensorView sf = {}, out = {}, group_ks = {};
    u32 gran_k = 128;
    bool gaps = false;
    void* stream = nullptr;
};

void transpose_fp32(const ScaleLayoutArguments& arguments);
void pack_fp32_into_ue8m0(const ScaleLayoutArguments& arguments);

}  // namespace deep_gemm
