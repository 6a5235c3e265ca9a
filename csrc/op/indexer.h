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

// index_query(), index_scores() and top_k() of few tokens in one launch, with the same picks bit for bit.
//   query        bf16 [t, r, 128] as projected, t <= 8, r <= 64
//   rows         bf16 or FP4, with room for at most 2048 of a sequence
//   frequencies  as for index_query(), at most 64 channels; read before the launch in front has finished: no launch
//                may write them meanwhile
//   finish       as for index_query(); weights, positions, sequences, ratio, scale as for index_scores()
//   picks        int32 [t, k] as for top_k(); of a token of no sequence -1
struct IndexSelectArguments {
    TensorView query, frequencies, weights;
    LatentRows rows;
    TensorView positions, sequences, picks;
    RowFinish finish = RowFinish::hadamard_fp4;
    u32 ratio = 4;
    float scale = 1;
    void* stream = nullptr;
};
void index_select(const IndexSelectArguments& arguments);
[[nodiscard]] bool index_select_takes(const IndexSelectArguments& arguments);

}  // namespace deep_gemm::op
