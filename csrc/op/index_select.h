// The indexer of few tokens in one launch. The rules of op/model_ops.h hold.
#pragma once

#include "op/cache_rows.h"

namespace deep_gemm::op {

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
