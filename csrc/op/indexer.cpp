// index_scores(): what decides which cached rows sparse attention reads.
#include "op/indexer.h"
#include "op/latent_check.h"

#include <deep_gemm/spec/indexer.h>

#include <algorithm>

namespace deep_gemm::op {

namespace {

constexpr const char* kIndexerHeader = "deep_gemm/kernel/indexer.cuh";
constexpr jit::KernelId kScores{"index_scores", kIndexerHeader}, kMma{"index_mma", kIndexerHeader},
    kWide{"index_wide", "deep_gemm/kernel/index_wide.cuh"};

// Rows that a sequence has room for from which index_wide serves.
constexpr u32 kRowsOfWide = 8192;

// A block has all heads of a token in shared memory, which cost more to bring than a few rows: no more blocks
// than the device holds at once.
u32 mma_blocks(const Device& device, u32 tokens, u32 rows) {
    constexpr u32 kOfMultiprocessor = 4;
    const u32 at_once = std::max(kOfMultiprocessor * device.properties().num_sms / std::max(tokens, 1u), 1u);
    return std::min(ceil_div(rows, kIndexMmaRows), at_once);
}

// A multiprocessor has one block: with these, the last one is done after the fewest rounds of tiles.
u32 wide_blocks(const Device& device, u32 tokens, u32 rows) {
    constexpr u32 kStart = 2;  // rounds that bringing the heads takes, about
    const u32 sms = device.properties().num_sms, tiles = ceil_div(rows, kIndexWideRows);
    u32 best = 1;
    u64 least = ~u64{0};
    for (u32 blocks = 1; blocks <= std::min(sms, tiles); ++blocks) {
        const u64 turns = ceil_div(u64{tokens} * blocks, u64{sms}),
                  rounds = turns * (ceil_div(tiles, blocks * kIndexWideGroups) + kStart);
        if (rounds <= least) best = blocks, least = rounds;
    }
    return best;
}

bool takes_wide(const Device& device, u32 heads, const CheckedRows& rows) {
    return device.properties().arch == "90a" && rows.format == Format::fp4_e2m1 && heads <= kIndexMmaHeads &&
           rows.view.rows >= kRowsOfWide;
}

}  // namespace

bool index_takes_mma(const TensorView& query, const TensorView& rows, Format row_format) {
    constexpr u64 kVectorBytes = 16;
    const auto aligned = [](const TensorView& t) {
        bool all = address_of(t) % kVectorBytes == 0;
        for (u32 i = 0; i < 2; ++i)
            all = all && (t.shape[i] <= 1 || t.strides[i] * 2 % static_cast<i64>(kVectorBytes) == 0);
        return all;
    };
    return query.format == Format::bf16 && (row_format == Format::bf16 || row_format == Format::fp4_e2m1) &&
           query.shape[2] == kIndexMmaChannels && aligned(query) &&
           (row_format == Format::fp4_e2m1 || aligned(rows));
}

bool index_leaves_peaks(const IndexScoreArguments& a) {
    return index_takes_mma(a.query, a.rows.data,
                           a.rows.data.format == Format::int8 ? Format::fp4_e2m1 : a.rows.data.format);
}

void index_scores(const IndexScoreArguments& a) {
    ModelChecks checks("index_scores");
    checks.array("query", a.query, kReal, {-1, -1, -1}, 4);
    const i64 tokens = a.query.shape[0], heads = a.query.shape[1], d = a.query.shape[2];
    DG_CHECK(d % 4 == 0 && d > 0 && d <= kIndexMaxChannels, value,
             "index_scores: query has {} channels, expected a multiple of 4, at most {}; pad them with zeros",
             d, kIndexMaxChannels);
    checks.array("weights", a.weights, {Format::fp32}, {tokens, heads});
    const CheckedRows rows = check_latent_rows(checks, "rows", a.rows, d, Narrow::fp4);
    checks.vector("positions", a.positions, {Format::int32}, {tokens});
    checks.optional_vector("sequences", a.sequences, {Format::int32}, {tokens});
    checks.array("scores", a.scores, {Format::fp32}, {tokens, rows.view.rows});
    DG_CHECK(a.ratio >= 1, value,
             "index_scores: got ratio 0, expected at least 1; pass the positions that a row stands for");
    if (tokens == 0) return;
    const IndexScoreSpec spec{.query = a.query.format, .rows = rows.format};
    const bool mma = index_takes_mma(a.query, a.rows.data, rows.format),
               wide = mma && takes_wide(checks.device(), as_u32(heads), rows);
    if (a.peaks.present()) {
        DG_CHECK(
            mma, value,
            "index_scores: got peaks with {} queries and {} rows, expected none: only bf16 queries of {} "
            "channels with bf16 or FP4 rows, aligned to 16 bytes, leave them",
            name_of(a.query.format), name_of(rows.format), kIndexMmaChannels);
        checks.array("peaks", a.peaks, {Format::int32}, {tokens, ceil_div(rows.view.rows, kScoresOfPeak)});
    }
    checks.outputs({{"scores"}, {"peaks"}});
    const IndexScoreParams params{
        .query = view_of(a.query),
        .weights = pointer_of<const float>(a.weights),
        .weights_stride = stride_of(a.weights, 0),
        .rows = rows.view,
        .positions = pointer_of<const i32>(a.positions),
        .sequences = pointer_of<const i32>(a.sequences),
        .scores = pointer_of<float>(a.scores),
        .scores_stride = stride_of(a.scores, 0),
        .peaks = pointer_of<u32>(a.peaks),
        .peaks_stride = a.peaks.present() ? stride_of(a.peaks, 0) : 0,
        .tokens = as_u32(tokens),
        .heads = as_u32(heads),
        .d = as_u32(d),
        .ratio = a.ratio,
        .only_above = a.only_above,
        .scale = a.scale,
        .blocks = (wide ? wide_blocks : mma_blocks)(checks.device(), as_u32(tokens), rows.view.rows),
    };
    const std::initializer_list<driver::MemoryRange> memory = {
        reads(a.query),     reads(a.weights),   reads(a.rows.data), reads(a.rows.table),
        reads(a.positions), reads(a.sequences), writes(a.scores),   writes(a.peaks)};
    const u32 blocks = mma ? params.blocks : ceil_div(params.rows.rows, kIndexRowsOfBlock);
    const u32 grid = grid_of("index_scores", static_cast<u64>(tokens) * blocks);
    if (wide)
        launch(checks.device(), kWide, IndexWideSpec{}, {grid, kIndexWideThreads}, a.stream, params, memory);
    else if (mma)
        launch(checks.device(), kMma, IndexMmaSpec{.rows = rows.format}, {grid, kIndexMmaThreads}, a.stream,
               params, memory);
    else
        launch(checks.device(), kScores, spec, {grid, kIndexThreads}, a.stream, params, memory);
}

}  // namespace deep_gemm::op
