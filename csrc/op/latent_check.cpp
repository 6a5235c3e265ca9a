#include "op/latent_check.h"

namespace deep_gemm::op {

namespace {

// Rows of bytes in pages: which, and what a page of them takes.
struct NarrowRows {
    Format format = Format::none;  // none: rows are fp32 or bf16
    u64 page_bytes = 0;
};

NarrowRows narrow_rows(ModelChecks& checks, const char* name, const LatentRows& rows, i64 d, Narrow narrow) {
    if (rows.data.format != Format::int8) return {};
    const bool fp8 = narrow != Narrow::fp4 && d == kFp8RowChannels,
               fp4 = narrow != Narrow::fp8 && d == kFp4RowChannels;
    const char* expected = narrow == Narrow::fp8   ? "512 channels (FP8)"
                           : narrow == Narrow::fp4 ? "128 channels (FP4)"
                                                   : "512 (FP8) or 128 (FP4) channels";
    DG_CHECK(
        (fp8 || fp4) && rows.page_rows > 0, value,
        "{}: {} are int8 with {} channels and {} rows a page, expected {} and page_rows; pass bf16 or fp32 "
        "rows, or page_rows as the cache was made with",
        checks.operation(), name, d, rows.page_rows, expected);
    return {fp8 ? Format::fp8_e4m3 : Format::fp4_e2m1,
            fp8 ? latent_page_bytes(rows.page_rows) : index_page_bytes(rows.page_rows)};
}

// Pages of all sequences, and the table that says whose they are.
CheckedRows check_pages(ModelChecks& checks, const char* name, const LatentRows& rows, i64 d,
                        const NarrowRows& narrow) {
    const TensorView& t = rows.data;
    const bool is_narrow = narrow.format != Format::none;
    DG_CHECK(
        rows.page_rows > 0, value,
        "{}: {} have a table and {} rows a page, expected page_rows: pass the rows of a page of the table",
        checks.operation(), name, rows.page_rows);
    if (is_narrow)
        checks.array(name, t, {Format::int8}, {-1, static_cast<i64>(narrow.page_bytes)}, 16);
    else
        checks.array(name, t, {Format::fp32, Format::bf16}, {-1, rows.page_rows, d}, 4);
    checks.vector("table", rows.table, {Format::int32}, {-1, -1});
    const u32 pages = as_u32(rows.table.shape[1]);
    return {.view = {.data = t.data,
                     .stride_sequence = stride_of(t, 0),
                     .stride_row = is_narrow ? 0 : stride_of(t, 1),
                     .sequences = as_u32(rows.table.shape[0]),
                     .rows = pages * rows.page_rows,
                     .page_rows = rows.page_rows,
                     .table_stride = pages,
                     .table = pointer_of<const i32>(rows.table)},
            .format = is_narrow ? narrow.format : t.format};
}

CheckedRows check_entries(ModelChecks& checks, const char* name, const LatentRows& rows, i64 d,
                          const NarrowRows& narrow) {
    const TensorView& t = rows.data;
    const bool is_narrow = narrow.format != Format::none;
    if (is_narrow)
        checks.array(name, t, {Format::int8}, {-1, -1, static_cast<i64>(narrow.page_bytes)}, 16);
    else
        checks.array(name, t, {Format::fp32, Format::bf16}, {-1, -1, d}, 4);
    const u32 page_rows = is_narrow ? rows.page_rows : 1;
    return {.view = {.data = t.data,
                     .stride_sequence = stride_of(t, 0),
                     .stride_row = stride_of(t, 1),
                     .sequences = as_u32(t.shape[0]),
                     .rows = as_u32(t.shape[1]) * page_rows,
                     .page_rows = page_rows,
                     .table_stride = 0,
                     .table = nullptr},
            .format = is_narrow ? narrow.format : t.format};
}

}  // namespace

CheckedRows check_latent_rows(ModelChecks& checks, const char* name, const LatentRows& rows, i64 d,
                              Narrow narrow) {
    const NarrowRows bytes = narrow_rows(checks, name, rows, d, narrow);
    const CheckedRows out = rows.table.present() ? check_pages(checks, name, rows, d, bytes)
                                                 : check_entries(checks, name, rows, d, bytes);
    DG_CHECK(out.view.rows > 0 && out.view.sequences > 0, value,
             "{}: {} has shape {}, expected at least one row; pass a cache with room", checks.operation(),
             name, shape_text(rows.data));
    return out;
}

u32 check_frequencies(ModelChecks& checks, const TensorView& frequencies, i64 d) {
    checks.vector("frequencies", frequencies, {Format::fp32}, {-1, 2});
    const i64 dims = frequencies.shape[0] * 2;
    DG_CHECK(dims % 4 == 0 && dims > 0 && dims <= d, value,
             "{}: frequencies are for {} channels, expected a multiple of 4, at most {}; pass those of the "
             "rotated channels, from rope_frequencies()",
             checks.operation(), dims, d);
    return as_u32(dims);
}

void check_row(ModelChecks& checks, const char* name, i64 d, u32 dims, RowFinish finish) {
    const char* operation = checks.operation();
    DG_CHECK(d % 4 == 0 && d > 0 && d <= kLatentMaxChannels, value,
             "{}: {} has {} channels, expected a multiple of 4, at most {}; there is no kernel for others",
             operation, name, d, kLatentMaxChannels);
    if (finish == RowFinish::fp8_round_trip)
        DG_CHECK((d - dims) % kFp8RowGroup == 0, value,
                 "{}: {} has {} channels that are not rotated, expected a multiple of {} for the FP8 round "
                 "trip; pass another finish",
                 operation, name, d - dims, kFp8RowGroup);
    if (finish == RowFinish::hadamard || finish == RowFinish::hadamard_fp4)
        DG_CHECK(
            (d & (d - 1)) == 0 && d >= 32 && d <= 128, value,
            "{}: {} has {} channels, expected 32, 64 or 128 for the Hadamard transform; pass another finish",
            operation, name, d);
}

}  // namespace deep_gemm::op
