// index_select(): queries, scores and choice of few tokens in one launch.
#include "op/index_parts.h"

#include "op/cluster_room.h"
#include "op/indexer.h"
#include "op/latent_check.h"

#include <deep_gemm/spec/index_few.h>

#include <algorithm>

namespace deep_gemm::op {

namespace {

constexpr jit::KernelId kIndexFew{"index_few", "deep_gemm/kernel/index_few.cuh"};
constexpr i64 kMostTokens = 8;    // up to which one launch does all
constexpr u32 kMostRotated = 64;  // channels: a lane has one angle

IndexFewSpec spec_of(const CheckedRows& rows, const IndexSelectArguments& a) {
    return {.rows = rows.format, .finish = a.finish};
}

struct Selection {
    CheckedRows rows;
    u32 dims, ctas;
    bool few;   // the shapes are of those that one launch serves
    bool room;  // few, and the device has room for the clusters
};

Selection check(ModelChecks& checks, const IndexSelectArguments& a) {
    checks.array("query", a.query, kReal, {-1, -1, -1}, 4);
    const i64 tokens = a.query.shape[0], heads = a.query.shape[1], d = a.query.shape[2];
    Selection s{};
    s.rows = check_latent_rows(checks, "rows", a.rows, d, Narrow::fp4);
    s.dims = check_frequencies(checks, a.frequencies, d);
    check_row(checks, "query", d, s.dims, a.finish);
    constexpr u32 kFewestCtas = 8;  // a head for each of their warps
    s.ctas = std::clamp(ceil_div(s.rows.view.rows, kIndexMmaRows), kFewestCtas, kIndexFewCtas);
    s.few = tokens <= kMostTokens && heads <= i64{kIndexMmaHeads} && s.rows.view.rows <= kIndexFewRows &&
            s.dims <= kMostRotated && index_takes_mma(a.query, a.rows.data, s.rows.format);
    s.room = s.few && has_large_clusters(checks.device()) &&
             has_cluster_room<IndexFewParams>(checks.device(), kIndexFew, spec_of(s.rows, a), s.ctas,
                                              kIndexFewThreads);
    return s;
}

}  // namespace

bool index_select_takes(const IndexSelectArguments& a) {
    ModelChecks checks("index_select");
    return check(checks, a).room;
}

std::optional<PreparedSelection> prepare_index_select(ModelChecks& checks, const IndexSelectArguments& a) {
    const auto [rows, dims, ctas, few, room] = check(checks, a);
    if (!few) return std::nullopt;
    const i64 tokens = a.query.shape[0], heads = a.query.shape[1], d = a.query.shape[2];
    checks.array("weights", a.weights, {Format::fp32}, {tokens, heads});
    checks.vector("positions", a.positions, {Format::int32}, {tokens});
    checks.optional_vector("sequences", a.sequences, {Format::int32}, {tokens});
    checks.vector("picks", a.picks, {Format::int32}, {tokens, -1});
    checks.outputs({{"picks"}});
    DG_CHECK(a.picks.shape[1] >= 1, value,
             "index_select: picks has shape {}, expected at least one column; allocate one for each pick",
             shape_text(a.picks));
    DG_CHECK(a.ratio >= 1, value,
             "index_select: got ratio 0, expected at least 1; pass the positions that a row stands for");
    PreparedSelection out{.launch = {.spec = spec_of(rows, a),
                                     .params = {},
                                     .grid = grid_of("index_select", static_cast<u64>(tokens) * ctas),
                                     .memory = {reads(a.query), reads(a.weights), reads(a.rows.data),
                                                reads(a.rows.table), reads_constant(a.frequencies),
                                                reads(a.positions), reads(a.sequences), writes(a.picks)}},
                          .room = room};
    IndexFewParams& params = out.launch.params;
    params.scores.query = view_of(a.query);
    params.scores.weights = pointer_of<const float>(a.weights);
    params.scores.weights_stride = stride_of(a.weights, 0);
    params.scores.rows = rows.view;
    params.scores.positions = pointer_of<const i32>(a.positions);
    params.scores.sequences = pointer_of<const i32>(a.sequences);
    params.scores.tokens = as_u32(tokens);
    params.scores.heads = as_u32(heads);
    params.scores.d = as_u32(d);
    params.scores.ratio = a.ratio;
    params.scores.scale = a.scale;
    params.frequencies = pointer_of<const float>(a.frequencies);
    params.picks = pointer_of<i32>(a.picks);
    params.dims = dims;
    params.k = as_u32(a.picks.shape[1]);
    params.ctas = ctas;
    return out;
}

void index_select(const IndexSelectArguments& a) {
    ModelChecks checks("index_select");
    const auto selection = prepare_index_select(checks, a);
    DG_CHECK(
        selection.has_value(), value,
        "index_select: got {} tokens of {} {} heads of {} channels, {} of them rotated, and {} rows of a "
        "sequence, expected at most {} tokens, {} bf16 heads of {} channels, {} rotated, and {} bf16 or FP4 rows, aligned to 16 bytes; "
        "call index_query(), index_scores() and top_k()",
        a.query.shape[0], a.query.shape[1], name_of(a.query.format), a.query.shape[2],
        check_frequencies(checks, a.frequencies, a.query.shape[2]),
        check_latent_rows(checks, "rows", a.rows, a.query.shape[2], Narrow::fp4).view.rows, kMostTokens,
        kIndexMmaHeads, kIndexMmaChannels, kMostRotated, kIndexFewRows);
    DG_CHECK(selection->room, value,
             "index_select: got {}, expected a device with room for clusters of up to {} blocks; call "
             "index_query(), index_scores() and top_k()",
             checks.device().properties().name, kIndexFewCtas);
    const auto& launched = selection->launch;
    launch(checks.device(), kIndexFew, launched.spec, {launched.grid, kIndexFewThreads, launched.params.ctas},
           a.stream, launched.params, launched.memory);
}

}  // namespace deep_gemm::op
