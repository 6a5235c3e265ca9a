// Latent attention: keys and values in one vector. The rules of op/model_ops.h hold.
#pragma once

#include "op/cache_rows.h"

#include <vector>

namespace deep_gemm::op {

// Latent attention with sinks. The query at position p sees the window rows of positions max(0, p - window +
// 1) to p (at position % ring rows), then compressed rows: those in picks, or all below (p + 1) / ratio. One
// softmax over all of them and the head's sink, in fp32; fixed tile order from the oldest row on.
//   q, out       real [t, r, d], d = 512; out may be q. Idle rows: zeros
//   ring         window rows; compressed rows may be absent (SWA layers)
//   picks        int32 [t, k] or absent; entries outside [0, (p + 1) / ratio) are skipped
//   sinks        fp32 [r] or absent (no sink); +-infinity as in the formula. Like frequencies, they are read
//                before the launch in front has finished: no launch may write them meanwhile
//   frequencies  fp32 [dims / 2, 2] or absent: rotates the last channels of out back at the query's position
struct LatentAttentionArguments {
    TensorView q;
    LatentRows ring, compressed;
    TensorView picks, sinks, frequencies, positions, sequences, out;
    // fp32, latent_records_shape(): memory for what is between two kernels, which serve few tokens faster.
    // Used where q and out are bf16, d = 512 and all rows FP8; the results do not depend on it.
    TensorView records = {};
    u32 window = 128, ratio = 0;
    float scale = 0;  // of q . k; 0: d^-0.5
    // q as projected: the RMS norm of each head (with eps) and the rotation of its last channels come first.
    // Where latent_takes_raw_queries(); needs frequencies.
    bool raw_queries = false;
    float eps = 1e-6f;
    void* stream = nullptr;
};
// Whether the attention of these arguments, which may be few tokens only, does what rope() with norm would do
// to queries. The results are the same bit for bit.
[[nodiscard]] bool latent_takes_raw_queries(const LatentAttentionArguments& arguments);
// Of `tokens` that see at most `rows` rows each.
[[nodiscard]] std::vector<i64> latent_records_shape(i64 tokens, i64 heads, i64 rows);
void latent_attention(const LatentAttentionArguments& arguments);

}  // namespace deep_gemm::op
