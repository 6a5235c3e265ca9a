// What attention does between its matrix products, in one launch each: attention_rows, everything that needs
// the projections of the block's input (norm of the low-rank query, the token's cache row, the compressors);
// attention_heads, everything that needs the queries (norm and rotation, and the indexer's transform). The
// parts do not meet: each has a range of blocks, and computes what its own kernel does.
#pragma once

#include <deep_gemm/spec/compressor.h>
#include <deep_gemm/spec/norm.h>

namespace deep_gemm {

static_assert(kNormThreads == kLatentThreads);

struct AttentionRowsSpec {
    NormSpec norm;
    LatentSpec write;
    CompressorSpec main, index;
    bool has_main = false, has_index = false;

    friend constexpr bool operator==(const AttentionRowsSpec&, const AttentionRowsSpec&) = default;
};
template <typename Visitor>
constexpr void visit_fields(Visitor&& visit, const AttentionRowsSpec& s) {
    visit("norm", s.norm);
    visit("write", s.write);
    visit("main", s.main);
    visit("index", s.index);
    visit("has_main", s.has_main);
    visit("has_index", s.has_index);
}
constexpr LatentSmem plan_smem(const AttentionRowsSpec&) {
    return plan_smem(LatentSpec{});
}

struct AttentionRowsParams {
    NormParams norm;
    LatentWriteParams write;
    CompressorParams main, index;
    u32 norm_end, write_end, main_end;  // blocks of a part and those before it
};

struct AttentionHeadsSpec {
    LatentSpec query, index;
    bool has_index = false;

    friend constexpr bool operator==(const AttentionHeadsSpec&, const AttentionHeadsSpec&) = default;
};
template <typename Visitor>
constexpr void visit_fields(Visitor&& visit, const AttentionHeadsSpec& s) {
    visit("query", s.query);
    visit("index", s.index);
    visit("has_index", s.has_index);
}
constexpr LatentSmem plan_smem(const AttentionHeadsSpec&) {
    return plan_smem(LatentSpec{});
}

struct AttentionHeadsParams {
    RopeParams query, index;
    u32 query_end;
};

}  // namespace deep_gemm
