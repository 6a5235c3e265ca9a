// Rotary positions. The rules of op/model_ops.h hold.
#pragma once

#include "op/api.h"

#include <deep_gemm/spec/latent.h>

#include <vector>

namespace deep_gemm::op {

// Frequencies of a rotary embedding over `dims` channels: fp32 [dims / 2, 2], each the turns per position as
// the sum of two floats, so that angles stay exact to 2^-24 turns at any position below 2^24. Copy them to
// the device. yarn_factor = 0: no YaRN.
struct RopeFrequencies {
    u32 dims = 64;
    double theta = 10000;
    double yarn_factor = 0, yarn_original_context = 65536, yarn_beta_fast = 32, yarn_beta_slow = 1;
};
[[nodiscard]] std::vector<float> rope_frequencies(const RopeFrequencies& arguments);

// RMS norm of each head, then the rotation of its last `dims` channels. Idle rows: y is left as it is.
//   x, y         real [t, r, d] (y may be x); d a multiple of 4, at most 512; weight real [d] or absent;
//                frequencies fp32 [dims / 2, 2]
//   norm         false: rotate only
//   inverse      rotate back
//   pairs        halves: all d = dims channels, 32, 64 or 128
struct RopeArguments {
    TensorView x, weight, frequencies, positions, y;
    bool norm = false, inverse = false;
    RopePairs pairs = RopePairs::interleaved;
    float eps = 1e-6f;
    void* stream = nullptr;
};
void rope(const RopeArguments& arguments);

// Queries: rotation of the last channels at the row's position, then `finish` (none, hadamard,
// hadamard_fp4).
//   x, y real [t, r, d] (y may be x); d = 32, 64 or 128 for the transforms
struct IndexQueryArguments {
    TensorView x, frequencies, positions, y;
    RowFinish finish = RowFinish::hadamard_fp4;
    void* stream = nullptr;
};
void index_query(const IndexQueryArguments& arguments);

}  // namespace deep_gemm::op
