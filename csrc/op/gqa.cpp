// Grouped-query attention: pieces of a cache's length, then their sum in a fixed order.
#include "op/model_check.h"
#include "op/gqa.h"

#include <deep_gemm/spec/gqa.h>

namespace deep_gemm::op {

namespace {

constexpr const char* kGqaHeader = "deep_gemm/kernel/gqa.cuh";
constexpr jit::KernelId kPieces{"gqa_pieces", kGqaHeader}, kJoin{"gqa_join", kGqaHeader};

GqaRows gqa_rows_of(const TensorView& t) {
    return {.data = t.data,
            .stride_sequence = stride_of(t, 0),
            .stride_row = stride_of(t, 1),
            .stride_head = stride_of(t, 2)};
}

}  // namespace

std::vector<i64> gqa_records_shape(i64 tokens, i64 heads, i64 rows, i64 d) {
    return {tokens, heads, gqa_num_pieces(as_u32(rows)), gqa_record(as_u32(d))};
}

void gqa_attention(const GqaArguments& a) {
    ModelChecks checks("gqa_attention");
    checks.array("q", a.q, kReal, {-1, -1, -1}, 4);
    const i64 tokens = a.q.shape[0], heads = a.q.shape[1], d = a.q.shape[2];
    DG_CHECK(
        d == 32 || d == 64 || d == 128, value,
        "gqa_attention: q has {} channels, expected 32, 64 or 128; pad the heads with zeros and pass the "
        "scale",
        d);
    checks.array("out", a.out, kReal, {tokens, heads, d}, 4);
    checks.array("keys", a.keys, kReal, {-1, -1, -1, d}, 4);
    const i64 entries = a.keys.shape[0], page_rows = a.keys.shape[1], kv_heads = a.keys.shape[2];
    checks.array("values", a.values, {a.keys.format}, {entries, page_rows, kv_heads, d}, 4);
    const bool paged = a.table.present();
    checks.optional_vector("table", a.table, {Format::int32}, {-1, -1});
    DG_CHECK(!paged || page_rows % kGqaSplit == 0, value,
             "gqa_attention: pages of {} rows, expected a multiple of {}; make longer pages", page_rows,
             kGqaSplit);
    const i64 sequences = paged ? a.table.shape[0] : entries;
    const i64 rows = paged ? a.table.shape[1] * page_rows : page_rows;
    DG_CHECK(
        kv_heads > 0 && heads % kv_heads == 0 && rows > 0, value,
        "gqa_attention: {} heads over {} kv heads and {} rows, expected a multiple, and rows; pass as many "
        "query heads for each kv head, and a cache with room",
        heads, kv_heads, rows);
    checks.vector("positions", a.positions, {Format::int32}, {tokens});
    checks.optional_vector("sequences", a.sequences, {Format::int32}, {tokens});
    const u32 pieces = gqa_num_pieces(as_u32(rows));
    checks.vector("records", a.records, {Format::fp32}, {tokens, heads, pieces, gqa_record(as_u32(d))}, 4);
    const bool fp8 = a.codes.present();
    DG_CHECK(!fp8 || (a.out.format == Format::bf16 && d == kGqaFp8Channels), value,
             "gqa_attention: got codes of {} {}, expected codes of bf16 with {} channels; pass no codes, and "
             "quantise the result",
             name_of(a.out.format), shape_text(a.out), kGqaFp8Channels);
    if (fp8) {
        checks.vector("codes", a.codes, {Format::fp8_e4m3}, {tokens, heads, d}, 4);
        checks.vector("scales", a.scales, {Format::fp32}, {tokens, heads});
    }
    checks.outputs({{"out", "q"}, {"records"}, {"codes"}, {"scales"}});
    if (tokens == 0 || heads == 0) return;
    const GqaSpec spec{
        .q = a.q.format, .rows = a.keys.format, .out = a.out.format, .d = as_u32(d), .fp8 = fp8};
    const GqaParams params{.q = view_of(a.q),
                           .out = view_of(a.out),
                           .keys = gqa_rows_of(a.keys),
                           .values = gqa_rows_of(a.values),
                           .records = pointer_of<float>(a.records),
                           .codes = pointer_of<u8>(a.codes),
                           .scales = pointer_of<float>(a.scales),
                           .positions = pointer_of<const i32>(a.positions),
                           .sequences = pointer_of<const i32>(a.sequences),
                           .table = pointer_of<const i32>(a.table),
                           .table_stride = paged ? as_u32(a.table.shape[1]) : 0,
                           .page_rows = as_u32(page_rows),
                           .num_sequences = as_u32(sequences),
                           .num_rows = as_u32(rows),
                           .heads = as_u32(heads),
                           .heads_per_kv = as_u32(heads / kv_heads),
                           .pieces = pieces,
                           .scale = attention_scale(a.scale, d)};
    const u64 groups = static_cast<u64>(kv_heads) * ceil_div(params.heads_per_kv, kGqaHeads);
    launch(checks.device(), kPieces, spec,
           {grid_of("gqa_attention", static_cast<u64>(tokens) * groups * pieces), kGqaThreads}, a.stream,
           params,
           {reads(a.q), reads(a.keys), reads(a.values), reads(a.positions), reads(a.sequences),
            reads(a.table), writes(a.records)});
    launch(checks.device(), kJoin, spec, {grid_of("gqa_attention", static_cast<u64>(tokens * heads)), 32},
           a.stream, params,
           {reads(a.records), reads(a.positions), reads(a.sequences), writes(a.out), writes(a.codes),
            writes(a.scales)});
}

}  // namespace deep_gemm::op
