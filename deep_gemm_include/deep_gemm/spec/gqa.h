// Causal grouped-query attention over cached keys and values, fp32 arithmetic, in two kernels. The rows of a
// query are cut where their positions say, at multiples of kGqaSplit: a CTA attends to one piece, a second
// kernel joins the pieces in order. So the order of every sum depends on the query's position alone: not on
// the batch, the length of the cache or the device.
//   piece   each of four warps takes a quarter of the rows, kGqaRows at a time, with an online softmax; lanes
//           share the channels, and lane l keeps the softmax of head l / 4; the warps are then joined in
//           order
//   record  of a (query, head, piece): the weighted sum of values [d], the largest score, the sum of weights
#pragma once

#include <deep_gemm/spec/view.h>

namespace deep_gemm {

constexpr u32 kGqaWarps = 4;
constexpr u32 kGqaThreads = kGqaWarps * 32;
constexpr u32 kGqaHeads = 8;    // query heads of a CTA, which share their keys
constexpr u32 kGqaRows = 8;     // of a warp's step
constexpr u32 kGqaSplit = 128;  // rows of a piece
constexpr u32 kGqaWarpRows = kGqaSplit / kGqaWarps;

constexpr u32 kGqaFp8Channels = 128;  // of a head whose output is wanted as E4M3, too: one scale

// Floats of a record, padded to 16 bytes.
constexpr u32 gqa_record(u32 d) {
    return d + 4;
}
constexpr u32 gqa_num_pieces(u32 rows) {
    return ceil_div(rows, kGqaSplit);
}

struct GqaSpec {
    Format q = Format::fp32, rows = Format::fp32, out = Format::fp32;  // rows: of keys and values
    u32 d = 128;                                                       // 32, 64 or 128
    bool fp8 = false;  // out, bf16 with d = 128, also as E4M3 with scales by ScaleRule::exact

    friend constexpr bool operator==(const GqaSpec&, const GqaSpec&) = default;
};
template <typename Visitor>
constexpr void visit_fields(Visitor&& visit, const GqaSpec& s) {
    visit("q", s.q);
    visit("rows", s.rows);
    visit("out", s.out);
    visit("d", s.d);
    visit("fp8", s.fp8);
}

struct GqaSmem {
    u32 records;  // fp32 [warps, heads, record]
    u32 bytes;
};
constexpr GqaSmem plan_smem(const GqaSpec& s) {
    return {.records = 0, .bytes = kGqaWarps * kGqaHeads * gqa_record(s.d) * 4};
}

// Element (sequence, row, head, channel) is data[sequence * stride_sequence + row * stride_row + head *
// stride_head + channel]; with a table, `sequence` is the row's page, and `row` counts in it.
struct GqaRows {
    const void* data;
    u64 stride_sequence, stride_row, stride_head;
};

struct GqaParams {
    View q, out;  // [tokens, heads, d]
    GqaRows keys, values;
    float* records;        // [tokens, heads, pieces, record]
    u8* codes;             // fp8: [tokens, heads, d]
    float* scales;         // fp8: [tokens, heads]
    const i32* positions;  // [tokens]
    const i32* sequences;  // or null
    const i32* table;      // or null: [sequences, table_stride], the pages of page_rows rows, whole pieces
    u32 table_stride, page_rows;
    u32 num_sequences, num_rows, heads, heads_per_kv, pieces;
    float scale;
};

}  // namespace deep_gemm
