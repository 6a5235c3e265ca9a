// Projections y = add + x w^T on tensor cores for any number of rows: which formats (ProjectMmaSpec), what
// the kernel is called with, and the order of a sum, which depends on k and the formats alone:
//
//   K is cut into chunks of 128 columns. Chunk c belongs to warp c % 8, which adds its chunks in turn: the
//   eight steps of mma.sync of a chunk in order, then (scaled weights) the scaled sum of the chunk by one
//   fma. At the end the warps' sums are added, warp 0 first, and `add` last.
//
// Row i of y has the same bits whatever the other rows are and however many there are: a row is a column of
// mma.sync, and the tile sizes below only say how many rows share a load of w.
#pragma once

#include <deep_gemm/spec/project.h>
#include <deep_gemm/spec/tensor_map.h>

namespace deep_gemm {

constexpr u32 kProjectTileRows = 16;   // of w in an mma
constexpr u32 kProjectTileTokens = 8;  // rows of x in an mma
constexpr u32 kMaxProjectParts = 16;   // matrices of a launch

struct ProjectMmaSpec {
    Format x = Format::bf16;        // bf16, or fp8_e4m3 with fp32 scales per 128 columns
    Format w = Format::bf16;        // bf16, or fp8_e4m3 with scales per 128 x 128
    Format w_scale = Format::none;  // fp32, fp8_ue8m0
    Format y = Format::fp32;
    Format add = Format::none;  // none: nothing is added
    u32 row_tiles = 1;          // of a block: of 16 rows of w
    u32 token_tiles = 1;        // of a block: of 8 rows of x
    bool wide = false;          // project_wide; tiles say nothing
    bool rounds = false;        // bf16 x meets FP8 w as FP8, with scales rounded up; not with wide
    u32 few = 0;                // project_few: chunks of a warp; else 0
    u32 depth = 0;              // of project_few: chunks of a warp on their way at once
    u32 tokens = 0;             // of project_few: rows of x, at most

    friend constexpr bool operator==(const ProjectMmaSpec&, const ProjectMmaSpec&) = default;
};
template <typename Visitor>
constexpr void visit_fields(Visitor&& visit, const ProjectMmaSpec& s) {
    visit("x", s.x);
    visit("w", s.w);
    visit("w_scale", s.w_scale);
    visit("y", s.y);
    visit("add", s.add);
    visit("row_tiles", s.row_tiles);
    visit("token_tiles", s.token_tiles);
    visit("wide", s.wide);
    visit("rounds", s.rounds);
    visit("few", s.few);
    visit("depth", s.depth);
    visit("tokens", s.tokens);
}

constexpr u32 kMaxRoundedRows = 8;  // of x, which every block of rows of w rounds for itself

// Chunks of a warp whose weights are on their way at once.
constexpr u32 chunks_in_flight_of(const ProjectMmaSpec& s) {
    const u32 tiles = s.row_tiles * s.token_tiles;
    return tiles > (s.w == Format::bf16 ? 1 : 2) ? 1 : 2;
}
constexpr u32 ctas_per_sm_of(const ProjectMmaSpec& s) {
    const u32 tiles = s.row_tiles * s.token_tiles;
    return tiles > 4 ? 1 : tiles > 1 || s.x == Format::bf16 ? 2 : 3;
}

struct ProjectMmaSmem {
    u32 bytes;  // fp32 [warps][row tiles][token tiles][4][32]
};
constexpr u32 project_sums_bytes(const ProjectMmaSpec& s) {
    return kProjectWarps * s.row_tiles * s.token_tiles * kProjectTileRows * kProjectTileTokens * 4;
}

// project_few: up to 8 rows of x; blocks of threads have tiles of 16 rows of w in turn, and store `row_tiles` of
// them at once. n is a multiple of 16, k one of 1024.
constexpr u32 kProjectFewCtas = 2;           // of an SM
constexpr u32 kMaxProjectFew = 16;           // chunks of a warp
constexpr u32 kProjectFewBytes = 112 << 10;  // of shared memory of a CTA, at most
// Whether a warp has its chunks of x in registers for all tiles; else some chunks ahead, for each tile again.
constexpr bool project_few_holds(const ProjectMmaSpec& s) {
    // 16-bit x beside weights that are decoded leaves room for less.
    return s.few <= (s.x == Format::bf16 && s.w == Format::fp8_e4m3 ? 2 : 4);
}
// Chunks of a warp that are unrolled: what is in registers has its place in the code.
constexpr u32 project_few_turn(const ProjectMmaSpec& s) {
    return project_few_holds(s) ? s.few : 2;
}
constexpr u32 project_few_slot_bytes(const ProjectMmaSpec& s) {
    return kProjectWarps * kProjectTileRows * kProjectColumns * bytes_of(s.w);
}
// What its arithmetic has at a time.
constexpr ProjectMmaSpec project_few_tile(ProjectMmaSpec s) {
    s.row_tiles = s.token_tiles = 1;
    return s;
}
struct ProjectFewSmem {
    u32 sums;  // fp32 [2][warps][row tiles][tokens][16]
    u32 bytes;
};
constexpr ProjectFewSmem plan_few(const ProjectMmaSpec& s) {
    ProjectFewSmem p{};
    p.sums = s.depth * project_few_slot_bytes(s);
    p.bytes = p.sums + 2 * kProjectWarps * s.row_tiles * s.tokens * kProjectTileRows * 4;
    return p;
}

// project_wide: a block has 128 rows of w and 128 rows of x; two warpgroups multiply 64 rows of x each, a warp
// of a third loads. Stages of 64 columns come in the order in which one warp after the other would have them,
// from operands that project_operands has made of x and w (ProjectOperandsSpec).
constexpr u32 kWideRows = 128;  // of w, of x
constexpr u32 kWideColumns = 64;
constexpr u32 kWideMathThreads = 256, kWideThreads = kWideMathThreads + 128;
constexpr u32 kWideTileBytes = kWideRows * kWideColumns * 2, kWideStageBytes = 2 * kWideTileBytes;
constexpr u32 kWideMathRegisters = 232, kWideLoadRegisters = 40;
struct ProjectWideSmem {
    u32 stages;
    u32 barriers;
    u32 bytes;
};
constexpr ProjectWideSmem plan_wide() {
    ProjectWideSmem p{};
    p.stages = 6;
    p.barriers = p.stages * kWideStageBytes;
    p.bytes = p.barriers + p.stages * 16;
    return p;
}

constexpr ProjectMmaSmem plan_smem(const ProjectMmaSpec& s) {
    if (s.few) return {plan_few(s).bytes};
    return {s.wide ? plan_wide().bytes : project_sums_bytes(s)};
}

// One matrix [n, k] of a launch, or one of its groups.
struct ProjectPart {
    const void* w;
    const void* scale;
    u64 stride_row, scale_stride_row;  // of w in elements, of scales
    u64 x_offset, x_scale_offset;      // elements between a row's start and the columns of this part
    void* y;
    const void* add;
    u64 y_stride, add_stride;
    u32 n, end;  // blocks of row tiles of this part and those before it
};
struct ProjectMmaParams {
    const void* x;
    const float* x_scale;
    u64 x_stride, x_scale_stride;  // [rows, ..]
    u32 rows, k, num_parts, token_blocks;
    ProjectPart parts[kMaxProjectParts];
};

// What project_wide reads: x, then w, in blocks of 128 rows of 16-bit columns, as one matrix. Columns of 64
// come in the order of the products: sixteen of a step of project_mma's after the other.
struct ProjectWideParams {
    TensorMap operands;
    ProjectMmaParams p;
    u32 x_groups;  // 1, or one for each part
};

// project_operands: what project_wide reads. FP8 becomes FP16 where x is FP8, else bf16: both are exact.
struct ProjectOperandsSpec {
    Format x = Format::bf16, w = Format::bf16;

