// Quantisation of activations x [rows, k], a row at a time: which formats, and what a kernel is called with.
// A row's result depends on that row alone. docs/formats.md has the arithmetic.
//
//   recipe    codes                    scales
//   fp8_128   E4M3 [rows, k]           fp32 [rows, ceil(k / 128)], any strides
//   fp8_row   E4M3 [rows, k]           fp32 [rows]: one for each row
//   mxfp4     E2M1 [rows, k / 2]       UE8M0 bytes [rows, k / 32]
//   nvfp4     E2M1 [rows, k / 2]       E4M3 bytes [rows, k / 16] and fp32 global scales: one a row, or given
#pragma once

#include <deep_gemm/spec/format.h>

namespace deep_gemm {

enum class Recipe : u8 { fp8_128, mxfp4, nvfp4, fp8_row };

// From amax to a scale.
enum class ScaleRule : u8 {
    exact,    // amax / largest
    up,       // the power of two at or above: nothing is clipped
    nearest,  // the power of two with the nearest exponent: up to half a binary order is clipped
};

constexpr const char* name_of(Recipe recipe) {
    switch (recipe) {
        case Recipe::fp8_128: return "fp8_128";
        case Recipe::mxfp4: return "mxfp4";
        case Recipe::nvfp4: return "nvfp4";
        case Recipe::fp8_row: return "fp8_row";
    }
    return "?";
}
constexpr const char* name_of(ScaleRule rule) {
    switch (rule) {
        case ScaleRule::exact: return "exact";
        case ScaleRule::up: return "up";
        case ScaleRule::nearest: return "nearest";
    }
    return "?";
}

constexpr u32 kQuantizeThreads = 256;
constexpr u32 kQuantizeChunk = 8;  // elements of a thread
constexpr u32 kQuantizeRow =
    128;  // a row's chunks fill a multiple of it, so that no group of lanes straddles rows
constexpr float kFp8SmallestAmax = 1e-4f;
constexpr float kMxSmallestAmax = 6 * 0x1p-126f;

// Elements that share a scale, where that is not the whole row.
constexpr u32 block_of(Recipe recipe) {
    return recipe == Recipe::fp8_128 ? 128 : recipe == Recipe::mxfp4 ? 32 : 16;
}
// What k must be a multiple of.
constexpr u32 k_step_of(Recipe recipe) {
    return recipe == Recipe::mxfp4 ? 32 : 16;
}

struct QuantizeSpec {
    Format x = Format::bf16;
    Recipe recipe = Recipe::fp8_128;
    ScaleRule rule = ScaleRule::exact;
    bool row_amax = false;  // find the largest of each row: fp8_row; nvfp4 whose global scale is not given
    bool gather = false;    // rows are picked by source_rows

    friend constexpr bool operator==(const QuantizeSpec&, const QuantizeSpec&) = default;
};

template <typename Visitor, typename Spec>
requires requires(Spec& s) {
    s.row_amax;
}
constexpr void visit_fields(Visitor&& visit, Spec& s) {
    auto& [x, recipe, rule, row_amax, gather] = s;
    visit("x", x);
    visit("recipe", recipe);
    visit("rule", rule);
    visit("row_amax", row_amax);
    visit("gather", gather);
}

struct QuantizeParams {
    const void* x;               // [source rows, k]
    u8* codes;                   // [rows, k] or [rows, k / 2]
    void* scales;                // see the table
    float* global_scale;         // nvfp4, row_amax: [rows], written; else one number, read
    const i32* source_rows;      // [rows]: row r is row source_rows[r] / divisor of x; negative: left alone
    const i32* num_rows;         // with gather: rows at and beyond it are left alone
    u64 x_stride, codes_stride;  // elements of x, bytes of codes, from row to row
    u64 scales_stride_row, scales_stride_block;  // in scales
    u32 rows, k, divisor;
};

struct QuantizeSmem {
    u32 amax;  // fp32 for each warp
    u32 bytes;
};
constexpr QuantizeSmem plan_smem(const QuantizeSpec& s) {
    return {.amax = 0, .bytes = s.row_amax ? kQuantizeThreads / 32 * 4 : 0};
}

constexpr const char* why_illegal(const QuantizeSpec& s) {
    if (s.x != Format::bf16 && s.x != Format::fp32) return "x must be bf16 or fp32";
    if (s.recipe == Recipe::mxfp4 && s.rule == ScaleRule::exact)
        return "scales of mxfp4 are powers of two: up or nearest";
    if (s.recipe == Recipe::nvfp4 && s.rule != ScaleRule::exact) return "scales of nvfp4 are E4M3: exact";
    if (s.row_amax ? s.recipe != Recipe::nvfp4 && s.recipe != Recipe::fp8_row : s.recipe == Recipe::fp8_row)
        return "fp8_row needs the largest of a row, nvfp4 may, and no other";
    return nullptr;
}

}  // namespace deep_gemm
