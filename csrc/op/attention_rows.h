// Between the matrix products of attention: several operations in one launch, with their results. They must
// not meet: none reads or writes what another one writes. The rules of op/model_ops.h hold.
#pragma once

#include "op/compressor.h"
#include "op/norm.h"
#include "op/rope.h"

namespace deep_gemm::op {

// What needs the projections of the block's input: the norm of the low-rank query, the token's cache row, the
// compressors.
struct AttentionRowsArguments {
    RmsNormArguments norm;
    LatentWriteArguments write;
    const CompressorArguments* main = nullptr;   // or absent
    const CompressorArguments* index = nullptr;  // or absent
    void* stream = nullptr;                      // of all; theirs do not count
};
void attention_rows(const AttentionRowsArguments& arguments);

// What needs the queries: their norm and rotation, and the indexer's.
struct AttentionHeadsArguments {
    RopeArguments query;
    const IndexQueryArguments* index = nullptr;  // or absent
    void* stream = nullptr;
};
void attention_heads(const AttentionHeadsArguments& arguments);

// What comes before gqa_attention(): rope() of the query, and of the keys, which then go to their cache, and
// the values to theirs. `key` and `keys` have the same x; what becomes of it is undefined.
struct GqaRowsArguments {
    RopeArguments query, key;
    CacheWriteArguments keys, values;
    void* stream = nullptr;  // of all; theirs do not count
};
void gqa_rows(const GqaRowsArguments& arguments);

}  // namespace deep_gemm::op
