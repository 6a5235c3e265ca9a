// compressor_update() and compressor_restore(): a group of rows becomes one row of a cache.
#include "op/attention_parts.h"
#include "op/latent_check.h"

#include <algorithm>

namespace deep_gemm::op {

namespace {

constexpr const char* kCompressorHeader = "deep_gemm/kernel/compressor.cuh";
constexpr jit::KernelId kUpdate{"compressor_update", kCompressorHeader},
    kRestore{"compressor_restore", kCompressorHeader};

constexpr u32 kSegmentRows = 32;

}  // namespace

Prepared<CompressorSpec, CompressorParams> prepare_compressor(ModelChecks& checks,
                                                              const CompressorArguments& a) {
    const i64 dim = checks.extent("weight", a.weight, 1, 0), halves = a.overlap ? 2 : 1;
    checks.array("kv", a.kv, {Format::fp32}, {-1, halves * dim}, 4);
    const i64 tokens = a.kv.shape[0];
    checks.array("gate", a.gate, {Format::fp32}, {tokens, halves * dim}, 4);
    DG_CHECK(a.ratio >= 1, value,
             "compressor_update: got ratio 0, expected at least 1; pass the positions that a compressed row "
             "stands for");
    checks.vector("ape", a.ape, {Format::fp32}, {a.ratio, halves * dim}, 4);
    checks.vector("weight", a.weight, kReal, {dim}, 4);
    checks.vector("positions", a.positions, {Format::int32}, {tokens});
    checks.optional_vector("sequences", a.sequences, {Format::int32}, {tokens});
    const u32 dims = check_frequencies(checks, a.frequencies, dim);
    const CheckedRows rows = check_latent_rows(checks, "rows", a.rows, dim, Narrow::both);
    const bool fp8 = rows.format == Format::fp8_e4m3, fp4 = rows.format == Format::fp4_e2m1;
    const RowFinish finish = fp8 && a.finish == RowFinish::fp8_round_trip ? RowFinish::none : a.finish;
    check_row(checks, "kv", dim, dims, finish);
    DG_CHECK(!fp8 || (dims == kFp8RowRotated && finish == RowFinish::none), value,
             "compressor_update: FP8 rows with {} rotated channels and finish {}, expected {} and none; pass "
             "frequencies for those and no finish, or rows of another type",
             dims, name_of(finish), kFp8RowRotated);
    DG_CHECK(
        !fp4 || finish == RowFinish::hadamard_fp4, value,
        "compressor_update: FP4 rows with finish {}, expected hadamard_fp4; pass it, or rows of another type",
        name_of(finish));
    const CompressorSpec spec{.weight = a.weight.format,
                              .rows = rows.format,
                              .finish = finish,
                              .overlap = a.overlap,
                              .journal = a.journal.present()};
    const i64 parts = 3 * pools_of(spec);
    checks.vector("state", a.state, {Format::fp32}, {rows.view.sequences, parts, dim}, 4);
    checks.optional_vector("journal", a.journal, {Format::fp32}, {tokens, parts, dim}, 4);
    checks.outputs({{"state"}, {"journal"}, {"rows"}});
    if (tokens == 0) return {};
    // Many tokens of one sequence go to several CTAs, each of which starts two windows early.
    const u32 segment_rows = std::max(kSegmentRows, 2 * a.ratio);
    const u32 sequences =
        a.sequences.present() ? rows.view.sequences : 1;  // absent: all rows are of the first
    const bool many = !a.sequences.present() && !a.journal.present() && tokens >= i64{2} * segment_rows;
    const u32 segments = many ? ceil_div(as_u32(tokens), segment_rows) : 1;
    const CompressorParams params{.kv = pointer_of<const float>(a.kv),
                                  .gate = pointer_of<const float>(a.gate),
                                  .kv_stride = stride_of(a.kv, 0),
                                  .gate_stride = stride_of(a.gate, 0),
                                  .ape = pointer_of<const float>(a.ape),
                                  .weight = a.weight.data,
                                  .frequencies = pointer_of<const float>(a.frequencies),
                                  .positions = pointer_of<const i32>(a.positions),
                                  .sequences = pointer_of<const i32>(a.sequences),
                                  .state = pointer_of<float>(a.state),
                                  .journal = pointer_of<float>(a.journal),
                                  .rows = rows.view,
                                  .tokens = as_u32(tokens),
                                  .dim = as_u32(dim),
                                  .dims = dims,
                                  .ratio = a.ratio,
                                  .eps = a.eps,
                                  .segments = segments,
                                  .segment_rows = many ? segment_rows : as_u32(tokens)};
    return {
        spec,
        params,
        sequences * segments,
        {reads(a.kv), reads(a.gate), reads(a.ape), reads(a.weight), reads(a.frequencies), reads(a.positions),
         reads(a.sequences), reads(a.rows.table), writes(a.state), writes(a.journal), writes(a.rows.data)}};
}
void compressor_update(const CompressorArguments& a) {
    ModelChecks checks("compressor_update");
    launch(checks.device(), kUpdate, kLatentThreads, a.stream, prepare_compressor(checks, a));
}

void compressor_restore(const CompressorRestoreArguments& a) {
    ModelChecks checks("compressor_restore");
    const i64 parts = checks.extent("state", a.state, 3, 1), dim = a.state.shape[2];
    checks.vector("state", a.state, {Format::fp32}, {-1, parts, dim}, 4);
    checks.vector("journal", a.journal, {Format::fp32}, {-1, parts, dim}, 4);
    checks.vector("row", a.row, {Format::int32}, {1});
    checks.outputs({{"state"}});
    DG_CHECK(a.sequence < a.state.shape[0], value,
             "compressor_restore: got sequence {}, expected below {}; pass one of the state's", a.sequence,
             a.state.shape[0]);
    DG_CHECK(dim % 4 == 0, value,
             "compressor_restore: state has {} channels, expected a multiple of 4; pass the state of a "
             "compressor_update",
             dim);
    const u32 count = as_u32(parts * dim);
    const CompressorRestoreParams params{.journal = pointer_of<const float>(a.journal),
                                         .row = pointer_of<const i32>(a.row),
                                         .state = pointer_of<float>(a.state) + u64{a.sequence} * count,
                                         .tokens = as_u32(a.journal.shape[0]),
                                         .count = count};
    launch(checks.device(), kRestore, CompressorSpec{}, {ceil_div(count, kLatentThreads * 4), kLatentThreads},
           a.stream, params, {reads(a.journal), reads(a.row), writes(a.state)});
}

}  // namespace deep_gemm::op
