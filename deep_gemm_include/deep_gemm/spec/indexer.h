// Lightning indexer: scores of compressed rows, and the exact choice of the largest.
#pragma once

#include <deep_gemm/spec/view.h>

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
    View rows;  // [sequences, num_rows, d]
    const i32* positions;
    const i32* sequences;  // or null
    float* scores;         // [tokens, num_rows]
    u64 scores_stride;
    u32 tokens, heads, d, sequences_count, num_rows, ratio, only_above;
    float scale;
};

constexpr u32 kTopKThreads = 256;

struct TopKSpec {
    friend constexpr bool operator==(const TopKSpec&, const TopKSpec&) = default;
};
template <typename Visitor>
constexpr void visit_fields(Visitor&&, const TopKSpec&) {}

struct TopKSmem {
    u32 bins;    // 256 counts
    u32 found;   // bin and what lies above it
    u32 counts;  // of a chunk: larger and equal, a pair a warp
    u32 bytes;
};
constexpr TopKSmem plan_smem(const TopKSpec&) {
    return {.bins = 0, .found = 1024, .counts = 1032, .bytes = 1032 + kTopKThreads / 32 * 8};
}

struct TopKParams {
    const float* scores;  // [tokens, columns]
    u64 scores_stride;
    const i32* positions;
    i32* picks;  // [tokens, k]
    u32 columns, k, ratio;
};

}  // namespace deep_gemm
