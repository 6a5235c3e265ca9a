// Projections y = add + x w^T for few rows, one warp an output: which formats (ProjectSpec) and what the
// three kernels of the family are called with. The order of a sum depends on k and the formats alone: lane l
// takes columns 4 l to 4 l + 3 of every 128, then the lanes are added pairwise.
#pragma once

#include <deep_gemm/spec/view.h>

namespace deep_gemm {

constexpr u32 kProjectThreads = 256;
constexpr u32 kProjectWarps = kProjectThreads / 32;
constexpr u32 kProjectColumns = 128;  // of a warp's step

struct ProjectSpec {
    Format x = Format::fp32;        // fp32, bf16, or fp8_e4m3 with fp32 scales per 128 columns
    Format w = Format::bf16;        // fp32, bf16, fp8_e4m3 (scales per 128 x 128), fp4_e2m1 (per 32 columns)
    Format w_scale = Format::none;  // fp32, fp8_ue8m0
    Format y = Format::fp32;
    Format add = Format::none;  // none: nothing is added
    u32 rows = 1;               // of x that share a load of w

    friend constexpr bool operator==(const ProjectSpec&, const ProjectSpec&) = default;
};
template <typename Visitor>
constexpr void visit_fields(Visitor&& visit, const ProjectSpec& s) {
    visit("x", s.x);
    visit("w", s.w);
    visit("w_scale", s.w_scale);
    visit("y", s.y);
    visit("add", s.add);
    visit("rows", s.rows);
}

constexpr NoSmem plan_smem(const ProjectSpec&) {
    return {};
}

// Matrices [count, n, k] and their scales; w strides in elements, scale strides in scales.
struct WeightView {
    const void* data;
    const void* scale;
    u64 stride_matrix, stride_row, scale_stride_matrix, scale_stride_row;
};

struct ProjectParams {
    View x, y, add;  // [rows, groups, k or n]
    View x_scale;    // [rows, groups, k / 128]
    WeightView w;    // [groups, n, k]
    u32 rows, groups, n, k;
};

struct ExpertUpParams {
    View x, x_scale;     // [rows, k]
    WeightView w1, w3;   // [experts, n, k]
    const i32* experts;  // [rows, slots]; null: expert 0
    const float* weights;
    View mid;  // [rows, slots, n]
    u32 rows, slots, num_experts, n, k;
    float limit;  // 0: none
};

struct ExpertDownParams {
    View mid, mid_scale;  // [rows, slots, k]
    WeightView w;         // [experts, n, k]
    const i32* experts;
    const float* weights;
    View y, add;  // [rows, n]
    u32 rows, slots, num_experts, n, k;
};

}  // namespace deep_gemm
