// index_scores() and top_k() of model_ops.h: which cached rows sparse attention reads.
#include "op/model_check.h"
#include "op/model_ops.h"

#include <deep_gemm/spec/indexer.h>

namespace deep_gemm::op {

namespace {

constexpr const char* kHeader = "deep_gemm/kernel/indexer.cuh";
constexpr jit::KernelId kScores{"index_scores", kHeader}, kMma{"index_mma", kHeader}, kTopK{"top_k", kHeader};

// What this depends on is the same for any number of tokens.
bool takes_mma(const IndexScoreArguments& a) {
    constexpr u64 kVectorBytes = 16;
    const auto aligned = [](const TensorView& t) {
        bool all = address_of(t) % kVectorBytes == 0;
        for (u32 i = 0; i < 2; ++i)
            all = all && (t.shape[i] <= 1 || t.strides[i] * 2 % static_cast<i64>(kVectorBytes) == 0);
        return all;
    };
    return a.query.format == Format::bf16 && a.rows.format == Format::bf16 &&
           a.query.shape[2] == kIndexMmaChannels && aligned(a.query) && aligned(a.rows);
}

}  // namespace

void index_scores(const IndexScoreArguments& a) {
    ModelChecks checks("index_scores");
    checks.array("query", a.query, kReal, {-1, -1, -1}, 4);
    const i64 tokens = a.query.shape[0], heads = a.query.shape[1], d = a.query.shape[2];
    DG_CHECK(d % 4 == 0 && d > 0 && d <= kIndexMaxChannels, value,
             "index_scores: query has {} channels, expected a multiple of 4, at most {}", d,
             kIndexMaxChannels);
    checks.array("weights", a.weights, {Format::fp32}, {tokens, heads});
    checks.array("rows", a.rows, kReal, {-1, -1, d}, 4);
    const i64 num_rows = a.rows.shape[1];
    checks.vector("positions", a.positions, {Format::int32}, {tokens});
    checks.optional_vector("sequences", a.sequences, {Format::int32}, {tokens});
    checks.array("scores", a.scores, {Format::fp32}, {tokens, num_rows});
    DG_CHECK(a.ratio >= 1, value, "index_scores: got ratio 0, expected at least 1");
    if (tokens == 0) return;
    const IndexScoreSpec spec{.query = a.query.format, .rows = a.rows.format};
    const IndexScoreParams params{
        .query = view_of(a.query),
        .weights = pointer_of<const float>(a.weights),
        .weights_stride = stride_of(a.weights, 0),
        .rows = {a.rows.data, stride_of(a.rows, 0), stride_of(a.rows, 1)},
        .positions = pointer_of<const i32>(a.positions),
        .sequences = pointer_of<const i32>(a.sequences),
        .scores = pointer_of<float>(a.scores),
        .scores_stride = stride_of(a.scores, 0),
        .tokens = as_u32(tokens),
        .heads = as_u32(heads),
        .d = as_u32(d),
        .sequences_count = as_u32(a.rows.shape[0]),
        .num_rows = as_u32(num_rows),
        .ratio = a.ratio,
        .only_above = a.only_above,
        .scale = a.scale,
    };
    const std::initializer_list<driver::MemoryRange> memory = {reads(a.query),     reads(a.weights),
                                                               reads(a.rows),      reads(a.positions),
                                                               reads(a.sequences), writes(a.scores)};
    const auto blocks = [&](u32 rows) {
        return grid_of("index_scores", static_cast<u64>(tokens) * ceil_div(params.num_rows, rows));
    };
    if (takes_mma(a))
        launch(checks.device(), kMma, IndexMmaSpec{}, {blocks(kIndexMmaRows), kIndexMmaThreads}, a.stream,
               params, memory);
    else
        launch(checks.device(), kScores, spec, {blocks(kIndexRowsOfBlock), kIndexThreads}, a.stream, params,
               memory);
}

void top_k(const TopKArguments& a) {
    ModelChecks checks("top_k");
    checks.array("scores", a.scores, {Format::fp32}, {-1, -1});
    const i64 tokens = a.scores.shape[0];
    checks.vector("positions", a.positions, {Format::int32}, {tokens});
    checks.vector("picks", a.picks, {Format::int32}, {tokens, -1});
    DG_CHECK(a.picks.shape[1] >= 1, value, "top_k: picks has shape {}, expected at least one column",
             shape_text(a.picks));
    DG_CHECK(a.ratio >= 1, value, "top_k: got ratio 0, expected at least 1");
    const TopKParams params{.scores = pointer_of<const float>(a.scores),
                            .scores_stride = stride_of(a.scores, 0),
                            .positions = pointer_of<const i32>(a.positions),
                            .picks = pointer_of<i32>(a.picks),
                            .columns = as_u32(a.scores.shape[1]),
                            .k = as_u32(a.picks.shape[1]),
                            .ratio = a.ratio};
    launch(checks.device(), kTopK, TopKSpec{params.columns > kTopKFew}, {as_u32(tokens), kTopKThreads},
           a.stream, params, {reads(a.scores), reads(a.positions), writes(a.picks)});
}

}  // namespace deep_gemm::op
