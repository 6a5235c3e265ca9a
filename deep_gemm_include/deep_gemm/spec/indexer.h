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

// The same on tensor cores: bf16 queries and rows of 128 channels. A warp has 16 rows, all heads. A score is
// the sum over heads in an order that depends on their number alone: a lane has heads 8 i + 2 (lane % 4) and
// the next, in order of i; then the four lanes are added pairwise.
constexpr u32 kIndexMmaThreads = 128;
constexpr u32 kIndexMmaWarpRows = 16;
constexpr u32 kIndexMmaRows = kIndexMmaThreads / 32 * kIndexMmaWarpRows;
constexpr u32 kIndexMmaChannels = 128;
constexpr u32 kIndexMmaHeads = 64;                       // in shared memory at a time
constexpr u32 kIndexPitch = kIndexMmaChannels * 2 + 64;  // bytes of a head: no bank conflicts

struct IndexMmaSpec {
    friend constexpr bool operator==(const IndexMmaSpec&, const IndexMmaSpec&) = default;
};
template <typename Visitor>
constexpr void visit_fields(Visitor&&, const IndexMmaSpec&) {}
constexpr IndexSmem plan_smem(const IndexMmaSpec&) {
    return {.bytes = kIndexMmaHeads * (kIndexPitch + 4)};
}

constexpr u32 kTopKThreads = 1024;
constexpr u32 kTopKBatch = 8;   // of the others, whose loads are in flight together
constexpr u32 kTopKDigit = 11;  // bits of the order that a pass decides
constexpr u32 kTopKBins = 1u << kTopKDigit;

struct TopKSpec {
    bool many = false;  // scores of a token: more than some thousands

    friend constexpr bool operator==(const TopKSpec&, const TopKSpec&) = default;
};
template <typename Visitor>
constexpr void visit_fields(Visitor&& visit, const TopKSpec& s) {
    visit("many", s.many);
}
constexpr u32 kTopKFew = 8192;
// Scores that a thread keeps in registers.
constexpr u32 held_of(const TopKSpec& s) {
    return s.many ? 16 : 4;
}
// Of the bins, for neighbouring lanes: scores share their leading bits.
constexpr u32 copies_of(const TopKSpec& s) {
    return s.many ? 8 : 1;
}

struct TopKSmem {
    u32 bins;    // counts for each value of a digit, [bins, copies]
    u32 found;   // bin and what lies above it
    u32 counts;  // a number a warp of what is in its bins; of a warp's scores: larger and equal, a pair a
                 // warp
    u32 bytes;
};
constexpr TopKSmem plan_smem(const TopKSpec& s) {
    return {.bins = 0,
            .found = kTopKBins * copies_of(s) * 4,
            .counts = kTopKBins * copies_of(s) * 4 + 8,
            .bytes = kTopKBins * copies_of(s) * 4 + 8 + kTopKThreads / 32 * 8};
}

struct TopKParams {
    const float* scores;  // [tokens, columns]
    u64 scores_stride;
    const i32* positions;
    i32* picks;  // [tokens, k]
    u32 columns, k, ratio;
};

}  // namespace deep_gemm
