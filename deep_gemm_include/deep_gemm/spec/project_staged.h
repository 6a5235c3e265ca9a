// Projections of up to three rows whose input is made on the way: FP8 weights meet rows that each warp rounds to
// E4M3 for itself, its chunks only, after it has normed them. What would be a launch in front of the
// projection, with memory idle meanwhile, is a few hundred instructions in each block of threads beside weights that
// are on their way. The sums are those of project_mma (spec/project_mma.h).
#pragma once

#include <deep_gemm/spec/project_mma.h>

namespace deep_gemm {

// What x is, before it becomes E4M3 with a power of two as the scale of 128 columns.
enum class StagedInput : u8 {
    rows,    // [rows, k] as it is
    normed,  // [rows, k] times weight / sqrt(mean of squares + eps), rounded to bf16 (spec/norm.h)
};
constexpr const char* name_of(StagedInput input) {
    return input == StagedInput::normed ? "normed" : "rows";
}

// On an H200, four sequences' rows of DeepSeek-V4-Flash take 188 us a layer with more, and 184 with launches of their own;
// a window of three rows 156, and 162.
constexpr u32 kStagedMostRows = 3;
constexpr u32 kStagedCtas = 2;  // of an SM
// Columns that the warps of a block have at a time: k is a multiple of them.
constexpr u32 kStagedColumns = kProjectWarps * kProjectColumns;
constexpr u32 kMaxStaged = 8,
              kMaxNormed = 1;  // chunks of a warp; of rows that are normed, which registers have whole

struct ProjectStagedSpec {
    StagedInput input = StagedInput::rows;
    Format weight = Format::none;        // normed: of the norm
    Format w_scale = Format::fp8_ue8m0;  // fp32, fp8_ue8m0; of 128 x 128 E4M3 weights
    Format y = Format::bf16;
    Format add = Format::none;
    u32 few = 1;        // chunks of a warp
    u32 row_tiles = 1;  // of 16 rows of w that are stored at once
    u32 depth = 2;   // units of weights (a chunk of a tile) of a warp on their way; divides few * row_tiles
    u32 tokens = 1;  // rows of x, at most

    friend constexpr bool operator==(const ProjectStagedSpec&, const ProjectStagedSpec&) = default;
};
template <typename Visitor>
constexpr void visit_fields(Visitor&& visit, const ProjectStagedSpec& s) {
    visit("input", s.input);
    visit("weight", s.weight);
    visit("w_scale", s.w_scale);
    visit("y", s.y);
    visit("add", s.add);
    visit("few", s.few);
    visit("row_tiles", s.row_tiles);
    visit("depth", s.depth);
    visit("tokens", s.tokens);
}

// What the arithmetic has at a time.
constexpr ProjectMmaSpec tile_of(const ProjectStagedSpec& s) {
    return {.x = Format::fp8_e4m3, .w = Format::fp8_e4m3, .w_scale = s.w_scale, .y = s.y, .add = s.add};
}

// 128 columns of a row as FP16; rows of neighbours lie in other banks.
constexpr u32 kStagedPitch = kProjectColumns * 2 + 16;
struct ProjectStagedSmem {
    u32 scales;  // fp32 [warps][few][tokens]; x, [warps][few][tokens] of kStagedPitch bytes, is in front
    u32 sums;    // fp32 [2][warps][row tiles][tokens][16]
    u32 bytes;
};
constexpr ProjectStagedSmem plan_smem(const ProjectStagedSpec& s) {
    ProjectStagedSmem p{};
    const u32 chunks = kProjectWarps * s.few * s.tokens;
    p.scales = chunks * kStagedPitch;
    p.sums = p.scales + chunks * 4;
    p.bytes = p.sums + 2 * kProjectWarps * s.row_tiles * s.tokens * kProjectTileRows * 4;
    return p;
}

struct ProjectStagedParams {
    ProjectMmaParams p;  // ends of parts count tiles of 16 rows
    const void* weight;  // [k], of the norm
    float eps;
};

}  // namespace deep_gemm
