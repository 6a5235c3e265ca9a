// The lightning indexer: scores of compressed rows. The rules of op/model_ops.h hold.
#pragma once

#include "op/cache_rows.h"

namespace deep_gemm::op {

// scores[:, w] = scale * sum over r, in order, of weights[:, r] relu(query[:, r] . rows[w]) for
// w < (position + 1) / ratio; other entries are left as they are.
//   query real [t, r, 128]; weights fp32 [t, r]; rows real or FP4, n of a sequence; scores fp32 [t, n]
//   peaks int32 [t, ceil(n / 16)] or absent: for top_k(), the largest of each 16 scores. Where
//   index_leaves_peaks() of query and rows: bf16 queries of 128 channels, rows bf16 or FP4, starting at
//   multiples of 16 bytes
struct IndexScoreArguments {
    TensorView query, weights;
    LatentRows rows;
    TensorView positions, sequences, scores;
    TensorView peaks = {};
    u32 ratio = 4;
    // Rows that see at most so many leave their scores as they are: top_k needs none then.
    u32 only_above = 0;
    float scale = 1;
    void* stream = nullptr;
};
void index_scores(const IndexScoreArguments& arguments);
// Whether it can leave peaks; the same for any number of tokens.
[[nodiscard]] bool index_leaves_peaks(const IndexScoreArguments& arguments);

// Whether tensor cores serve these queries and rows; the same for any number of tokens.
[[nodiscard]] bool index_takes_mma(const TensorView& query, const TensorView& rows, Format row_format);

}  // namespace deep_gemm::op
