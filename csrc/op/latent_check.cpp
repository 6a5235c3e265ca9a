#include "op/latent_check.h"

namespace deep_gemm::op {

CheckedRows check_latent_rows(ModelChecks& checks, const char* name, const LatentRows& rows, i64 d) {
    const char* operation = checks.operation();
    CheckedRows out;
    const TensorView& t = rows.data;
    if (t.format == Format::int8) {
        DG_CHECK(rows.page_rows > 0 && d == kFp8RowChannels, value,
                 "{}: {} are FP8 rows of {} channels with {} rows a page, expected {} channels and page_rows",
                 operation, name, d, rows.page_rows, kFp8RowChannels);
        checks.array(name, t, {Format::int8}, {-1, -1, static_cast<i64>(latent_page_bytes(rows.page_rows))},
                     16);
        out.format = Format::fp8_e4m3;
        out.view = {.data = t.data,
                    .stride_sequence = stride_of(t, 0),
                    .stride_row = stride_of(t, 1),
                    .sequences = as_u32(t.shape[0]),
                    .rows = as_u32(t.shape[1]) * rows.page_rows,
                    .page_rows = rows.page_rows};
    } else {
        checks.array(name, t, {Format::fp32, Format::bf16}, {-1, -1, d}, 4);
        out.format = t.format;
        out.view = {.data = t.data,
                    .stride_sequence = stride_of(t, 0),
                    .stride_row = stride_of(t, 1),
                    .sequences = as_u32(t.shape[0]),
                    .rows = as_u32(t.shape[1]),
                    .page_rows = 1};
    }
    DG_CHECK(out.view.rows > 0 && out.view.sequences > 0, value,
             "{}: {} has shape {}, expected at least one row", operation, name, shape_text(t));
    return out;
}

u32 check_frequencies(ModelChecks& checks, const TensorView& frequencies, i64 d) {
    checks.vector("frequencies", frequencies, {Format::fp32}, {-1, 2});
    const i64 dims = frequencies.shape[0] * 2;
    DG_CHECK(dims % 4 == 0 && dims > 0 && dims <= d, value,
             "{}: frequencies are for {} channels, expected a multiple of 4, at most {}", checks.operation(),
             dims, d);
    return as_u32(dims);
}

void check_row(ModelChecks& checks, const char* name, i64 d, u32 dims, RowFinish finish) {
    const char* operation = checks.operation();
    DG_CHECK(d % 4 == 0 && d > 0 && d <= kLatentMaxChannels, value,
             "{}: {} has {} channels, expected a multiple of 4, at most {}", operation, name, d,
             kLatentMaxChannels);
    if (finish == RowFinish::fp8_round_trip)
        DG_CHECK(
            (d - dims) % kFp8RowGroup == 0, value,
            "{}: {} has {} channels that are not rotated, expected a multiple of {} for the FP8 round trip",
            operation, name, d - dims, kFp8RowGroup);
    if (finish == RowFinish::hadamard || finish == RowFinish::hadamard_fp4)
        DG_CHECK((d & (d - 1)) == 0 && d >= 32 && d <= 128, value,
                 "{}: {} has {} channels, expected 32, 64 or 128 for the Hadamard transform", operation, name,
                 d);
}

}  // namespace deep_gemm::op
