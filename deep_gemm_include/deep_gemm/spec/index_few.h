// Lightning indexer of few tokens, all in one: queries as projected, their rotation and transform, the scores of
// compressed rows, and which of them are the largest. A cluster has a token: each CTA prepares some of the heads
// for all, scores some of the rows, and the first one chooses. The bits are those of rope, index_mma and top_k.
#pragma once

#include <deep_gemm/spec/indexer.h>

namespace deep_gemm {

constexpr u32 kIndexFewThreads = 256, kIndexFewWarps = kIndexFewThreads / 32;
constexpr u32 kIndexFewCtas = 16;    // at most
constexpr u32 kIndexFewRows = 2048;  // of a token at most: with 4096, three launches take 1 us less (H200)

struct IndexFewSpec {
    Format rows = Format::bf16;
    RowFinish finish = RowFinish::none;

    friend constexpr bool operator==(const IndexFewSpec&, const IndexFewSpec&) = default;
};
template <typename Visitor>
constexpr void visit_fields(Visitor&& visit, const IndexFewSpec& s) {
    visit("rows", s.rows);
    visit("finish", s.finish);
}
constexpr TopKSpec choice_of(const IndexFewSpec&) {
    return {.held = kIndexFewRows, .warps = kIndexFewWarps};
}
struct IndexFewSmem {
    u32 choice;  // what choosing needs
    u32 heads;   // bf16 [64, pitch], then fp32 [64]: their weights
    u32 bytes;
};
constexpr IndexFewSmem plan_smem(const IndexFewSpec& s) {
    IndexFewSmem p{};
    p.heads = static_cast<u32>(align_up(u64{plan_smem(choice_of(s)).bytes}, 128));
    p.bytes = p.heads + plan_smem(IndexMmaSpec{}).bytes;
    return p;
}

struct IndexFewParams {
    IndexScoreParams scores;  // whose scores and peaks are none
    const float* frequencies;
    i32* picks;  // [tokens, k], ascending; -1 beyond the visible ones
    u32 dims, k;
    u32 ctas;  // of a token
};

}  // namespace deep_gemm
