// Lightning indexer: scores of compressed rows. The choice of the largest: spec/top_k.h.
#pragma once

#include <deep_gemm/spec/latent.h>
#include <deep_gemm/spec/top_k.h>

namespace deep_gemm {

constexpr u32 kIndexThreads = 128;
constexpr u32 kIndexRowsOfWarp = 8;
constexpr u32 kIndexRowsOfBlock = kIndexThreads / 32 * kIndexRowsOfWarp;
constexpr u32 kIndexMaxChannels = 128;  // four a lane

struct IndexScoreSpec {
    Format query = Format::fp32, rows = Format::fp32;

    friend constexpr bool operator==(const IndexScoreSpec&, const IndexScoreSpec&) = default;
};
template <typename Visitor>
constexpr void visit_fields(Visitor&& visit, const IndexScoreSpec& s) {
    visit("query", s.query);
    visit("rows", s.rows);
}
struct IndexSmem {
    u32 bytes = 0;
};
constexpr IndexSmem plan_smem(const IndexScoreSpec&) {
    return {};
}

struct IndexScoreParams {
    View query;            // [tokens, heads, d]
    const float* weights;  // [tokens, heads]
    u64 weights_stride;
    LatentView rows;
    const i32* positions;
    const i32* sequences;  // or null
    float* scores;         // [tokens, rows]
    u64 scores_stride;
    u32* peaks;  // or null: [tokens, ceil(rows / kScoresOfPeak)]; on tensor cores
    u64 peaks_stride;
    u32 tokens, heads, d, ratio, only_above;
    float scale;
    u32 blocks;  // of a token, on tensor cores: they take turns along its rows
};

// The same on tensor cores: bf16 queries of 128 channels, rows bf16 or FP4. A warp has 16 rows, all heads. A
// score is the sum over heads in an order that depends on their number alone: a lane has heads 8 i + 2 (lane
// % 4) and the next, in order of i; then the four lanes are added pairwise.
constexpr u32 kIndexMmaThreads = 128;
constexpr u32 kIndexMmaWarpRows = 16;
constexpr u32 kIndexMmaRows = kIndexMmaThreads / 32 * kIndexMmaWarpRows;
static_assert(kIndexMmaWarpRows == kScoresOfPeak, "a warp finds the largest score of its rows");
constexpr u32 kIndexMmaChannels = 128;
constexpr u32 kIndexMmaHeads = 64;                       // in shared memory at a time
constexpr u32 kIndexPitch = kIndexMmaChannels * 2 + 64;  // bytes of a head: no bank conflicts

struct IndexMmaSpec {
    Format rows = Format::bf16;

    friend constexpr bool operator==(const IndexMmaSpec&, const IndexMmaSpec&) = default;
};
template <typename Visitor>
constexpr void visit_fields(Visitor&& visit, const IndexMmaSpec& s) {
    visit("rows", s.rows);
}
constexpr IndexSmem plan_smem(const IndexMmaSpec&) {
    return {.bytes = kIndexMmaHeads * (kIndexPitch + 4)};
}

}  // namespace deep_gemm
