// The rows that the indexer chooses. The rules of op/model_ops.h hold.
#pragma once

#include "op/api.h"

namespace deep_gemm::op {

// The k largest of the first (position + 1) / ratio scores of each row, exactly: ties to the lower index, NaN
// counts as lowest. peaks, which index_scores() has left for these scores: only what may be chosen is read, the
// result is the same. picks int32 [t, k]: ascending indices, then -1. Idle rows: all -1.
struct TopKArguments {
    TensorView scores, positions, picks, peaks = {};
    u32 ratio = 4;
    void* stream = nullptr;
};
void top_k(const TopKArguments& arguments);

}  // namespace deep_gemm::op
