// Rotary embedding with its table of frequencies (YaRN), and the writes into caches that share its kernel.
#include "op/attention_parts.h"
#include "op/latent_check.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace deep_gemm::op {

namespace {

constexpr const char* kRopeHeader = "deep_gemm/kernel/rope.cuh";
constexpr jit::KernelId kRope{"rope", kRopeHeader}, kLatentWrite{"latent_write", kRopeHeader},
    kCacheWrite{"cache_write", kRopeHeader};

RopeArguments rope_of(const IndexQueryArguments& a) {
    RopeArguments all;
    all.x = a.x;
    all.frequencies = a.frequencies;
    all.positions = a.positions;
    all.y = a.y;
    all.stream = a.stream;
    return all;
}

// One row of heads: what rope() and index_query() share.
Prepared<LatentSpec, RopeParams> rotate(ModelChecks& checks, const RopeArguments& a, RowFinish finish) {
    const TensorView x = with_inner(a.x), y = with_inner(a.y);
    checks.array("x", x, kReal, {-1, -1, -1}, 4);
    const i64 rows = x.shape[0], d = x.shape[2];
    checks.array("y", y, kReal, {rows, x.shape[1], d}, 4);
    checks.vector("positions", a.positions, {Format::int32}, {rows});
    const u32 dims = check_frequencies(checks, a.frequencies, d);
    check_row(checks, "x", d, dims, finish);
    if (a.pairs == RopePairs::halves)
        DG_CHECK(dims == d && (d == 32 || d == 64 || d == 128), value,
                 "{}: halves of {} of {} channels, expected all of 32, 64 or 128; pass frequencies for all "
                 "channels of a head",
                 checks.operation(), dims, d);
    checks.optional_vector("weight", a.weight, kReal, {d}, 4);
    checks.outputs({{"y", "x"}});
    DG_CHECK(a.norm || !a.weight.present(), value,
             "{}: got a weight without norm, expected norm = true; pass it, or no weight",
             checks.operation());
    // Heads of a CTA: of many, which would else be far smaller than what it takes to start a CTA.
    constexpr u64 kManyHeads = 4096;
    const u64 all_heads = static_cast<u64>(rows * x.shape[1]);
    const bool in_warps = !a.norm && d <= 128,
               in_turn = a.norm && d > 128 && a.pairs == RopePairs::interleaved && all_heads >= kManyHeads;
    const LatentSpec spec{
        .x = x.format,
        .weight = a.weight.format,
        .rows = y.format,
        .finish = finish,
        .pairs = a.pairs,
        .norm = a.norm,
        .inverse = a.inverse,
        .heads = x.shape[1] % kLatentHeads == 0 && (in_warps || in_turn) ? kLatentHeads : 1};
    const RopeParams params{.x = view_of(x),
                            .y = view_of(y),
                            .weight = a.weight.data,
                            .frequencies = pointer_of<const float>(a.frequencies),
                            .positions = pointer_of<const i32>(a.positions),
                            .inner = as_u32(x.shape[1]),
                            .d = as_u32(d),
                            .dims = dims,
                            .eps = a.eps};
    const u32 grid = grid_of(checks.operation(), all_heads / spec.heads);
    return {spec,
            params,
            grid,
            {reads(a.x), reads(a.weight), reads(a.frequencies), reads(a.positions), writes(a.y)}};
}

}  // namespace

std::vector<float> rope_frequencies(const RopeFrequencies& a) {
    DG_CHECK(a.dims >= 2 && a.dims % 2 == 0, value,
             "rope_frequencies: got {} dims, expected an even number; pass the rotated channels of a head",
             a.dims);
    const double dims = a.dims, tau = 2 * std::numbers::pi;
    // The channel that turns `turns` times within the original context.
    const auto channel = [&](double turns) {
        return dims * std::log(a.yarn_original_context / (turns * tau)) / (2 * std::log(a.theta));
    };
    const double low = std::max(std::floor(channel(a.yarn_beta_fast)), 0.0);
    const double high = std::min(std::ceil(channel(a.yarn_beta_slow)), dims - 1);
    std::vector<float> out;
    for (u32 i = 0; i < a.dims / 2; ++i) {
        double frequency = std::pow(a.theta, -2.0 * i / dims);
        if (a.yarn_factor != 0) {
            const double ramp = std::clamp((i - low) / (high == low ? 0.001 : high - low), 0.0, 1.0);
            frequency = frequency / a.yarn_factor * ramp + frequency * (1 - ramp);
        }
        const double turns = frequency / tau;
        out.push_back(static_cast<float>(turns));
        out.push_back(static_cast<float>(turns - out.back()));
    }
    return out;
}

Prepared<LatentSpec, RopeParams> prepare_rope(ModelChecks& checks, const RopeArguments& a) {
    return rotate(checks, a, RowFinish::none);
}
void rope(const RopeArguments& a) {
    ModelChecks checks("rope");
    launch(checks.device(), kRope, kLatentThreads, a.stream, prepare_rope(checks, a));
}

