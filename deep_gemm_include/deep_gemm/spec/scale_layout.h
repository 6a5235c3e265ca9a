// FP32 scales [batches, mn, columns] in any strides -> MN-major, as DeepGEMM's callers hand them on:
// neighbouring rows are neighbours in memory. `transpose_fp32` keeps the values; `pack_fp32_into_ue8m0` keeps
// their exponents, four columns in an i32, the first lowest, missing columns 0.
#pragma once

#include <deep_gemm/spec/types.h>

namespace deep_gemm {

constexpr u32 kScaleLayoutThreads = 256;
constexpr u32 kScaleTileRows = 64, kScaleTileColumns = 32;  // of sf; a CTA has one tile
constexpr u32 kScalesOfWord = 4;                            // exponents

struct ScaleLayoutSpec {
    bool rows_are_neighbours = false;  // in sf: lanes load along rows, otherwise along columns
    bool grouped = false;              // pack only: columns belong to groups, whose last words are not shared

    friend constexpr bool operator==(const ScaleLayoutSpec&, const ScaleLayoutSpec&) = default;
};
template <typename Visitor>
constexpr void visit_fields(Visitor&& visit, const ScaleLayoutSpec& s) {
    visit("rows_are_neighbours", s.rows_are_neighbours);
    visit("grouped", s.grouped);
}

struct ScaleLayoutParams {
    const float* sf;      // [batches, mn, columns]
    u32* out;             // [batches, mn, out_columns]
    const i32* group_ks;  // [num_groups]: the extent along K of each group; ceil(k / gran_k) columns
    u64 sf_stride_batch, sf_stride_row, sf_stride_column;
    u64 out_stride_batch, out_stride_column;  // rows are neighbours
    u32 batches, mn, columns, out_columns, num_groups, gran_k;
};

// Columns of sf that a column of the output is made of.
struct ScaleColumns {
    u32 first = 0, count = 0;
};

struct ScaleLayoutSmem {
    u32 tile;     // u32 [kScaleTileColumns][kScaleTilePitch]
    u32 columns;  // grouped: ScaleColumns of the tile's columns of the output
    u32 bytes;
};
constexpr u32 kScaleTilePitch = kScaleTileRows + 1;  // odd: lanes along either side meet different banks
constexpr ScaleLayoutSmem plan_smem(const ScaleLayoutSpec& s) {
    const u32 columns = align_up(kScaleTileColumns * kScaleTilePitch * 4, 8u);
    const u32 words = s.grouped ? kScaleTileColumns / kScalesOfWord : 0;
    return {.tile = 0, .columns = columns, .bytes = columns + words * static_cast<u32>(sizeof(ScaleColumns))};
}

}  // namespace deep_gemm
