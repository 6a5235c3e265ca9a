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
constexpr u32 kIndexMmaHeads = 64;                           // in shared memory at a time
constexpr u32 kIndexPitch = kIndexMmaChannels * 2 + 64;      // bytes of a head: no bank conflicts
constexpr u32 kIndexWeights = kIndexMmaHeads * kIndexPitch;  // fp32 [64], behind the heads

struct IndexMmaSpec {
    Format rows = Format::bf16;

    friend constexpr bool operator==(const IndexMmaSpec&, const IndexMmaSpec&) = default;
};
template <typename Visitor>
constexpr void visit_fields(Visitor&& visit, const IndexMmaSpec& s) {
    visit("rows", s.rows);
}
constexpr IndexSmem plan_smem(const IndexMmaSpec&) {
    return {.bytes = kIndexWeights + kIndexMmaHeads * 4};
}

// The same scores, bit for bit, on wgmma: FP4 rows, at most 64 heads. A warpgroup has 64 rows, decoded in
// registers; heads are read from shared memory once for these, where each warp of index_mma reads all of them.
constexpr u32 kIndexWideGroups = 4;  // warpgroups
constexpr u32 kIndexWideThreads = kIndexWideGroups * 128;
constexpr u32 kIndexWideRows = 4 * kIndexMmaWarpRows;  // of a warpgroup
constexpr u32 kIndexSlabBytes = kIndexMmaHeads * 128;  // 64 channels of all heads, in swizzle atoms

struct IndexWideSpec {
    u32 ahead = 2;  // tiles of a warpgroup that are on their way

    friend constexpr bool operator==(const IndexWideSpec&, const IndexWideSpec&) = default;
};
template <typename Visitor>
constexpr void visit_fields(Visitor&& visit, const IndexWideSpec& s) {
    visit("ahead", s.ahead);
}
struct IndexWideSmem {
    u32 weights;  // fp32 [64], behind the heads: bf16, two slabs
    u32 bytes;
};
constexpr IndexWideSmem plan_smem(const IndexWideSpec&) {
    constexpr u32 kHeads = kIndexMmaChannels / 64 * kIndexSlabBytes;
    return {.weights = kHeads, .bytes = kHeads + kIndexMmaHeads * 4};
}

}  // namespace deep_gemm