Prepared<LatentSpec, RopeParams> prepare_index_query(ModelChecks& checks, const IndexQueryArguments& a) {
    DG_CHECK(
        a.finish != RowFinish::fp8_round_trip, value,
        "index_query: got finish fp8_round_trip, expected none, hadamard or hadamard_fp4; pass one of them");
    return rotate(checks, rope_of(a), a.finish);
}
void index_query(const IndexQueryArguments& a) {
    ModelChecks checks("index_query");
    launch(checks.device(), kRope, kLatentThreads, a.stream, prepare_index_query(checks, a));
}

Prepared<LatentSpec, LatentWriteParams> prepare_latent_write(ModelChecks& checks,
                                                             const LatentWriteArguments& a) {
    checks.array("x", a.x, kReal, {-1, -1}, 4);
    const i64 rows = a.x.shape[0], d = a.x.shape[1];
    checks.vector("weight", a.weight, kReal, {d}, 4);
    checks.vector("positions", a.positions, {Format::int32}, {rows});
    checks.optional_vector("sequences", a.sequences, {Format::int32}, {rows});
    const u32 dims = check_frequencies(checks, a.frequencies, d);
    const CheckedRows cache = check_latent_rows(checks, "rows", a.rows, d);
    checks.outputs({{"rows"}});
    const bool fp8 = cache.format == Format::fp8_e4m3;
    const RowFinish finish = a.fp8_round_trip && !fp8 ? RowFinish::fp8_round_trip : RowFinish::none;
    check_row(checks, "x", d, dims, finish);
    DG_CHECK(
        !fp8 || dims == kFp8RowRotated, value,
        "latent_write: {} channels are rotated, expected {} for FP8 rows; pass frequencies for those, or "
        "rows of another type",
        dims, kFp8RowRotated);
    const LatentSpec spec{.x = a.x.format, .weight = a.weight.format, .rows = cache.format, .finish = finish};
    const LatentWriteParams params{.x = view_of(a.x),
                                   .weight = a.weight.data,
                                   .frequencies = pointer_of<const float>(a.frequencies),
                                   .positions = pointer_of<const i32>(a.positions),
                                   .sequences = pointer_of<const i32>(a.sequences),
                                   .rows = cache.view,
                                   .d = as_u32(d),
                                   .dims = dims,
                                   .eps = a.eps};
    return {spec,
            params,
            as_u32(rows),
            {reads(a.x), reads(a.weight), reads(a.frequencies), reads(a.positions), reads(a.sequences),
             reads(a.rows.table), writes(a.rows.data)}};
}
void latent_write(const LatentWriteArguments& a) {
    ModelChecks checks("latent_write");
    launch(checks.device(), kLatentWrite, kLatentThreads, a.stream, prepare_latent_write(checks, a));
}

Prepared<LatentSpec, CacheWriteParams> prepare_cache_write(ModelChecks& checks,
                                                           const CacheWriteArguments& a) {
    checks.array("x", a.x, kReal, {-1, -1, -1}, 4);
    const i64 rows = a.x.shape[0], inner = a.x.shape[1], d = a.x.shape[2];
    DG_CHECK(d % 4 == 0, value,
             "{}: x has {} channels, expected a multiple of 4; there is no kernel for others",
             checks.operation(), d);
    const bool paged = a.table.present();
    checks.array("rows", a.rows, kReal, {-1, -1, inner, d}, 4);
    checks.optional_vector("table", a.table, {Format::int32}, {-1, -1});
    checks.vector("positions", a.positions, {Format::int32}, {rows});
    checks.optional_vector("sequences", a.sequences, {Format::int32}, {rows});
    checks.outputs({{"rows"}});
    DG_CHECK(a.rows.shape[1] > 0, value,
             "{}: rows has shape {}, expected at least one row; pass a cache with room", checks.operation(),
             shape_text(a.rows));
    const LatentSpec spec{.x = a.x.format, .weight = Format::none, .rows = a.rows.format};
    const u32 page_rows = as_u32(a.rows.shape[1]), pages = paged ? as_u32(a.table.shape[1]) : 1;
    const LatentView view{.data = a.rows.data,
                          .stride_sequence = stride_of(a.rows, 0),
                          .stride_row = stride_of(a.rows, 1),
                          .sequences = as_u32(paged ? a.table.shape[0] : a.rows.shape[0]),
                          .rows = page_rows * pages,
                          .page_rows = page_rows,
                          .table_stride = pages,
                          .table = pointer_of<const i32>(a.table)};
    const CacheWriteParams params{.x = view_of(a.x),
                                  .positions = pointer_of<const i32>(a.positions),
                                  .sequences = pointer_of<const i32>(a.sequences),
                                  .rows = view,
                                  .stride_inner = stride_of(a.rows, 2),
                                  .inner = as_u32(inner),
                                  .d = as_u32(d)};
    return {spec,
            params,
            as_u32(rows),
            {reads(a.x), reads(a.positions), reads(a.sequences), reads(a.table), writes(a.rows)}};
}
void cache_write(const CacheWriteArguments& a) {
    ModelChecks checks("cache_write");
    launch(checks.device(), kCacheWrite, kLatentThreads, a.stream, prepare_cache_write(checks, a));
}

}  // namespace deep_gemm::op