    friend constexpr bool operator==(const ProjectOperandsSpec&, const ProjectOperandsSpec&) = default;
};
template <typename Visitor>
constexpr void visit_fields(Visitor&& visit, const ProjectOperandsSpec& s) {
    visit("x", s.x);
    visit("w", s.w);
}
constexpr ProjectMmaSmem plan_smem(const ProjectOperandsSpec&) {
    return {0};
}
constexpr u32 kOperandThreads = 256, kOperandLoads = 4;  // loads of a thread: each of its 16 or 8 columns
// Groups of 64 columns of a row, of a block of threads.
constexpr u32 kOperandGroups = kOperandThreads / 4 * kOperandLoads;
static_assert(kWideRows * (kProjectColumns / kWideColumns) % kOperandGroups == 0,
              "a block of threads has rows of one block of rows");
struct ProjectOperand {
    const void* data;
    u64 stride;     // of rows, in elements
    u32 rows, end;  // blocks of rows of this matrix and those before it; rows from `rows` on repeat the last
};
struct ProjectOperandsParams {
    void* to;
    u32 k, x_groups;  // the first x_groups matrices are x
    ProjectOperand of[2 * kMaxProjectParts];
};

// project_pair: two launches that do not depend on each other, in one.
struct ProjectPairSpec {
    ProjectMmaSpec first, second;

    friend constexpr bool operator==(const ProjectPairSpec&, const ProjectPairSpec&) = default;
};
template <typename Visitor>
constexpr void visit_fields(Visitor&& visit, const ProjectPairSpec& s) {
    visit("first", s.first);
    visit("second", s.second);
}
constexpr u32 ctas_per_sm_of(const ProjectPairSpec& s) {
    const u32 first = ctas_per_sm_of(s.first), second = ctas_per_sm_of(s.second);
    return first < second ? first : second;
}
constexpr ProjectMmaSmem plan_smem(const ProjectPairSpec& s) {
    const u32 first = plan_smem(s.first).bytes, second = plan_smem(s.second).bytes;
    return {first > second ? first : second};
}
struct ProjectPairParams {
    ProjectMmaParams first, second;
    u32 first_blocks;
};

}  // namespace deep_gemm
